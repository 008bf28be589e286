"""The folders of a camera's process that is gone: what is counted of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from segbatch.acquire.camera.ledger import Counts
from segbatch.acquire.camera.left import LeftFolder, settle
from segbatch.acquire.camera.record import RECORD_NAME, CameraRecord, write_record


def left(out: Path, before: int, frames: int, record: CameraRecord | None) -> LeftFolder:
    """Return a folder with so many frames, that begins behind so many others."""
    folder = out / f"from-{before}"
    folder.mkdir(parents=True)
    for index in range(frames):
        (folder / f"img_{index:09d}.tif").write_bytes(b"a frame")
    if record is not None:
        write_record(folder, record)
    return LeftFolder(folder, Counts(before, before))


def read(each: LeftFolder) -> tuple[str, int, int, int]:
    """Return what the record of a folder says."""
    record = msgspec.json.decode((each.folder / RECORD_NAME).read_bytes(), type=CameraRecord)
    return record.state, record.taken, record.written, record.not_written


def three(out: Path) -> list[LeftFolder]:
    """Return three folders for 60 frames each, behind others that are not kept any more."""
    return [
        left(out, 180, 60, CameraRecord(state="complete", taken=60, written=60, dropped=1)),
        left(out, 240, 57, CameraRecord(taken=34, written=20)),
        left(out, 300, 31, None),
    ]


def test_each_folder_is_counted_on_top_of_those_before(tmp_path: Path) -> None:
    """What a full folder lost is lost to the sum, and what nobody told of but lies there is not."""
    folders = three(tmp_path)
    found = settle(folders, Counts(320, 290, 0, 7, 100), "it was killed")

    assert found == Counts(331, 328, 1, 7, 100)
    assert [read(each) for each in folders] == [
        ("complete", 60, 60, 0),
        ("failed", 60, 57, 3),
        ("failed", 31, 31, 0),
    ]


def test_what_was_told_and_is_nowhere_was_lost_in_the_last_folder(tmp_path: Path) -> None:
    """Frames that were told of and are in no folder are in the last one's record, once."""
    folders = three(tmp_path)
    found = settle(folders, Counts(340, 300), "it was killed")

    assert found == Counts(340, 328, 1)
    assert read(folders[-1]) == ("failed", 40, 31, 9)


def test_a_folder_that_was_moved_away_counts_as_it_was_told(tmp_path: Path) -> None:
    """Where a folder is gone, what was told of it stands, and the others are counted as ever."""
    for number, gone in enumerate(range(3)):
        folders = three(tmp_path / str(number))
        shutil.rmtree(folders[gone].folder)
        found = settle(folders, Counts(320, 317), "it was killed")

        assert (found.taken, found.written) == [(331, 328), (331, 331), (320, 317)][gone]


def test_without_a_folder_the_counts_stay() -> None:
    """A process that had made no folder leaves what it had told."""
    assert settle([], Counts(5, 4, 3, 2, 1), "it was killed") == Counts(5, 4, 3, 2, 1)
