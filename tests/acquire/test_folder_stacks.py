"""Stacks of Micro-Manager are handed over frame by frame while their writers are at work."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from ndstorage import NDTiffDataset

from tests.acquire.live_writers import (
    SHAPE,
    ImageStackWriter,
    NdtiffWriter,
    SeparateFilesWriter,
    is_numbered,
    numbered,
    write,
)
from tests.acquire.making import frame_of, opened
from tests.acquire.watching import PATIENCE_S, SETTLE_S, Watched, assert_frames_are_their_own

STACK = "run_MMStack_Pos0.ome.tif"


def folder(root: Path, name: str = "run") -> Path:
    """Make a run's folder."""
    path = root / name
    path.mkdir()
    return path


def test_a_frame_of_an_image_stack_is_proven_by_the_next_ones_entry(tmp_path: Path) -> None:
    """While the file is open the newest frame is held back, however long nothing happens."""
    writer = ImageStackWriter(folder(tmp_path) / STACK, frames=6)
    with Watched(tmp_path) as tree:
        for frame in range(4):
            writer.put()
            if frame:
                tree.until(
                    lambda wanted=frame: tree.arrivals[-1:] and tree.arrivals[-1].frames == wanted
                )
        tree.rest()
        assert [arrival.frames for arrival in tree.arrivals] == [1, 2, 3]
        assert not any(arrival.closed for arrival in tree.arrivals)
        assert_frames_are_their_own(tree.arrivals[-1])
        writer.finish()
        tree.until(lambda: tree.arrivals[-1].closed)
        assert tree.arrivals[-1].frames == 4
        assert_frames_are_their_own(tree.arrivals[-1])
        tree.rest()
        assert len(tree.arrivals) == 4
        assert tree.arrivals[-1].size_bytes == writer.path.stat().st_size


