"""Which raw files a command is about, and the runs that they belong to."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from segbatch import log
from segbatch.acquire.find import find_raw_files, is_frame_file, natural_key
from segbatch.errors import UsageError

_logger = log.get_logger(__name__)


class Selection(msgspec.Struct, kw_only=True):
    """One run: the folder, all of its raw files, and which of them are asked for (None: all).

    ``out`` is the folder of its results where it is another than the settings say.
    """

    root: Path
    raws: list[Path]
    only: set[Path] | None = None
    out: Path | None = None


def select(paths: Sequence[str]) -> list[Selection]:
    """Find the raw files that paths, files and globs name, grouped into runs.

    A folder is searched downwards and is a run of its own. Files that were
    named one by one belong to the run of the folder they lie in: they alone
    are processed, and compared with all that is there.

    Raises
    ------
    UsageError
        A path does not exist, folders lie inside each other, or nothing named
        is a raw frame.
    """
    whole: dict[Path, Path] = {}
    single: dict[Path, set[Path]] = {}
    folders: dict[Path, Path] = {}  # the spelling under which each was named first
    for text in paths:
        for path in _matches(text):
            if path.is_dir():
                whole.setdefault(path.resolve(), path)
            elif is_frame_file(path):
                folder = folders.setdefault(path.parent.resolve(), path.parent)
                single.setdefault(folder, set()).add(folder / path.name)
            else:
                _logger.debug("left out: no frame, or written by segbatch", file=str(path))
    selections = [Selection(root=root, raws=find_raw_files(root)) for root in whole.values()]
    for folder, files in single.items():
        if not any(folder.resolve().is_relative_to(root) for root in whole):
            found = find_raw_files(folder)
            raws = [*found, *sorted(files - set(found), key=natural_key)]
            selections.append(Selection(root=folder, raws=raws, only=files))
    selections = [selection for selection in selections if selection.raws]
    if not selections:
        raise UsageError(
            f"no frames in {', '.join(map(str, paths))}",
            "TIFF or PNG files that segbatch did not write itself",
            "check the path, or try it on a simulated run: segbatch simulate run --frames 20",
        )
    _refuse_nested(list(whole.values()))
    return selections


def _matches(text: str) -> list[Path]:
    if os.path.lexists(text):
        return [Path(text)]
    matches = sorted(map(Path, glob.glob(text, recursive=True)))  # noqa: PTH207 - may be absolute
    if not matches:
        raise UsageError(
            f"{text}: no such file or folder", "a folder, a file or a glob", "check the path"
        )
    return matches


def _refuse_nested(roots: Sequence[Path]) -> None:
    for inner in roots:
        for outer in roots:
            if inner != outer and inner.resolve().is_relative_to(outer.resolve()):
                raise UsageError(
                    f"{inner} lies inside {outer}",
                    "folders apart from each other: each is a run of its own",
                    f"name {outer} alone, or process them one after the other",
                )
