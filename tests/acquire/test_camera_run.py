"""A run with the real core: what the camera gave is on the disk, and what is lost is counted."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import tifffile

from segbatch.acquire.camera import run as run_module
from segbatch.acquire.camera.errors import CameraBusyError, CameraError
from segbatch.acquire.camera.files import OmeTiffSink, open_sink
from segbatch.acquire.camera.record import RECORD_NAME, CameraRecord, new_run_folder
from segbatch.acquire.camera.run import Run
from segbatch.acquire.find import find_raw_files
from segbatch.errors import StorageError
from segbatch.frame import hash_pixels
from tests.acquire.cameras import ZELUX, camera_settings, camera_threads, frames_in, opened, until

if TYPE_CHECKING:
    from segbatch.acquire.camera.camera import Facts
    from segbatch.acquire.camera.files import Sink
    from segbatch.acquire.camera.ledger import Counts


class Noting:
    """The real writer; it also keeps the hash of each frame that it was handed."""

    def __init__(self, kind: str, folder: Path, facts: Facts) -> None:
        self.real: Sink = open_sink(kind, folder, facts)
        self.threads = self.real.threads
        self.hashes: dict[int, str] = {}

    def write(self, index: int, pixels: Any, meta: Any, *, sync: bool) -> None:
        """Note the frame and write it."""
        self.hashes[index] = hash_pixels(pixels)
        self.real.write(index, pixels, meta, sync=sync)

    def close(self) -> None:
        """Close the real writer."""
        self.real.close()


class Gated(OmeTiffSink):
    """The real writer behind a gate: a disk that takes nothing until it is opened."""

    def __init__(self, kind: str, folder: Path, facts: Facts) -> None:
        super().__init__(folder, facts)
        self.gate = threading.Event()

    def write(self, index: int, pixels: Any, meta: Any, *, sync: bool) -> None:
        """Wait for the gate, then write."""
        self.gate.wait()
        super().write(index, pixels, meta, sync=sync)


def read_record(folder: Path) -> CameraRecord:
    """Return what the run says of itself."""
    return msgspec.json.decode((folder / RECORD_NAME).read_bytes(), type=CameraRecord)


@pytest.mark.parametrize("kind", ["ome-tiff", "ndtiff"])
def test_frames_on_disk_are_the_frames_of_the_camera(tmp_path: Path, kind: str) -> None:
    """Every frame is on the disk, pixel for pixel, with its true bit depth, exposure and gain."""
    sinks: list[Noting] = []

    def sink(*what: Any) -> Noting:
        sinks.append(Noting(*what))
        return sinks[-1]

    settings = camera_settings(
        frames=30, exposure_ms=10.0, gain_db=2.0, properties=ZELUX, format=kind
    )
    with opened(settings) as camera:
        record = Run(camera, settings, lambda: new_run_folder(tmp_path), sink=sink).take(
            threading.Event()
        )
    (folder,) = tmp_path.iterdir()
    frames = frames_in(find_raw_files(folder))

    assert (record.state, record.taken, record.written, record.not_written) == (
        "complete", 30, 30, 0,
    )  # fmt: skip
    assert [hash_pixels(frame.pixels) for frame in frames] == [
        sinks[0].hashes[index] for index in range(30)
    ]
    assert {frame.pixels.shape for frame in frames} == {(1080, 1440)}
    assert {frame.bit_depth for frame in frames} == {10}
    said = [frame.acquisition for frame in frames]
    assert {(one.exposure_ms, one.gain_db) for one in said} == {(10.0, 2.0)}
    assert [one.position["t"] for one in said] == list(range(30))
    assert all(one.acquired_at for one in said)
    assert read_record(folder) == record
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_other_readers_see_the_frame_too(tmp_path: Path) -> None:
    """A raw frame is an OME-TIFF whose SignificantBits are the converter's."""
    settings = camera_settings(frames=3)
    with opened(settings) as camera:
        camera.calls.ask("pixel size", lambda: _calibrate(camera.core.api))
        Run(camera, settings, lambda: tmp_path).take(threading.Event())
    with tifffile.TiffFile(tmp_path / "img_000000002.tif") as file:
        ome = tifffile.xml2dict(file.ome_metadata or "")["OME"]["Image"]
        pixels = file.asarray()

    assert pixels.dtype == np.uint16
    assert ome["Pixels"]["SignificantBits"] == 10
    assert ome["Pixels"]["PhysicalSizeX"] == pytest.approx(0.5)
    assert ome["Pixels"]["Plane"]["ExposureTime"] == 5
    assert frames_in([tmp_path / "img_000000002.tif"])[0].acquisition.pixel_size_um == 0.5


