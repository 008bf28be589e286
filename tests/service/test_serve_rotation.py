"""The service and people who take runs away, or leave no room, while it is at work."""

from __future__ import annotations

import platform
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile

from segbatch.acquire.folder.intake import Arrival
from segbatch.service.monitor.monitor import Monitor
from segbatch.service.process import Process
from segbatch.service.runner.beat import Beat
from segbatch.service.runner.tree import Tree
from segbatch.service.under_way import UnderWay
from segbatch.settings import Settings
from segbatch.settings.sections import ServeSettings, WatchSettings
from tests.acquire.live_writers import ImageStackWriter
from tests.service.serving import PATIENCE_S, Service, run_file


def write_frames(folder: Path, count: int, first: int = 0) -> None:
    """Write single frames that are all different."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        pixels = np.full((64, 64), 100, np.uint16)
        pixels[0, 0] = number
        tifffile.imwrite(folder / f"frame_{number:03d}.tif", pixels)


def test_frames_that_come_after_a_run_was_over_are_counted_too(tmp_path: Path) -> None:
    """The run files of a run that went on after it was over are those of all its frames."""
    root = tmp_path / "in"
    write_frames(root / "run", 3)
    with Service([root], tmp_path / "state") as service:
        service.until(lambda: run_file(root / "run"))
        write_frames(root / "run", 2, first=3)
        service.until(lambda: len(service.said("run is over")) == 2)
        report = run_file(root / "run")
        service.end()
    with Service([root], tmp_path / "state") as service:
        service.ready()
        write_frames(root / "next", 1)
        service.until(lambda: service.said("run is over"))
        again = [line["folder"] for line in service.said("run is over")]

    assert report is not None
    assert report["counts"]["frames"] == 5
    assert len((root / "run" / "segbatch_frames.csv").read_text().splitlines()) == 1 + 5
    assert again == [str(root / "next")]


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_run_that_is_taken_away_is_forgotten(tmp_path: Path, mirrored: bool) -> None:
    """A run that goes while it grows leaves no open run, no open file and no complaint."""
    root, config = tmp_path / "in", tmp_path / "segbatch.toml"
    out = f'out = "{tmp_path / "out"}"\n' if mirrored else ""
    config.write_text(f'[[watch]]\npath = "{root}"\n{out}')
    root.mkdir()
    settings = {"serve.run_quiet_s": 60}
    with Service([], tmp_path / "state", config=config, settings=settings) as service:
        service.ready()
        write_frames(root / "run", 5)
        stack = ImageStackWriter(root / "run" / "run_MMStack_Pos0.ome.tif", 10)
        for _ in range(5):
            stack.put()
        service.until(lambda: sum(service.status()["frames"].values()) >= 9)
        shutil.rmtree(root / "run")
        told = service.until(
            lambda: not (found := service.status()["folders"][0])["runs_open"] and found
        )
        held = [
            path
            for path in Path(f"/proc/{service.process.pid}/fd").iterdir()
            if (link := str(path.readlink())).endswith("(deleted)") and str(root) in link
        ]
    stack.finish()

    assert told["error"] is None
    assert held == []
    assert not (root / "run").exists()


def test_a_trouble_ends_with_its_run(tmp_path: Path) -> None:
    """Of a run that cannot be processed nothing is told any more once it was taken away."""
    root, out, config = tmp_path / "in", tmp_path / "out", tmp_path / "segbatch.toml"
    config.write_text(f'[[watch]]\npath = "{root}"\nout = "{out}"\n')
    write_frames(root / "run", 2)
    out.mkdir()
    (out / "run").touch()  # where the folder of the run's results should go
    with Service([], tmp_path / "state", config=config) as service:
        service.until(lambda: service.status()["folders"][0]["error"])
        shutil.rmtree(root / "run")
        service.until(lambda: service.status()["folders"][0]["error"] is None)
        write_frames(root / "next", 2)
        service.until(lambda: run_file(out / "next"))


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    """Open what a service processes its frames with."""
    under_way = UnderWay(tmp_path / "state")
    process = Process(
        Settings(), threading.Event(), Beat(Monitor(), lambda: None), under_way=under_way
    )
    yield process
    process.close()
    under_way.close()


@pytest.mark.parametrize("out", ["in", "out"])
def test_a_raw_file_that_went_brings_back_no_folder(
    tmp_path: Path, process: Process, out: str
) -> None:
    """Of a file that was taken away before its turn nothing is begun, not even a folder."""
    raw = tmp_path / "in" / "run" / "frame_000.tif"
    live = process.live(raw.parent, tmp_path / out / "run")
    live.add([Arrival(raw, raw.parent, None, closed=True, size_bytes=1, mtime_ns=1)])

    assert live.backlog == 0
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_run_that_is_over_waits_for_room_at_rest(tmp_path: Path, process: Process) -> None:
    """Without room for its results, a run that is over is not asked for again and again."""
    root = tmp_path / "in"
    write_frames(root / "run", 2)
    serve = ServeSettings(run_quiet_s=0.05, settle_s=0.05, min_free_gib=900_000)
    tree = Tree(WatchSettings(path=str(root)), serve, process, lambda: None)
    end = time.monotonic() + PATIENCE_S
    try:
        while not tree.backlog and time.monotonic() < end:
            tree.look()
        time.sleep(2 * serve.run_quiet_s)
        tree.look()
        began_something = tree.settle()
        due_in_s = tree.due_in_s
    finally:
        tree.close()

    assert not began_something
    assert due_in_s > 0


def heaps(pid: int) -> int:
    """Count the places in which glibc keeps memory for other threads than the first.

    Each is a mapping of 64 MiB at a multiple of its size, of which the front is in use.
    """
    size, count, used_from, used_to = 64 << 20, 0, 0, 0
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split()
        start, end = (int(text, 16) for text in fields[0].split("-"))
        if len(fields) == 5 and fields[1] == "rw-p" and start % size == 0:
            used_from, used_to = start, end
        elif len(fields) == 5 and fields[1] == "---p" and start == used_to:
            count += end - used_from == size
    return count


@pytest.mark.skipif("glibc" not in platform.libc_ver()[0], reason="of glibc alone")
def test_threads_share_what_was_freed(tmp_path: Path) -> None:
    """However many threads worked on frames, memory is kept in two places."""
    root = tmp_path / "in"
    with Service([root], tmp_path / "state") as service:
        for number in range(3):
            write_frames(root / f"run{number}", 20)
            service.until(lambda number=number: run_file(root / f"run{number}"))
        found = heaps(service.process.pid)

    assert found <= 1
