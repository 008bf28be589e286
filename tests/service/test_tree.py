"""One watched tree, driven as the service drives it: faults, floods and races."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from segbatch.acquire.folder.fingerprint import fingerprint_of_results
from segbatch.acquire.source import Source
from segbatch.errors import StorageError, UnreadableFrameError
from segbatch.service import live as live_module
from segbatch.service.batch import Batch
from segbatch.service.live import LiveRun
from segbatch.service.monitor.monitor import Monitor
from segbatch.service.process import Process
from segbatch.service.runner import tree as tree_module
from segbatch.service.runner.beat import Beat
from segbatch.service.runner.tree import Tree, Trouble
from segbatch.service.under_way import UnderWay
from segbatch.settings import Settings
from segbatch.settings.sections import ServeSettings, WatchSettings
from tests.acquire.live_writers import ImageStackWriter
from tests.service import runs
from tests.service.serving import PATIENCE_S, run_file
from tests.service.test_changes import process_here, write_raw


class Driven:
    """A tree and the loop around it."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    def turn(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Take one turn of the service's loop."""
        self.tree.look()
        self.tree.work(lambda: False, meanwhile)
        self.tree.settle()

    def until(self, holds: Callable[[], Any]) -> None:
        """Take turns until something holds."""
        end = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < end, self.tree.status()
            self.turn()
            time.sleep(0.01)

    def until_look(self, holds: Callable[[], Any]) -> None:
        """Look at what arrives until something holds."""
        end = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < end, self.tree.status()
            self.tree.look()

    def live(self, run: Path) -> LiveRun:
        """Return a run that is open."""
        return self.tree._lives[run]


@contextmanager
def driven(root: Path, state: Path, **serve: Any) -> Iterator[Driven]:
    """Open a tree, and close it in any case."""
    root.mkdir(exist_ok=True)
    serve = {"run_quiet_s": 0.5, "settle_s": 0.05, "rescan_s": 0.2, "min_free_gib": 0.0, **serve}
    under_way = UnderWay(state)
    beat = Beat(Monitor(), lambda: None)
    process = Process(
        Settings(threads=2), threading.Event(), beat, keep_other=True, under_way=under_way
    )
    tree = Tree(WatchSettings(path=str(root)), ServeSettings(**serve), process, lambda: None)
    try:
        yield Driven(tree)
    finally:
        tree.close()
        process.close()
        under_way.close()


def test_however_many_stacks_grow_few_are_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plate of many wells, a growing stack for each, costs open files for a few of them only."""
    monkeypatch.setattr(live_module, "MOST_OPEN_STACKS", 2)
    run = tmp_path / "in" / "run"
    run.mkdir(parents=True)
    writers = [ImageStackWriter(run / f"run_MMStack_Pos{n}.ome.tif", 6) for n in range(6)]
    most = 0
    with driven(run.parent, tmp_path / "state", run_quiet_s=60) as loop:
        for _ in range(5):
            for writer in writers:
                writer.put()
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                loop.turn()
                most = max([most, *(len(live._recorders) for live in loop.tree._lives.values())])
        for writer in writers:
            writer.put()
            writer.finish()
        loop.until(lambda: len(runs.outcomes(run)) == 36 and not runs.hidden_files(run))
    assert 0 < most <= 2


def test_files_that_arrive_faster_than_they_are_done_wait_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more files than a bound are known to wait; all of them are done in the end."""
    monkeypatch.setattr(tree_module, "MOST_WAITING", 3)
    run = tmp_path / "in" / "run"
    run.mkdir(parents=True)
    for number in range(10):
        write_raw(run / f"a{number}.tif", [number])
    with driven(run.parent, tmp_path / "state") as loop:
        end = time.monotonic() + 1
        while time.monotonic() < end:
            loop.tree.look()
        assert loop.tree.backlog == 3
        loop.until(lambda: run_file(run))
    assert len(runs.outcomes(run)) == 10


def test_an_unforeseen_error_costs_its_run_a_pause_and_no_other_run_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose work fails in a way that nobody foresaw is told of, and the others go on."""
    root = tmp_path / "in"
    for name in ("good", "strange"):
        (root / name).mkdir(parents=True)
        write_raw(root / name / "a.tif", [1])
    work = LiveRun.work

    def failing(run: LiveRun, *told: Any) -> list[Path]:
        if run.root.name == "strange":
            raise ValueError("nobody foresaw this")
        return work(run, *told)

    monkeypatch.setattr(LiveRun, "work", failing)
    with driven(root, tmp_path / "state") as loop:
        loop.until(lambda: run_file(root / "good"))
        loop.until(lambda: loop.tree.status().error)
        assert "unexpected ValueError: nobody foresaw this" in (loop.tree.status().error or "")
        monkeypatch.setattr(LiveRun, "work", work)
        loop.until(lambda: run_file(root / "strange"))


def test_a_run_in_trouble_is_tried_again_as_soon_as_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that failed on a full disk does not wait out its pause once the disk has room."""
    run = tmp_path / "in" / "run"
    run.mkdir(parents=True)
    free = [2**30]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(tree_module, "SPACE_EVERY_S", 0.0)
    monkeypatch.setattr(tree_module.shutil, "disk_usage", lambda _: usage._replace(free=free[0]))
    with driven(run.parent, tmp_path / "state", min_free_gib=0.5) as loop:
        loop.turn()
        free[0] = 0
        loop.turn()
        trouble = Trouble(pause_s=3600.0)
        trouble.grow("no room")
        loop.tree._troubles[run] = trouble
        write_raw(run / "a.tif", [1])
        loop.turn()
        free[0] = 2**30
        loop.until(lambda: run_file(run))
    assert len(runs.outcomes(run)) == 1