def _calibrate(api: Any) -> None:
    api.definePixelSizeConfig("10x")
    api.setPixelSizeUm("10x", 0.5)
    api.setPixelSizeConfig("10x")


def test_runs_follow_each_other(tmp_path: Path) -> None:
    """Several runs in one process, with one core after the other, each have a folder."""
    for _ in range(3):
        settings = camera_settings(frames=5)
        with opened(settings) as camera:
            for _ in range(2):
                Run(camera, settings, lambda: new_run_folder(tmp_path)).take(threading.Event())

    folders = sorted(tmp_path.iterdir())
    assert [len(find_raw_files(folder)) for folder in folders] == [5] * 6
    assert camera_threads() == []


def test_an_interval_is_kept(tmp_path: Path) -> None:
    """Frames by the clock are an interval apart, and none is counted as dropped."""
    settings = camera_settings(frames=6, interval_ms=80.0)
    with opened(settings) as camera:
        record = Run(camera, settings, lambda: tmp_path).take(threading.Event())
    stamps = []
    for raw in find_raw_files(tmp_path):
        with tifffile.TiffFile(raw) as file:
            stamps.append(file.pages[0].tags[51123].value["ElapsedTime-ms"])

    assert record.written == 6
    assert stamps[-1] - stamps[0] == pytest.approx(5 * 80.0, abs=60.0)


def test_a_slow_disk_fills_the_ring_and_the_loss_is_counted(tmp_path: Path) -> None:
    """While the disk takes nothing the ring fills; what was lost is counted, the rest is saved."""
    seen: list[Counts] = []
    sinks: list[Gated] = []

    def sink(*what: Any) -> Gated:
        sinks.append(Gated(*what))
        return sinks[-1]

    settings = camera_settings(frames=250, exposure_ms=2.0)
    with opened(settings, ring_mib=16) as camera:
        run = Run(camera, settings, lambda: tmp_path, lambda _, counts: seen.append(counts), sink)
        taking = threading.Thread(target=run.take, args=(threading.Event(),))
        taking.start()
        until(lambda: any(c.ring_used == c.ring_capacity > 0 for c in seen), "a full ring")
        sinks[0].gate.set()
        taking.join(60)
    record = read_record(tmp_path)

    assert (record.state, record.taken, record.written) == ("complete", 250, 250)
    assert len(find_raw_files(tmp_path)) == 250
    assert record.ring_most_used == record.ring_capacity
    assert record.ring_overflows >= 1
    assert record.dropped >= 1
    assert record.dropped == sum(gap.dropped for gap in record.gaps)
    assert "ring overflow" in {gap.why for gap in record.gaps}
    assert seen[-1].dropped == record.dropped


