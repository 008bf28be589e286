"""Faults that nobody foresaw end a run as failed, and nobody else's tidiness ends it at all."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from segbatch.acquire.camera.door import open_camera
from segbatch.acquire.camera.errors import CameraError, CameraSilentError
from segbatch.acquire.camera.files import OmeTiffSink, whole_file
from segbatch.acquire.camera.record import (
    RECORD_NAME,
    CameraRecord,
    leave_if_empty,
    new_run_folder,
)
from segbatch.acquire.camera.run import Run
from segbatch.acquire.camera.writing import Writers
from segbatch.acquire.find import find_raw_files
from segbatch.errors import SegbatchError
from segbatch.service.record.atomic import is_partial, remove
from tests.acquire.cameras import camera_settings, camera_threads, frames_in, opened, until

if TYPE_CHECKING:
    from segbatch.acquire.camera.camera import Facts
    from segbatch.acquire.camera.ledger import Counts


def read_record(folder: Path) -> CameraRecord:
    """Return what the run says of itself."""
    return msgspec.json.decode((folder / RECORD_NAME).read_bytes(), type=CameraRecord)


def tidy(folder: Path) -> None:
    """Clear away what an interrupted run of the service left, as the service does (``Work``)."""
    for path in [path for path in folder.iterdir() if is_partial(path)]:
        remove(path)


def test_a_frame_that_is_being_written_is_no_leftover(tmp_path: Path) -> None:
    """Who clears a folder while a frame is written there finds a hidden file and leaves it."""
    with whole_file(tmp_path / "img_000000000.tif", sync=True) as handle:
        handle.write(b"half")
        tidy(tmp_path)
        assert find_raw_files(tmp_path) == []
        (hidden,) = tmp_path.iterdir()
        handle.write(b" and half")

    assert hidden.name.startswith(".")
    assert (tmp_path / "img_000000000.tif").read_bytes() == b"half and half"


@pytest.mark.parametrize("kind", ["ome-tiff", "ndtiff"])
def test_a_run_goes_on_while_its_folder_is_cleared(tmp_path: Path, kind: str) -> None:
    """However often the folder is cleared of leftovers, every frame and the record are there."""
    done = threading.Event()

    def keep_tidy() -> None:
        while not done.is_set():
            tidy(tmp_path)

    tidying = threading.Thread(target=keep_tidy)
    settings = camera_settings(frames=60, exposure_ms=2.0, format=kind)
    with opened(settings) as camera:
        tidying.start()
        try:
            record = Run(camera, settings, lambda: tmp_path).take(threading.Event())
        finally:
            done.set()
            tidying.join()

    assert (record.state, record.written) == ("complete", 60)
    assert len(frames_in(find_raw_files(tmp_path))) == 60


class Broken(OmeTiffSink):
    """The real writer with a fault in its code that shows at the fifth frame, or at the end."""

    def __init__(self, at_the_end: bool, folder: Path, facts: Facts) -> None:
        super().__init__(folder, facts)
        self.at_the_end = at_the_end

    def write(self, index: int, pixels: Any, meta: Any, *, sync: bool) -> None:
        """Write the first frames."""
        if index > 4 and not self.at_the_end:
            raise ValueError("fifth frame")
        super().write(index, pixels, meta, sync=sync)

    def close(self) -> None:
        """Fail, where that was asked for."""
        if self.at_the_end:
            raise ValueError("at the end")


@pytest.mark.parametrize(("at_the_end", "word"), [(False, "fifth frame"), (True, "at the end")])
def test_a_fault_of_the_writers_is_told(tmp_path: Path, at_the_end: bool, word: str) -> None:
    """A fault in the writing of frames ends the run, by its name, and what is lost is counted."""
    settings = camera_settings(frames=40)
    with opened(settings) as camera:
        run = Run(camera, settings, lambda: tmp_path, None, lambda _, *w: Broken(at_the_end, *w))
        with pytest.raises(SegbatchError, match=f"ValueError: {word}") as told:
            run.take(threading.Event())
    record = read_record(tmp_path)

    assert "fault of segbatch" in told.value.remedy
    assert (record.state, record.error) == ("failed", str(told.value))
    assert record.written == len(find_raw_files(tmp_path)) == (40 if at_the_end else 5)
    assert record.not_written == record.taken - record.written
    assert camera_threads() == []


def test_writers_live_on_after_a_fault() -> None:
    """A fault of one job keeps no writer from the end, and those behind it are thrown away."""
    writers, done = Writers(1), []
    for divisor in (1, 0, 2):
        writers.put(lambda divisor=divisor: done.append(1 // divisor))

    assert writers.close(60)
    assert isinstance(writers.failure, ZeroDivisionError)
    assert done == [1]


def test_an_unforeseen_fault_stands_in_the_record(tmp_path: Path) -> None:
    """Whatever ends a run, its record says failed and why, and its frames are kept."""
    fell = threading.Event()

    def stumble(_: Path, counts: Counts) -> None:
        if counts.written > 3 and not fell.is_set():
            fell.set()
            raise LookupError("nobody thought of it")

    settings = camera_settings(frames=0)
    with opened(settings) as camera:
        run = Run(camera, settings, lambda: tmp_path, stumble)
        with pytest.raises(LookupError):
            run.take(threading.Event())
    record = read_record(tmp_path)

    assert (record.state, record.error) == ("failed", "LookupError: nobody thought of it")
    assert record.not_written == 0
    assert record.written == len(find_raw_files(tmp_path)) > 3
    assert camera_threads() == []


def test_a_folder_with_anything_in_it_keeps_its_record(tmp_path: Path) -> None:
    """A run's folder goes with its record alone; where something else lies, both stay."""
    for name in ("empty", "held"):
        (tmp_path / name).mkdir()
        (tmp_path / name / RECORD_NAME).write_text("{}")
    (tmp_path / "held" / "notes.txt").touch()
    for name in ("empty", "held"):
        leave_if_empty(tmp_path / name)

    assert [path.name for path in tmp_path.iterdir()] == ["held"]
    assert (tmp_path / "held" / RECORD_NAME).is_file()


def test_a_sequence_that_was_refused_is_not_stopped(tmp_path: Path) -> None:
    """Where somebody else starts just before us, theirs goes on, and their images stay theirs."""
    settings = camera_settings()
    with opened(settings) as camera:
        api = camera.core.api

        def folder() -> Path:
            api.startContinuousSequenceAcquisition(0)  # after we asked, before we start
            return new_run_folder(tmp_path)

        with pytest.raises(CameraError, match="starting the sequence"):
            Run(camera, settings, folder).take(threading.Event())
        until(lambda: int(api.getRemainingImageCount()) > 3, "their images")
        running = bool(api.isSequenceRunning())
        api.stopSequenceAcquisition()

    assert running
    assert list(tmp_path.iterdir()) == []


def test_a_sequence_that_starts_too_late_is_stopped() -> None:
    """A start that was not answered in time is taken back when the core comes round."""
    settings = camera_settings()
    camera = open_camera(settings)
    api = camera.core.api
    asleep = threading.Event()

    def sleep() -> None:
        asleep.set()
        api.sleep(2000)

    asking = threading.Thread(
        target=camera.calls.ask, args=("sleeping", sleep), kwargs={"extra_s": 9}
    )
    asking.start()
    assert asleep.wait(60)
    camera.calls.timeout_s = 0.5
    with pytest.raises(CameraSilentError, match="starting the sequence"):
        camera.start(10)
    assert not camera.close()
    asking.join()

    until(lambda: not camera_threads(), "the core's return")
    with opened(settings) as again:
        assert not again.busy()
