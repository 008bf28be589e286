"""A long run goes on from folder to folder while the camera runs, and no frame is lost by it."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import tifffile

from segbatch.acquire.camera.core import Shot
from segbatch.acquire.camera.files import open_sink
from segbatch.acquire.camera.ledger import Counts, Ledger, Part
from segbatch.acquire.camera.record import RECORD_NAME, CameraRecord, new_run_folder
from segbatch.acquire.camera.run import Run
from segbatch.acquire.camera.session import CameraSession
from segbatch.acquire.find import find_raw_files
from segbatch.errors import StorageError
from tests.acquire.cameras import camera_settings, frames_in, opened, until

if TYPE_CHECKING:
    from segbatch.acquire.camera.camera import Facts


def read_records(out: Path) -> list[tuple[Path, CameraRecord]]:
    """Return the folders of a run in their order, each with its record."""
    found = [
        (path.parent, msgspec.json.decode(path.read_bytes(), type=CameraRecord))
        for path in out.glob(f"*/{RECORD_NAME}")
    ]
    return sorted(found, key=lambda each: each[1].first_frame)


def image_numbers(folder: Path) -> list[int]:
    """Return the core's own numbers of the images in a folder, in the order of their names."""
    raws = find_raw_files(folder)
    if raws[0].name.startswith("NDTiff"):
        from ndstorage import Dataset

        data: Any = Dataset(str(folder))
        count = len(frames_in(raws))
        tags = [data.read_metadata(time=index) for index in range(count)]
        data.close()
    else:
        tags = []
        for raw in raws:
            with tifffile.TiffFile(raw) as file:
                tags.append(file.pages[0].tags[51123].value)
    return [int(each["ImageNumber"]) for each in tags]


@pytest.mark.parametrize("kind", ["ome-tiff", "ndtiff"])
@pytest.mark.parametrize(("frames", "held"), [(35, [10, 10, 10, 5]), (30, [10, 10, 10])])
def test_a_run_goes_on_in_the_next_folder(
    tmp_path: Path, kind: str, frames: int, held: list[int]
) -> None:
    """Folders hold so many frames each, and the core's numbers go through them without a gap."""
    settings = camera_settings(frames=frames, frames_per_run=10, format=kind)
    seen: list[Counts] = []
    with opened(settings) as camera:
        run = Run(camera, settings, lambda: new_run_folder(tmp_path), lambda _, c: seen.append(c))
        last = run.take(threading.Event())
    parts = read_records(tmp_path)

    assert [record.written for _, record in parts] == held
    assert [record.taken for _, record in parts] == held
    assert [record.first_frame for _, record in parts] == [0, 10, 20, 30][: len(held)]
    assert {(record.state, record.ring_overflows) for _, record in parts} == {("complete", 0)}
    assert [len(frames_in(find_raw_files(folder))) for folder, _ in parts] == held
    numbers = [number for folder, _ in parts for number in image_numbers(folder)]
    assert numbers == list(range(numbers[0], numbers[0] + frames))
    assert (seen[-1].taken, seen[-1].written) == (frames, frames)
    assert last == parts[-1][1]
    assert len(list(tmp_path.iterdir())) == len(held)


def test_a_run_by_the_clock_goes_on_in_the_next_folder_too(tmp_path: Path) -> None:
    """Frames at an interval fill one folder after the other."""
    settings = camera_settings(frames=5, frames_per_run=2, interval_ms=30.0)
    with opened(settings) as camera:
        Run(camera, settings, lambda: new_run_folder(tmp_path)).take(threading.Event())

    assert [record.written for _, record in read_records(tmp_path)] == [2, 2, 1]


def test_a_session_counts_all_folders(tmp_path: Path) -> None:
    """A session without end goes from folder to folder, and what it tells is of all of them."""
    settings = camera_settings(frames=0, frames_per_run=10, out=str(tmp_path))
    session = CameraSession(settings, lambda: None)
    session.start()
    until(lambda: session.status.frames_written > 25, "three folders")
    assert session.stop(20)
    parts = read_records(tmp_path)

    assert session.status.frames_taken == session.status.frames_written > 25
    assert sum(record.written for _, record in parts) == session.status.frames_written
    assert [record.taken for _, record in parts[:-1]] == [10] * (len(parts) - 1)
    assert len(find_raw_files(tmp_path)) == session.status.frames_written
    assert {record.state for _, record in parts[:-1]} == {"complete"}


