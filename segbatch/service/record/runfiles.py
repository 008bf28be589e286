"""The files of a whole run: ``segbatch_run.json`` and ``segbatch_frames.csv``."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from segbatch.errors import StorageError
from segbatch.service.record.atomic import sync_folder, whole_file, write_whole
from segbatch.service.record.schema import QcRecord

RUN_SCHEMA = "segbatch.run/1"
RUN_FILE = "segbatch_run.json"
CAMERA_FILE = "segbatch_camera.json"
FRAMES_FILE = "segbatch_frames.csv"
_FRAMES_HEAD = b"file,page,outcome,reasons,error,"


class Counts(msgspec.Struct, kw_only=True):
    """Frames by outcome and by reason. ``segmented + rejected + failed == frames``."""

    frames: int = 0
    segmented: int = 0
    rejected: int = 0
    failed: int = 0
    by_reason: dict[str, int] = {}


class FramesTable:
    """Writes ``segbatch_frames.csv`` row by row and counts outcomes on the way."""

    # The columns that every frame has; the measures of the first frame that has any follow.
    _FRAME = ("shape", "dtype", "bit_depth", "acquired_at", "pixel_hash")
    _MASK = (
        "foreground_fraction",
        "object_count",
        "object_area_px_median",
        "mean_confidence",
        "mean_entropy",
    )
    _STEPS = ("read", "judge", "segment", "record")

    def __init__(self, measures: Iterable[str]) -> None:
        self._measures = tuple(measures)
        self.counts = Counts()
        self._reasons: Counter[str] = Counter()
        self.failed: list[str] = []

    def write(self, folder: Path, raw_root: Path, rows: Iterator[tuple[str, QcRecord]]) -> Path:
        """Write the table; ``rows`` are raw files, relative to ``raw_root``, with their records."""
        path = frames_file(folder)
        with whole_file(path) as handle:
            text = io.TextIOWrapper(handle, encoding="utf-8", newline="", write_through=True)
            writer = csv.writer(text)
            writer.writerow(self._header())
            for name, record in rows:
                self._count(name, record, raw_root)
                writer.writerow(self._row(name, record))
            text.flush()
            text.detach()
        return path

    def count(self, raw_root: Path, rows: Iterator[tuple[str, QcRecord]]) -> None:
        """Count outcomes without writing the table."""
        for name, record in rows:
            self._count(name, record, raw_root)

    def _header(self) -> list[str]:
        return [
            *("file", "page", "outcome", "reasons", "error"),
            *self._FRAME,
            *self._measures,
            "provisional",
            "mask_file",
            "mask_page",
            *self._MASK,
            "engine",
            "precision",
            *(f"{step}_ms" for step in self._STEPS),
            "written_at",
        ]

    def _row(self, name: str, record: QcRecord) -> list[Any]:
        frame, mask, model = record.frame, record.mask, record.model
        shape = "x".join(map(str, frame.shape)) if frame.shape else None
        return [
            *(name, frame.page, record.outcome, " ".join(record.reasons), record.error),
            *(shape if key == "shape" else getattr(frame, key) for key in self._FRAME),
            *(record.quality.get(key) for key in self._measures),
            record.quality.get("provisional"),
            mask.file if mask else None,
            mask.page if mask else None,
            *(getattr(mask, key) if mask else None for key in self._MASK),
            model.engine if model else None,
            model.precision if model else None,
            *(getattr(record.timing_ms, step) for step in self._STEPS),
            record.written_at,
        ]

    def _count(self, name: str, record: QcRecord, folder: Path) -> None:
        counts = self.counts
        counts.frames += 1
        setattr(counts, record.outcome, getattr(counts, record.outcome) + 1)
        self._reasons.update(record.reasons)
        counts.by_reason = dict(self._reasons.most_common())
        if record.outcome == "failed":
            error = (record.error or "").removeprefix(f"{folder / name}: ")
            self.failed.append(f"{name} frame {record.frame.page}: {error}")


def run_file(folder: Path) -> Path:
    """Return the name of the run's summary in a folder: never that of a file not written here."""
    return _own(folder / RUN_FILE, _is_run_file)


def frames_file(folder: Path) -> Path:
    """Return the name of the table of frames in a folder, as ``run_file``."""
    return _own(folder / FRAMES_FILE, _is_frames_file)


def _own(path: Path, is_ours: Callable[[Path], bool]) -> Path:
    names = [path, *(path.with_stem(f"{path.stem}_{number}") for number in range(2, 100))]
    own = next((name for name in names if not os.path.lexists(name) or is_ours(name)), None)
    if own is None:
        raise StorageError(
            f"{path} and 98 names like it were not written by segbatch",
            "a free name",
            "move those files away",
        )
    return own


def _is_run_file(path: Path) -> bool:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Marked).schema == RUN_SCHEMA
    except (OSError, msgspec.DecodeError):
        return False


class _Marked(msgspec.Struct):
    schema: str = ""


def _is_frames_file(path: Path) -> bool:
    try:
        with path.open("rb") as handle:
            return handle.read(len(_FRAMES_HEAD)) == _FRAMES_HEAD
    except OSError:
        return False


def write_run_file(folder: Path, content: dict[str, Any]) -> Path:
    """Write ``segbatch_run.json``, or the next free name where that is somebody else's."""
    path = run_file(folder)
    body = msgspec.json.encode({"schema": RUN_SCHEMA, **content})
    write_whole(path, msgspec.json.format(body, indent=2) + b"\n")
    sync_folder(folder)
    return path


def read_camera_file(folder: Path) -> dict[str, Any] | None:
    """Return what ``segbatch acquire`` left beside the frames that it took, None without it."""
    try:
        return msgspec.json.decode((folder / CAMERA_FILE).read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError):
        return None
