"""The names of the files beside a raw file, none of them anybody else's."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from segbatch import log
from segbatch.acquire.find import is_own_output, natural_key
from segbatch.errors import StorageError
from segbatch.service.record.atomic import remove, storage_error

_OME_ENDINGS = (".ome.tif", ".ome.tiff", ".ome.btf", ".ome.tf8")
_TIFF_ENDINGS = (".tif", ".tiff", ".btf", ".tf8", ".png")
# A stem with "_qc.jsonl" and the suffix of a hidden file must fit into 255 bytes.
_LONGEST_STEM_BYTES = 200
RETIRED_SUFFIX = ".superseded"
_HEAD_BYTES = 1 << 16
_logger = log.get_logger(__name__)


class _Owner(msgspec.Struct):
    """The frame of a QC record, as far as naming needs it."""

    file: str


class _Log(msgspec.Struct):
    schema: str
    frame: _Owner


@dataclass(frozen=True, slots=True)
class OutputNames:
    """Where the results of one raw file go; all of them lie in one folder.

    ``superseded`` are names under which results of this raw still stand, and
    which cannot be used any more because of a file of somebody else.
    """

    raw: Path
    folder: Path
    stem: str
    tail: str
    superseded: tuple[OutputNames, ...] = ()

    @property
    def mask(self) -> Path:
        """Class indices."""
        return self.folder / f"{self.stem}_mask{self.tail}"

    @property
    def probabilities(self) -> Path:
        """Probabilities, with ``--save-probabilities``."""
        return self.folder / f"{self.stem}_prob{self.tail}"

    @property
    def labels(self) -> Path:
        """Numbered objects, with ``--save-labels``."""
        return self.folder / f"{self.stem}_labels{self.tail}"

    def products(self) -> tuple[Path, Path, Path]:
        """Return mask, probabilities and labels."""
        return self.mask, self.probabilities, self.labels

    @property
    def qc(self) -> Path:
        """The QC log of a file that holds one frame."""
        return self.folder / f"{self.stem}_qc.json"

    @property
    def qc_lines(self) -> Path:
        """The QC log of a stack, a line for each frame."""
        return self.folder / f"{self.stem}_qc.jsonl"

    def all(self) -> tuple[Path, ...]:
        """Return every file that may be written."""
        return (*self.products(), self.qc, self.qc_lines)


def told(path: Path) -> str:
    """Return a file's name as it stands in records: bytes that are no UTF-8 are escaped."""
    return printable(path.name)


def printable(text: str) -> str:
    """Return text that holds names of files with bytes that are no UTF-8 escaped."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


class Register:
    """Names the results of one folder's raw files, all at once or as they come.

    The first of several raws of one stem takes the stem; the others' results
    carry their full names (``a.tiff_mask.tif``). A raw whose results stand
    already keeps their names, so that a file which comes later never takes
    over the results of another. A name that would fall on a raw file, or on a
    file that segbatch did not write, is passed over for the full name.

    The folder's names are read once, when the first raw is named. What came since can
    only stand in the way: the names that are about to be given are looked up again where
    raws are named one after another.

    Parameters
    ----------
    folder
        Where the results go; it need not exist.
    at_once
        All raws are named by one call.
    alive
        Called for every raw that is named.
    """

    def __init__(
        self, folder: Path, *, at_once: bool = False, alive: Callable[[], None] = lambda: None
    ) -> None:
        self._folder, self._at_once, self._alive = folder, at_once, alive
        self._there = _names_in(folder)
        self._taken: set[str] = set()

    def add(self, raws: Sequence[Path]) -> dict[Path, OutputNames]:
        """Name the results of further raw files, also of those that are not to be processed.

        Raises
        ------
        StorageError
            All names that a raw may use belong to somebody else.
        """
        folder, taken = self._folder, self._taken
        taken.update(raw.name.casefold() for raw in raws if raw.parent == folder)
        names: dict[Path, OutputNames] = {}
        later = []
        for raw in sorted(raws, key=natural_key):
            self._alive()
            standing = [
                candidate
                for number, candidate in enumerate(_candidates(raw, folder))
                if self._answers_for(candidate, raw, again=number == 0)
            ]
            kept = [c for c in standing if taken.isdisjoint(p.name.casefold() for p in c.all())]
            if kept:
                spoilt = tuple(candidate for candidate in standing if candidate != kept[0])
                names[raw] = replace(kept[0], superseded=spoilt)
                taken.update(path.name.casefold() for path in kept[0].all())
            else:
                later.append((raw, tuple(standing)))
        for raw, spoilt in later:
            names[raw] = next(
                (
                    replace(candidate, superseded=spoilt)
                    for candidate in _candidates(raw, folder)
                    if self._is_free(candidate)
                ),
                None,
            ) or _refuse(raw, folder)
            taken.update(path.name.casefold() for path in names[raw].all())
        return names

    def _answers_for(self, names: OutputNames, raw: Path, *, again: bool) -> bool:
        logs = self._existing((names.qc, names.qc_lines), again=again)
        # A log that may not be read is taken for this raw's: it is not to be written a second time.
        return told(raw) in _owners(logs) or any(not os.access(p, os.R_OK) for p in logs)

    def _is_free(self, names: OutputNames) -> bool:
        """Tell whether no name is a raw's, on a foreign file, or with results of any raw."""
        if any(path.name.casefold() in self._taken for path in names.all()):
            return False
        there = self._existing(names.all(), again=True)
        logs = [path for path in there if path in (names.qc, names.qc_lines)]
        return all(is_ours(path) for path in there) and not _owners(logs)

    def _existing(self, paths: Iterable[Path], *, again: bool) -> list[Path]:
        """Return those that exist; ``again``: also those that came since the folder was read."""
        known = self._at_once or not again
        return [
            path
            for path in paths
            if not (known and path.name.casefold() not in self._there) and os.path.lexists(path)
        ]