def test_a_next_folder_that_cannot_be_made_loses_only_what_is_counted(tmp_path: Path) -> None:
    """Where the next folder cannot be made the run fails; what the ring held then is counted."""
    made: list[Path] = []

    def folder() -> Path:
        if made:
            raise StorageError("no further folder", "", "")
        made.append(new_run_folder(tmp_path))
        return made[0]

    settings = camera_settings(frames=40, frames_per_run=10)
    with opened(settings) as camera:
        run = Run(camera, settings, folder)
        with pytest.raises(StorageError, match="no further folder"):
            run.take(threading.Event())
    ((_, record),) = read_records(tmp_path)

    assert (record.state, record.written) == ("failed", 10)
    assert record.not_written == record.taken - 10 > 0
    assert len(find_raw_files(tmp_path)) == 10


class Stamped:
    """A ledger that is handed frames with the time stamps that a test wants."""

    def __init__(self, out: Path, facts: Facts, each: int, *, counts_holes: bool) -> None:
        self.out, self.facts, self.each = out, facts, each
        self.ledger = Ledger(None, counts_holes=counts_holes)
        self.ledger.sequence_starts()

    def take(self, stamp_ms: float) -> None:
        """Take a frame and write it, in a new folder where the last one is full."""
        if not self.ledger.parts or not self.ledger.part.left:
            folder = new_run_folder(self.out)
            record = CameraRecord(first_frame=self.ledger.taken)
            sink = open_sink("ome-tiff", folder, self.facts)
            self.ledger.open(Part(folder, record, sink, self.each))
        self.ledger.took(Shot(np.zeros((4, 4), np.uint16), {"ElapsedTime-ms": stamp_ms}))
        if self.ledger.wrote(self.ledger.part, synced=True):
            self.ledger.ended(self.ledger.part, "complete", None)
            self.ledger.save()

    def end(self) -> list[tuple[int, list[tuple[int, int]]]]:
        """End the run; return the drops of each folder, and before which frame they were."""
        for part in self.ledger.end():
            self.ledger.ended(part, "complete", None)
        self.ledger.save()
        return [
            (record.dropped, [(gap.before_frame, gap.dropped) for gap in record.gaps])
            for _, record in read_records(self.out)
        ]


@pytest.fixture(scope="module")
def facts() -> Facts:
    """Return what a camera's frames are like."""
    with opened(camera_settings()) as camera:
        return camera.facts()


def test_a_hole_is_counted_in_the_folder_of_the_frame_behind_it(
    tmp_path: Path, facts: Facts
) -> None:
    """A hole that is found when the run is in a later folder stands in the one it belongs to."""
    stamped = Stamped(tmp_path, facts, 30, counts_holes=True)
    late = 0.0
    for index in range(100):
        # Behind 2 images of a folder; before the first of the next; in the last of that one.
        late += {2: 10.0, 60: 20.0, 89: 30.0}.get(index, 0.0)
        stamped.take(10.0 * index + late)

    assert stamped.end() == [(1, [(2, 1)]), (0, []), (5, [(0, 2), (29, 3)]), (0, [])]
    assert stamped.ledger.counts.dropped == 6


def test_folders_that_are_settled_are_let_go(tmp_path: Path, facts: Facts) -> None:
    """However many folders a run has filled, only the last few are held."""
    stamped = Stamped(tmp_path, facts, 5, counts_holes=True)
    for index in range(200):
        stamped.take(10.0 * index)

    assert len(stamped.ledger.parts) < 4


def test_the_record_of_a_new_folder_is_due_at_once(tmp_path: Path, facts: Facts) -> None:
    """However lately the last was written, a folder's record comes with its first frames."""
    stamped = Stamped(tmp_path, facts, 5, counts_holes=True)
    due = []
    for index in range(12):
        stamped.take(10.0 * index)
        due.append(stamped.ledger.record_is_due())

    assert [index for index, is_due in enumerate(due) if is_due] == [0, 5, 10]


def test_a_turn_that_passed_is_counted_once(tmp_path: Path) -> None:
    """Where frames by the clock come late their turns are counted, not the hole as well."""
    slept = threading.Event()
    pause = threading.Event()

    def dawdle(_: Path, counts: Counts) -> None:
        if counts.taken >= 25 and not slept.is_set():
            slept.set()
            pause.wait(0.4)

    settings = camera_settings(frames=60, interval_ms=20.0)
    with opened(settings) as camera:
        record = Run(camera, settings, lambda: tmp_path, dawdle).take(threading.Event())

    assert record.dropped == sum(gap.dropped for gap in record.gaps) > 0
    assert {gap.why for gap in record.gaps} == {"late"}
    assert json.loads((tmp_path / RECORD_NAME).read_bytes())["dropped"] == record.dropped
