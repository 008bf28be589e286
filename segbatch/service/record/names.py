"""The names of the files beside a raw file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segbatch.service.record import schema

_OME_ENDINGS = (".ome.tif", ".ome.tiff", ".ome.btf", ".ome.tf8")


@dataclass(frozen=True, slots=True)
class OutputNames:
    """Where the results of one raw file go; all of them lie in one folder."""

    raw: Path
    folder: Path
    stem: str
    tail: str

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


def assign(raws: Sequence[Path], folder: Path) -> dict[Path, OutputNames]:
    """Name the results of the raw files of one folder, none of them twice.

    The first of several raws of one stem takes the stem; the others' results
    carry their full names (``a.tiff_mask.tif``). A raw whose results stand
    under the stem already keeps it, so that a file which comes later never
    takes over the results of another; and where a plain name is that of a raw
    file (somebody's own ``a_mask.tif`` beside ``a.tif``), the full name is used.
    """
    taken = set(raws)
    by_stem: dict[str, list[Path]] = {}
    for raw in sorted(raws):
        by_stem.setdefault(_split(raw.name)[0].casefold(), []).append(raw)
    names = {}
    for rivals in by_stem.values():
        owner = _owner(rivals, folder) if len(rivals) > 1 else rivals[0]
        for raw in rivals:
            stem, tail = _split(raw.name)
            plain = OutputNames(raw, folder, stem, tail)
            free = raw == owner and taken.isdisjoint(
                (plain.mask, plain.probabilities, plain.labels)
            )
            names[raw] = plain if free else OutputNames(raw, folder, raw.name, tail)
    return names


def _owner(rivals: list[Path], folder: Path) -> Path:
    for raw in rivals:
        stem, tail = _split(raw.name)
        names = OutputNames(raw, folder, stem, tail)
        for log in (names.qc, names.qc_lines):
            if log.is_file():
                with log.open("rb") as handle:
                    first = handle.readline() if log == names.qc_lines else handle.read()
                record = schema.decode(first)
                if record is not None and record.frame.file in {rival.name for rival in rivals}:
                    return next(rival for rival in rivals if rival.name == record.frame.file)
    return rivals[0]


def _split(name: str) -> tuple[str, str]:
    """Split a raw's name into the stem of its results and the ending of its masks."""
    lowered = name.lower()
    for ending in _OME_ENDINGS:
        if lowered.endswith(ending):
            return name[: -len(ending)], ".ome.tif"
    path = Path(name)
    known = path.suffix.lower() in {".tif", ".tiff", ".btf", ".tf8", ".png"}
    return (path.stem if known else name), ".tif"