def test_a_stack_that_cannot_be_read_for_a_while_is_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that errs while a stack grows costs none of its frames an outcome."""
    run = tmp_path / "in" / "run"
    run.mkdir(parents=True)
    opening, errs = LiveRun.open_raw, [0]

    def erring(live: LiveRun, raw: Path) -> Source:
        if errs[0]:
            errs[0] -= 1
            cause = OSError(errno.EIO, "Input/output error")
            raise UnreadableFrameError("it cannot be read", "a disk that answers") from cause
        return opening(live, raw)

    monkeypatch.setattr(LiveRun, "open_raw", erring)
    writer = ImageStackWriter(run / "run_MMStack_Pos0.ome.tif", 6)
    with driven(run.parent, tmp_path / "state", run_quiet_s=60) as loop:
        for _ in range(4):
            writer.put()
        loop.until(lambda: loop.tree._lives and loop.live(run)._recorders)
        errs[0] = 2
        writer.put()
        loop.until(lambda: not errs[0])
        writer.put()
        writer.finish()
        loop.until(lambda: len(runs.outcomes(run)) == 6 and not runs.hidden_files(run))
    assert {outcome.outcome for outcome in runs.outcomes(run).values()} <= {"segmented", "rejected"}


def test_frames_that_are_taken_away_before_they_were_read_have_no_outcome(tmp_path: Path) -> None:
    """Somebody who removes frames that wait gets neither failures nor files for them."""
    run = tmp_path / "in" / "run"
    run.mkdir(parents=True)
    raws = [write_raw(run / f"a{number}.tif", [number]) for number in range(8)]
    with driven(run.parent, tmp_path / "state") as loop:
        loop.until_look(lambda: loop.tree.backlog == 8)
        for raw in raws[3:]:
            raw.unlink()
        loop.until(lambda: run_file(run))
    assert sorted(name for name, _ in runs.outcomes(run)) == ["a0.tif", "a1.tif", "a2.tif"]
    assert {outcome.outcome for outcome in runs.outcomes(run).values()} <= {"segmented", "rejected"}
    assert not [path.name for path in run.iterdir() if path.name.startswith(("a3", "a7"))]


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux's")
def test_threads_that_work_on_frames_give_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the service a camera's threads go before those that segment."""
    run = tmp_path / "in" / "run"
    run.mkdir(parents=True)
    write_raw(run / "a.tif", [1])
    found: list[int] = []

    def noting(*_: Any, **__: Any) -> None:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    monkeypatch.setattr(Beat, "recorded", noting)
    with driven(run.parent, tmp_path / "state") as loop:
        loop.until(lambda: found)
    mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert found[0] == min(mine + 10, 19)


def test_no_thread_works_on_when_the_loop_around_it_failed(tmp_path: Path) -> None:
    """An error in what is done meanwhile ends the work before anything is closed."""
    run = tmp_path / "in" / "run"
    run.mkdir(parents=True)
    for number in range(20):
        write_raw(run / f"a{number}.tif", [number])

    def failing() -> None:
        raise ValueError("meanwhile")

    with driven(run.parent, tmp_path / "state") as loop:
        loop.until_look(lambda: loop.tree.backlog == 20)
        loop.tree.work(lambda: False, failing)
        assert not loop.tree._lives
        assert [t.name for t in threading.enumerate() if t.name.startswith("journey-")] == []
        assert "unexpected ValueError: meanwhile" in (loop.tree.status().error or "")


def test_a_fault_in_what_arrives_waits_for_those_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that gets into trouble while its frames are worked on is closed when they are done."""
    run = tmp_path / "in" / "run"
    run.mkdir(parents=True)
    for number in range(6):
        write_raw(run / f"a{number}.tif", [number])
    at_work: list[bool] = []

    def failing(live: LiveRun, _: Any) -> None:
        raise StorageError("no room", "room", "wait")

    def closing(live: LiveRun) -> None:
        names = [thread.name for thread in threading.enumerate()]
        at_work.append(any(name.startswith("journey-") for name in names))
        close(live)

    close = LiveRun.close
    with driven(run.parent, tmp_path / "state") as loop:
        loop.until_look(lambda: loop.tree.backlog == 6)
        monkeypatch.setattr(LiveRun, "close", closing)

        def meanwhile() -> None:
            if not loop.tree._postponed:
                monkeypatch.setattr(LiveRun, "add", failing)
                write_raw(run / "b.tif", [9])
                loop.until_look(lambda: loop.tree._postponed)
                monkeypatch.undo()
                monkeypatch.setattr(LiveRun, "close", closing)

        loop.tree.work(lambda: False, meanwhile)
        assert at_work == [False]
        assert "no room" in (loop.tree.status().error or "")


def test_a_run_that_changes_while_it_ends_is_not_taken_for_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run files answer for the raw files as they were when the run began to end."""
    raws = [write_raw(tmp_path / f"a{number}.tif", [number]) for number in range(2)]
    execute = Batch.execute

    def growing(batch: Batch) -> None:
        execute(batch)
        write_raw(raws[0], [0, 5])

    monkeypatch.setattr(Batch, "execute", growing)
    process_here(tmp_path)
    during = fingerprint_of_results(tmp_path)
    monkeypatch.setattr(Batch, "execute", execute)
    process_here(tmp_path)
    after = fingerprint_of_results(tmp_path)

    assert during != after
    assert len(runs.outcomes(tmp_path)) == 3