def _names_in(folder: Path) -> set[str]:
    try:
        return {entry.name.casefold() for entry in os.scandir(folder)}
    except OSError:
        return set()


def is_mask_of_ours(raw: Path, folder: Path) -> bool:
    """Tell a mask that was corrected by hand, and has lost our Software tag, from a raw frame.

    It bears the name of a mask whose QC log, written by segbatch, stands beside it.
    """
    stem, _ = _split(raw.name)
    base, _, kind = stem.rpartition("_")
    if raw.parent != folder or kind.casefold() not in {"mask", "prob", "labels"}:
        return False
    logs = [folder / f"{base}_qc{suffix}" for suffix in (".json", ".jsonl", RETIRED_SUFFIX)]
    heads = [_head(path) for path in logs if path.is_file()]
    return any(head is not None and head.frame.file != told(raw) for head in heads)


def displaced(names: OutputNames) -> OutputNames:
    """Return names for results that are to be written anew, clear of what became somebody's own.

    A mask that was corrected by hand and saved by another program is no longer ours.
    """
    if all(is_ours(path) for path in names.all() if os.path.lexists(path)):
        return names
    for candidate in _candidates(names.raw, names.folder):
        if not any(os.path.lexists(path) for path in candidate.all()):
            return replace(candidate, superseded=(*names.superseded, names))
    return _refuse(names.raw, names.folder)


def _candidates(raw: Path, folder: Path) -> Iterator[OutputNames]:
    stem, tail = _split(raw.name)
    for text in (stem, raw.name, *(f"{raw.name}_{number}" for number in range(2, 10))):
        yield OutputNames(raw, folder, _shortened(text), tail)


def _shortened(stem: str) -> str:
    encoded = os.fsencode(stem)
    if len(encoded) <= _LONGEST_STEM_BYTES:
        return stem
    digest = hashlib.blake2b(encoded, digest_size=4).hexdigest()
    return encoded[: _LONGEST_STEM_BYTES - 9].decode("utf-8", "ignore") + "~" + digest


def _owners(logs: Iterable[Path]) -> set[str]:
    """Return the names of the raws that QC logs of ours answer for."""
    heads = [_head(path) for path in logs]
    return {head.frame.file for head in heads if head is not None}


def is_ours(path: Path) -> bool:
    """Tell whether an existing file may be overwritten or removed because segbatch wrote it.

    A TIFF is ours by its Software tag. A log is ours by its schema; one that
    is no JSON at all is a log of ours that a disk has spoilt.
    """
    if path.is_symlink() or not path.is_file():
        return False
    if path.suffix in {".json", ".jsonl"}:
        return _head(path) is not None or not _is_json(path)
    return is_own_output(path)


def require_ours(path: Path) -> None:
    """Raise StorageError where ``path`` exists and is not ours to overwrite."""
    if os.path.lexists(path) and not is_ours(path):
        raise StorageError(
            f"{path} was written or changed by another program",
            "a free name",
            "move that file away, or write elsewhere with --out DIR",
        )


def remove_ours(path: Path) -> None:
    """Remove a result that no longer counts; one that became somebody's own stays."""
    if os.path.lexists(path):
        if is_ours(path):
            remove(path)
        else:
            _logger.warning("left alone: not written by segbatch", file=str(path))


def retire(names: OutputNames) -> None:
    """Take back results whose place is taken by a file of somebody else.

    The log stays under another name: it tells a corrected mask from a frame.
    """
    for log_file in (names.qc, names.qc_lines):
        if log_file.is_file() and is_ours(log_file):
            try:
                log_file.replace(log_file.with_suffix(RETIRED_SUFFIX))
            except OSError as error:
                raise storage_error(error, log_file) from error
    for path in names.products():
        remove_ours(path)


def _head(path: Path) -> _Log | None:
    """Return the first record of a QC log, None where it is none of ours."""
    try:
        with path.open("rb") as handle:
            content = handle.readline()
            if content.strip() == b"{":  # the indented record of a single frame
                content += handle.read(_HEAD_BYTES)
        found = msgspec.json.decode(content, type=_Log)
    except (OSError, msgspec.DecodeError):
        return None
    return found if found.schema.startswith("segbatch.qc/") else None


def _is_json(path: Path) -> bool:
    try:
        with path.open("rb") as handle:
            content = handle.readline() if path.suffix == ".jsonl" else handle.read()
        msgspec.json.decode(content)
    except OSError:
        return True  # not ours to say: leave it alone
    except msgspec.DecodeError:
        return False
    return True


def _refuse(raw: Path, folder: Path) -> OutputNames:
    taken = next(itertools.islice(_candidates(raw, folder), 1)).mask
    raise StorageError(
        f"{taken} and the other names for the results of {raw.name} are taken by other files",
        "a free name",
        "move those files away, or write elsewhere with --out DIR",
    )


def _split(name: str) -> tuple[str, str]:
    """Split a raw's name into the stem of its results and the ending of its masks."""
    lowered = name.lower()
    for ending in _OME_ENDINGS:
        if lowered.endswith(ending):
            return name[: -len(ending)], ".ome.tif"
    known = Path(name).suffix.lower() in _TIFF_ENDINGS
    return (Path(name).stem if known else name), ".tif"