def test_a_disk_that_hangs_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk takes nothing for longer than the core may, the run fails and counts."""
    monkeypatch.setattr(run_module, "FINISH_S", 1.0)
    sinks: list[Gated] = []

    def sink(*what: Any) -> Gated:
        sinks.append(Gated(*what))
        return sinks[-1]

    settings = camera_settings(frames=0, exposure_ms=2.0, timeout_s=1.0)
    with opened(settings, ring_mib=8) as camera:
        run = Run(camera, settings, lambda: tmp_path, None, sink)
        with pytest.raises(StorageError, match="takes no more frames"):
            run.take(threading.Event())
    assert run.record is not None
    sinks[0].gate.set()
    until(lambda: not camera_threads(), "writers at rest")

    assert run.record.state == "failed"
    assert run.record.written == 0
    assert run.record.not_written == run.record.taken > 0


def test_a_folder_that_goes_away_ends_the_run(tmp_path: Path) -> None:
    """When the run's folder is removed the run fails, and counts what was not written."""
    folder = tmp_path / "run"
    seen: list[Counts] = []

    def sink(kind: str, place: Path, facts: Facts) -> Sink:
        return open_sink(kind, place, facts)

    def folder_made() -> Path:
        folder.mkdir()
        return folder

    settings = camera_settings(frames=0)
    with opened(settings) as camera:
        run = Run(camera, settings, folder_made, lambda _, counts: seen.append(counts), sink)

        def remove() -> None:
            until(lambda: bool(seen) and seen[-1].written > 3, "frames written")
            while folder.exists():
                shutil.rmtree(folder, ignore_errors=True)

        removing = threading.Thread(target=remove)
        removing.start()
        with pytest.raises(StorageError, match="cannot write"):
            run.take(threading.Event())
        removing.join()

    assert run.record is not None
    assert run.record.state == "failed"
    assert run.record.not_written == run.record.taken - run.record.written > 0
    assert camera_threads() == []


def test_stopping_keeps_what_was_taken(tmp_path: Path) -> None:
    """A run without end stops when it is told to, with every frame that was taken."""
    stop = threading.Event()
    settings = camera_settings(frames=0)
    with opened(settings) as camera:
        run = Run(
            camera, settings, lambda: tmp_path, lambda _, c: stop.set() if c.written > 9 else None
        )
        record = run.take(stop)

    assert record.state == "stopped"
    assert record.not_written == 0
    assert len(find_raw_files(tmp_path)) == record.taken > 9


@pytest.mark.parametrize("how", ["stops", "is gone"])
def test_a_camera_that_stops_or_goes_ends_the_run(tmp_path: Path, how: str) -> None:
    """A camera that stops by itself, or is taken away, ends the run; its frames are kept."""
    seen: list[Counts] = []
    settings = camera_settings(frames=0)
    with opened(settings) as camera:
        api = camera.core.api
        run = Run(camera, settings, lambda: tmp_path, lambda _, counts: seen.append(counts))
        failures: list[BaseException] = []

        def take() -> None:
            try:
                run.take(threading.Event())
            except CameraError as error:
                failures.append(error)

        taking = threading.Thread(target=take)
        taking.start()
        until(lambda: bool(seen) and seen[-1].written > 3, "frames written")

        def end() -> None:
            api.stopSequenceAcquisition()
            if how == "is gone":
                api.unloadDevice(camera.label)

        camera.calls.ask("ending", end)
        taking.join(60)

    assert run.record is not None
    assert len(failures) == 1
    assert run.record.state == "failed"
    assert run.record.error == str(failures[0])
    assert len(find_raw_files(tmp_path)) == run.record.written > 3
    assert read_record(tmp_path).state == "failed"


def test_somebody_elses_acquisition_is_left_alone(tmp_path: Path) -> None:
    """A camera that is already acquiring is refused, goes on, and nothing is written."""
    settings = camera_settings()
    with opened(settings) as camera:
        camera.core.api.startContinuousSequenceAcquisition(0)
        with pytest.raises(CameraBusyError):
            Run(camera, settings, lambda: new_run_folder(tmp_path)).take(threading.Event())
        running = camera.core.api.isSequenceRunning()
        camera.core.api.stopSequenceAcquisition()

    assert running
    assert list(tmp_path.iterdir()) == []
