"""Which files of a watched tree are raw, folder by folder; the tree is never held in memory.

The one listing of raw files: a run that is processed by command and one that
is watched have the same files, and so the same fingerprint. It may be asked
again and again: a file is opened only where its name tells nothing, and once.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from segbatch.acquire.naming import (
    IMAGE_SUFFIXES,
    OWN_SUFFIXES,
    SNIFFED_SUFFIXES,
    has_log,
    is_left_out,
    is_own_output,
    natural_key,
    starts_as_image,
)

_ANSWERS_KEPT = 1 << 16
_ENTRIES_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Seen:
    """A raw file as it was seen: its path, its size (bytes) and its time stamp."""

    path: str
    size: int
    mtime_ns: int


class Rules:
    """Tells the raw files of one tree from all else that lies in it.

    Parameters
    ----------
    root
        The watched folder.
    run_depth
        Folders this many levels below ``root`` are the runs.
    exclude
        Folders of the tree in which nothing is input.
    """

    def __init__(self, root: Path, run_depth: int, exclude: tuple[Path, ...]) -> None:
        self.root = str(root)
        self._depth = run_depth
        self._excluded = frozenset(map(str, exclude))
        self._answers: dict[tuple[str, int, int], bool] = {}

    def run_of(self, folder: str) -> str:
        """Return the folder of the run that the files of ``folder`` belong to."""
        parts = self._parts(folder)[: self._depth]
        return os.path.join(self.root, *parts)  # noqa: PTH118 - a Path for each file is slow

    def is_within_run(self, folder: str) -> bool:
        """Tell whether ``folder`` with all below it belongs to one run."""
        return len(self._parts(folder)) >= self._depth

    def walk(
        self, start: str, on_error: Callable[[str, OSError | None], object], *, deep: bool = True
    ) -> Iterator[tuple[str, Seen | None]]:
        """Yield (folder, raw file) for all below ``start``; the files of a run follow each other.

        The file is None now and then, so that the caller can pause.

        Parameters
        ----------
        deep
            Go into the folders below.
        on_error
            Told of each folder that cannot be read, and with None of each that can.
        """
        folders = [start]
        while folders:
            folder = folders.pop()
            try:
                entries = list(os.scandir(folder))
            except OSError as error:
                on_error(folder, error)
                yield folder, None
                continue
            on_error(folder, None)
            names = {entry.name for entry in entries}
            below = []
            for number, entry in enumerate(entries):
                if number % _ENTRIES_AT_ONCE == 0:
                    yield folder, None
                try:
                    is_folder = entry.is_dir(follow_symlinks=False)
                except OSError as error:  # a share that had to be asked, and did not answer
                    on_error(entry.path, error)
                    continue
                if is_folder:
                    if deep and self._is_entered(entry, names):
                        below.append(entry.path)
                    continue
                seen = self._raw(entry.path, entry.name, names)
                if seen is not None:
                    yield folder, seen
            folders += sorted(below, key=lambda path: natural_key(Path(path)), reverse=True)

    def raw_at(self, path: str) -> Seen | None:
        """Return one file that an event named, None where it is no raw file of the tree."""
        folder, name = os.path.split(path)
        if not self.is_open(folder):
            return None
        return self._raw(path, name, _Beside(folder))

    def is_still_raw(self, seen: Seen) -> bool:
        """Ask again of a file whose name is like that of a result, now that it is whole."""
        folder, name = os.path.split(seen.path)
        return not self._is_own(seen, name, _Beside(folder))

    def has_image_name(self, path: str) -> bool:
        """Tell whether a file of that name may be a raw file."""
        name = os.path.basename(path)  # noqa: PTH119
        return not name.startswith(".") and _suffix(name) in IMAGE_SUFFIXES + SNIFFED_SUFFIXES

    def entries(self, folder: str, *, without_files: bool) -> Iterator[os.DirEntry[str]]:
        """Yield the folders, and the files that may be raw by their names."""
        found = list(os.scandir(folder))
        names = {entry.name for entry in found}
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                if self._is_entered(entry, names):
                    yield entry
            elif (
                not without_files
                and self.has_image_name(entry.name)
                and not has_log(entry.name, names)
            ):
                yield entry

    def _parts(self, folder: str) -> list[str]:
        return [part for part in folder[len(self.root) :].split(os.sep) if part]  # noqa: PTH206

    def _is_entered(self, entry: os.DirEntry[str], beside: Container[str]) -> bool:
        return not is_left_out(entry.name, beside) and entry.path not in self._excluded

    def is_open(self, folder: str) -> bool:
        """Tell whether ``walk`` would come to this folder."""
        place = self.root
        if folder != place and not folder.startswith(place.rstrip(os.sep) + os.sep):
            return False
        for part in self._parts(folder):
            beside = _Beside(place)
            place = os.path.join(place, part)  # noqa: PTH118
            if is_left_out(part, beside) or place in self._excluded or os.path.islink(place):  # noqa: PTH114
                return False
        return True

    def _raw(self, path: str, name: str, beside: Container[str]) -> Seen | None:
        if not self.has_image_name(name) or has_log(name, beside):
            return None
        try:
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                if not self._stays_inside(path):
                    return None
                status = os.stat(path)  # noqa: PTH116
        except (OSError, RuntimeError):  # gone meanwhile, or a link to itself
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        seen = Seen(path, status.st_size, status.st_mtime_ns)
        if _suffix(name) in SNIFFED_SUFFIXES and not self._answer(seen, starts_as_image):
            return None
        return None if self._is_own(seen, name, beside) else seen

    def _stays_inside(self, path: str) -> bool:
        """Tell whether a link leads to a place in its own run, wherever that run lies."""
        run = self.run_of(os.path.dirname(path))  # noqa: PTH120
        return Path(path).resolve().is_relative_to(Path(run).resolve())

    def _is_own(self, seen: Seen, name: str, beside: Container[str]) -> bool:
        if not any(suffix in name.casefold() for suffix in OWN_SUFFIXES):
            return False
        return has_log(name, beside) or self._answer(seen, is_own_output)

    def _answer(self, seen: Seen, question: Callable[[Path], bool]) -> bool:
        """Ask a question that opens the file; the answer holds until the file changes."""
        key = (seen.path, seen.size, seen.mtime_ns)
        if key not in self._answers:
            if len(self._answers) >= _ANSWERS_KEPT:
                self._answers.clear()
            self._answers[key] = question(Path(seen.path))
        return self._answers[key]


class _Beside:
    """The names in a folder, asked of the disk one by one."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def __contains__(self, name: object) -> bool:
        return os.path.lexists(os.path.join(self._folder, str(name)))  # noqa: PTH118


def _suffix(name: str) -> str:
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
    return "" if suffix == "." else suffix
