"""What a process leaves that was killed while it took a run, with the machine or by itself."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from segbatch.acquire.camera.files import FRAME_NAME, PARTIAL_SUFFIX
from segbatch.acquire.camera.hold import hold_left, hold_name
from segbatch.acquire.camera.ledger import Counts
from segbatch.acquire.camera.record import (
    RECORD_NAME,
    CameraRecord,
    leave_if_empty,
    now,
    write_record,
)
from segbatch.acquire.micromanager import INDEX_NAME
from segbatch.acquire.raw import RawFile
from segbatch.acquire.sidefiles import IndexFile
from segbatch.errors import SegbatchError
from segbatch.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CUT_OFF = "the process or the machine ended while it took this run"
_logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LeftFolder:
    """A folder of a process that is gone, and what that had counted ``before`` its first frame.

    Frames that were under way to earlier folders by then count as written.
    """

    folder: Path
    before: Counts


def settle(folders: Sequence[LeftFolder], told: Counts, error: str) -> Counts:
    """Have the runs of a process that is gone end as failed; return what came of all of them.

    Written is what lies on the disk. Half-written frames are removed, and a
    folder in which nothing else lies.

    Parameters
    ----------
    folders
        The last that it made, in their order, without a gap; one that is gone meanwhile holds what
        was told of it.
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
    stood = [*(each.before for each in folders), told]
    found = stood[0]
    for each, behind in zip(folders, stood[1:], strict=True):
        # Each on top of what was found in those before, which may be less than what was taken.
        found = _settled(each, behind, error).after(found)
    return msgspec.structs.replace(
        told,
        taken=max(told.taken, found.taken),
        written=max(told.written, found.written),
        dropped=max(told.dropped, found.dropped),
    )


def _settled(left: LeftFolder, behind: Counts, error: str) -> Counts:
    """Return what came of one folder; ``behind`` is where the counts stood when it was left."""
    taken = behind.taken - left.before.taken
    if not left.folder.is_dir():
        written = behind.written - left.before.written
        return Counts(taken, written, behind.dropped - left.before.dropped)
    record = _ended(left.folder, taken, error)
    (left.folder / hold_name()).unlink(missing_ok=True)  # whose holder is dead
    if not record.written:
        leave_if_empty(left.folder)
    return Counts(record.taken, record.written, record.dropped)


def _ended(folder: Path, taken: int, error: str) -> CameraRecord:
    """Return the record of a folder, which is written where it did not come to its end.

    ``taken`` frames at least were taken for it, of which it may not have noted all.
    """
    record = CameraRecord(started_at=now())
    with contextlib.suppress(FileNotFoundError):  # it had not come to that
        record = msgspec.json.decode((folder / RECORD_NAME).read_bytes(), type=CameraRecord)
    if record.state != "acquiring":
        return record
    for partial in folder.glob(f".*{PARTIAL_SUFFIX}"):
        partial.unlink(missing_ok=True)
    record.written = _frames_in(folder)
    record.taken = max(record.taken, record.written, taken)
    record.not_written = record.taken - record.written
    record.state, record.error, record.ended_at = "failed", error, now()
    write_record(folder, record)
    return record


def settle_all_cut_off(root: Path) -> None:
    """Settle every run at and below ``root`` that was cut off; never raises."""
    for folder in _with_lock_file(root):
        settle_cut_off(folder)


def settle_cut_off(folder: Path) -> None:
    """Have the run in a folder end as failed where it was cut off with its process.

    Which is so where a lock file of this computer lies there that nobody holds. Where that is
    not so nothing is done. What cannot be settled is left as it is, and logged.
    """
    try:
        if (folder / hold_name()).exists():
            _settle_cut_off(folder)
    except (OSError, msgspec.DecodeError) as error:
        _logger.error("a run that was cut off stays so", run=str(folder), why=str(error))


def _with_lock_file(root: Path) -> Iterator[Path]:
    """Yield the folders that a run may have been cut off in; no run's frames are listed."""
    folders, own = [root], hold_name()
    while folders:
        folder = folders.pop()
        try:
            if (folder / own).exists():
                yield folder
            elif not (folder / RECORD_NAME).exists():
                with os.scandir(folder) as entries:
                    folders += [Path(each) for each in entries if _is_searched(each)]
        except OSError as error:
            _logger.warning("not searched for runs cut off", folder=str(folder), why=str(error))


def _is_searched(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")


def _settle_cut_off(folder: Path) -> None:
    # Asked before the lock: where a process is about to take it, nothing lies there yet.
    if all(path.name == hold_name() for path in folder.iterdir()):
        return
    held = hold_left(folder)
    if held is None:
        return
    try:
        record = _ended(folder, 0, CUT_OFF)
    except BaseException:
        held.leave()
        raise
    held.release()
    if not record.written:
        leave_if_empty(folder)
    if record.error == CUT_OFF:
        _logger.warning(
            "a run that was cut off is settled",
            run=str(folder),
            error=record.error,
            taken=record.taken,
            written=record.written,
            not_written=record.not_written,
        )


def _frames_in(folder: Path) -> int:
    """Count the frames that are whole on the disk."""
    with os.scandir(folder) as entries:
        # One that no one waited for has its name and no content after a power cut.
        files = sum(
            FRAME_NAME.fullmatch(entry.name) is not None and entry.stat().st_size > 0
            for entry in entries
        )
    if files or not (folder / INDEX_NAME).exists():
        return files
    index = IndexFile("<")
    with (
        contextlib.suppress(SegbatchError),
        contextlib.closing(RawFile(folder / INDEX_NAME)) as file,
    ):
        index.update(file)
    return index.entry_count
