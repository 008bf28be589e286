"""What a process leaves that was killed while it took a run."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from segbatch.acquire.camera.files import PARTIAL_SUFFIX
from segbatch.acquire.camera.record import (
    RECORD_NAME,
    CameraRecord,
    leave_if_empty,
    now,
    write_record,
)
from segbatch.acquire.raw import RawFile
from segbatch.acquire.sidefiles import IndexFile
from segbatch.errors import SegbatchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from segbatch.acquire.camera.ledger import Counts

_FRAME = re.compile(r"img_\d{9,}\.tif")  # and no mask
INDEX_NAME = "NDTiff.index"


@dataclass(frozen=True, slots=True)
class LeftFolder:
    """A folder of a process that is gone, and what that had counted when it told of the folder."""

    folder: Path
    before: Counts


def settle(folders: Sequence[LeftFolder], told: Counts, error: str) -> Counts:
    """Have the runs of a process that is gone end as failed; return what came of all of them.

    Written is what lies on the disk. Half-written frames are removed, and a
    folder in which nothing else lies.

    Parameters
    ----------
    folders
        The last that it made, in their order; one that is gone meanwhile is left out.
    told
        What it said last of all of them. The figures that are returned are not less.
    error
        What it ended by.

    Raises
    ------
    OSError
        A record cannot be read or written.
    msgspec.DecodeError
        A record is none.
    """
    taken, written, dropped = told.taken, told.written, told.dropped
    for each in folders:
        if not each.folder.is_dir():
            continue
        # What it took last and did not note was told, and belongs to its last folder.
        unnoted = told.taken - each.before.taken if each is folders[-1] else 0
        record = _ended(each.folder, unnoted, error)
        taken = max(taken, each.before.taken + record.taken)
        written = max(written, each.before.written + record.written)
        dropped = max(dropped, each.before.dropped + record.dropped)
    return msgspec.structs.replace(told, taken=taken, written=written, dropped=dropped)


def _ended(folder: Path, unnoted: int, error: str) -> CameraRecord:
    """Return the record of a folder, which is written where it did not come to its end."""
    record = CameraRecord(started_at=now())
    with contextlib.suppress(FileNotFoundError):  # it had not come to that
        record = msgspec.json.decode((folder / RECORD_NAME).read_bytes(), type=CameraRecord)
    if record.state != "acquiring":
        return record
    for partial in folder.glob(f".*{PARTIAL_SUFFIX}"):
        partial.unlink(missing_ok=True)
    record.written = max(record.written, _frames_in(folder))
    record.taken = max(record.taken, record.written, unnoted)
    record.not_written = record.taken - record.written
    record.state, record.error, record.ended_at = "failed", error, now()
    write_record(folder, record)
    if not record.written:
        leave_if_empty(folder)
    return record


def _frames_in(folder: Path) -> int:
    """Count the frames that are whole on the disk."""
    with os.scandir(folder) as entries:
        files = sum(_FRAME.fullmatch(entry.name) is not None for entry in entries)
    if files or not (folder / INDEX_NAME).exists():
        return files
    index = IndexFile("<")
    with (
        contextlib.suppress(SegbatchError),
        contextlib.closing(RawFile(folder / INDEX_NAME)) as file,
    ):
        index.update(file)
    return index.entry_count