def test_a_half_written_frame_of_an_image_stack_is_never_handed_over(tmp_path: Path) -> None:
    """Its map entry and its first rows stand in the file, and it would decode; it is not proven."""
    writer = ImageStackWriter(folder(tmp_path) / STACK, frames=6)
    with Watched(tmp_path) as tree:
        writer.put()
        writer.put_entry()
        writer.put_frame(rows=SHAPE[0] // 2)
        tree.until(lambda: bool(tree.arrivals))
        tree.rest()
        assert [arrival.frames for arrival in tree.arrivals] == [1]
        writer.abandon()


def test_a_copied_image_stack_is_taken_when_it_has_arrived(tmp_path: Path) -> None:
    """The map of a closed file says nothing of how much of it has been copied."""
    source = tmp_path / STACK
    writer = ImageStackWriter(source, frames=6)
    for _ in range(6):
        writer.put()
    writer.finish()
    data = source.read_bytes()
    root = folder(tmp_path, "watched")
    target = folder(root) / STACK
    with Watched(root) as tree, target.open("wb", buffering=0) as file:
        file.write(data[: len(data) // 2])
        tree.rest()
        assert not any(arrival.closed for arrival in tree.arrivals)
        file.write(data[len(data) // 2 :])
        tree.until(lambda: bool(tree.arrivals) and tree.arrivals[-1].closed)
        assert tree.arrivals[-1].frames == 6
        assert_frames_are_their_own(tree.arrivals[-1])


def test_an_ndtiff_frame_is_proven_by_its_index_entry(tmp_path: Path) -> None:
    """Pixels without an entry, and an entry that is half written, are not handed over."""
    writer = NdtiffWriter(tmp_path / "run")
    with Watched(tmp_path) as tree:
        tree.rest(2 * SETTLE_S)
        assert not tree.arrivals
        writer.put()
        tree.until(lambda: bool(tree.arrivals))
        entry = writer.put_frame()
        tree.rest()
        for part in (entry[:20], entry[20:60]):
            writer.put_entry(part)
            tree.rest(2 * SETTLE_S)
        assert [arrival.frames for arrival in tree.arrivals] == [1]
        writer.put_entry(entry[60:])
        tree.until(lambda: tree.arrivals[-1].frames == 2)
        for _ in range(5):
            writer.put()
        tree.until(lambda: tree.arrivals[-1].frames == 7)
        assert not tree.arrivals[-1].closed
        assert_frames_are_their_own(tree.arrivals[-1])
        writer.finish()
        tree.until(lambda: tree.arrivals[-1].closed)
        assert tree.arrivals[-1].frames == 7
        tree.rest()
        assert sum(arrival.closed for arrival in tree.arrivals) == 1


def write_with_ndstorage(root: Path, frames: int, may_end: threading.Event) -> None:
    """Write numbered frames with the ``ndstorage`` package, and finish when that is allowed."""
    dataset = NDTiffDataset(str(root), name="run", summary_metadata={}, writable=True)
    for number in range(frames):
        dataset.put_image({"time": number}, numbered(number, (24, 32)), {"FrameIndex": number})
    may_end.wait(PATIENCE_S)
    end_ndstorage(dataset)


def end_ndstorage(dataset: NDTiffDataset) -> None:
    """Finish a data set, and close what its package leaves open."""
    dataset.current_writer.reader.close()
    dataset.finish()
    dataset.close()


def test_the_ndstorage_writers_buffered_index_holds_frames_back(tmp_path: Path) -> None:
    """Its tif is closed once while empty and its index seen as 0 bytes: neither is the end."""
    may_end = threading.Event()
    thread = threading.Thread(target=write_with_ndstorage, args=(tmp_path, 500, may_end))
    with Watched(tmp_path) as tree:
        thread.start()
        tree.until(lambda: bool(tree.arrivals))
        may_end.set()
        tree.until(lambda: bool(tree.arrivals) and tree.arrivals[-1].closed)
        thread.join()
    partial = [arrival.frames for arrival in tree.arrivals[:-1]]
    assert partial
    assert all(frames is not None and 0 < frames < 500 for frames in partial)
    assert partial == sorted(set(partial))
    assert tree.arrivals[-1].frames == 500
    assert_frames_are_their_own(tree.arrivals[-1])


def test_a_live_ndstorage_set_of_few_frames_waits_for_its_index(tmp_path: Path) -> None:
    """With 0 bytes of index nothing is proven, and nothing is handed over or failed."""
    dataset = NDTiffDataset(str(tmp_path), name="run", summary_metadata={}, writable=True)
    with Watched(tmp_path) as tree:
        for number in range(3):
            dataset.put_image({"time": number}, numbered(number, (24, 32)), {})
        tree.rest(12 * SETTLE_S)
        assert not tree.arrivals
        assert tree.intake.pending == 1
        end_ndstorage(dataset)
        tree.until(lambda: bool(tree.arrivals))
        assert (tree.arrivals[0].frames, tree.arrivals[0].closed) == (3, True)
        assert_frames_are_their_own(tree.arrivals[0])


ACQUIRE = """
import sys
from pathlib import Path
import mm_test_adapters
from pycromanager import Acquisition, Core, multi_d_acquisition_events
from pycromanager import start_headless, stop_headless

root, frames = Path(sys.argv[1]), int(sys.argv[2])
lines = ["Device,Camera,DemoCamera,DCam", "Property,Core,Initialize,1",
         "Property,Core,Camera,Camera", "Property,Camera,PixelType,16bit"]
config = root.parent / "demo.cfg"
config.write_text("\\n".join(lines) + "\\n")
start_headless(mm_test_adapters.device_adapter_path(), config_file=str(config), python_backend=True)
core = Core()
core.set_property("Camera", "OnCameraCCDXSize", "64")
core.set_property("Camera", "OnCameraCCDYSize", "48")
core.set_exposure(2)
with Acquisition(directory=str(root), name="run", show_display=False) as acquisition:
    acquisition.acquire(multi_d_acquisition_events(num_time_points=frames, time_interval_s=0.005))
stop_headless()
"""


def test_an_acquisition_of_pycromanager_is_followed_while_it_runs(tmp_path: Path) -> None:
    """The frames that are promised are those that the finished data set holds."""
    root = folder(tmp_path, "watched")
    command = [sys.executable, "-c", ACQUIRE, str(root), "300"]
    with Watched(root) as tree, subprocess.Popen(command, stdout=subprocess.DEVNULL) as writer:
        tree.until(lambda: bool(tree.arrivals) and tree.arrivals[-1].closed)
        assert writer.wait() == 0
    assert len(tree.arrivals) > 1
    assert [arrival.frames for arrival in tree.arrivals][-1] == 300
    (raw,) = {arrival.raw for arrival in tree.arrivals}
    whole = NDTiffDataset(str(raw.parent))
    with opened(raw) as source:
        for page in range(300):
            frame = source.read(page)
            assert frame.acquisition.position == {"t": page}
            assert np.array_equal(frame.pixels, whole.read_image(time=page))
    whole.close()


def test_separate_files_are_taken_with_their_own_entries(tmp_path: Path) -> None:
    """While the run goes on, each frame has its pixels and what its camera said of it."""
    writer = SeparateFilesWriter(tmp_path / "run")
    with Watched(tmp_path, settle_s=3600) as tree:
        for number in range(40):
            writer.put_image()
            if number % 2:
                tree.step()
            writer.put_entry()
        tree.until(lambda: len(tree.arrivals) == 40)
        for number, arrival in enumerate(sorted(tree.arrivals, key=lambda one: one.raw)):
            frame = frame_of(arrival.raw)
            assert is_numbered(frame.pixels, number)
            assert (frame.bit_depth, frame.acquisition.exposure_ms) == (10, 1 + number)
    writer.finish()


def test_a_separate_file_cut_short_is_not_believed_to_its_entry(tmp_path: Path) -> None:
    """On a full disk Micro-Manager writes the entry although the image was not saved."""
    writer = SeparateFilesWriter(tmp_path / "run")
    with Watched(tmp_path) as tree:
        path = writer.put_image()
        path.write_bytes(path.read_bytes()[:-500])
        writer.put_entry()
        tree.rest()
        assert not tree.arrivals
        assert tree.intake.runs() == [tmp_path / "run"]
        assert tree.intake.pending == 1
    writer.finish()


def test_the_last_frame_of_a_crashed_writer_is_not_stuck(tmp_path: Path) -> None:
    """An image whose entry never comes is taken when both have been still for long."""
    writer = SeparateFilesWriter(tmp_path / "run")
    writer.put_image()
    writer.finish()
    with Watched(tmp_path) as tree:
        tree.until(lambda: len(tree.arrivals) == 1)


@pytest.mark.parametrize("name", ["metadata.txt", "NDTiff.index"])
def test_side_files_of_other_programs_hold_nothing_up(tmp_path: Path, name: str) -> None:
    """A file of that name that is none of Micro-Manager's changes nothing."""
    run = folder(tmp_path)
    (run / name).write_text(json.dumps({"note": 1}) if name.endswith("txt") else "")
    with Watched(tmp_path) as tree:
        write(run / "img_7.tif", 7)
        tree.until_arrived("run/img_7.tif")
