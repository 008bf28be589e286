"""The observer is started and stopped aside: whoever drives an intake never waits for it."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from segbatch.acquire.folder import intake as intake_module
from segbatch.acquire.folder.fingerprint import fingerprint
from segbatch.acquire.folder.hints import Hints
from segbatch.acquire.folder.mounts import Mount
from tests.acquire.live_writers import content, write
from tests.acquire.watching import PATIENCE_S, Watched


class SlowShare(Watched):
    """A share that is polled; while ``answers`` is not set, the observer's look goes no further."""

    def __init__(self, root: Path, *, rescan_s: float) -> None:
        super().__init__(root, rescan_s=rescan_s)
        self.answers, self.asked = threading.Event(), threading.Event()
        self.folders: list[str] = []
        rules = self.intake._rules
        entries = rules.entries

        def slowly(folder: str, *, without_files: bool) -> Iterator[os.DirEntry[str]]:
            self.asked.set()
            assert self.answers.wait(PATIENCE_S)
            self.folders.append(folder)
            return entries(folder, without_files=without_files)

        rules.entries = slowly

    def until_watched(self) -> None:
        """Go on until the observer looks at the share for the first time."""
        self.until(self.asked.is_set)
        assert self.intake.observer == "none"


@pytest.fixture(autouse=True)
def share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every folder lie on a share."""
    mount = Mount("/mnt/share", "nfs4")
    monkeypatch.setattr(intake_module, "mount_of", lambda _: mount)


def ended(hints: Hints) -> bool:
    """Wait until the threads of an observer are gone; return whether they are."""
    threads = [thread for thread in threading.enumerate() if thread.name == "hints"]
    for thread in threads:
        thread.join(PATIENCE_S)
    return hints.is_settled and not any(thread.is_alive() for thread in threads)


def test_shares_are_polled(tmp_path: Path) -> None:
    """On a share no event can be relied upon: it is looked at, and runs that are over are not."""
    write(tmp_path / "old" / "0.tif")
    with capture_logs() as logs, Watched(tmp_path, rescan_s=3600) as tree:
        assert tree.intake.observer == "polling"
        assert tree.intake.why == "nfs4 at /mnt/share"
        assert [log["observer"] for log in logs if log["event"] == "watching"] == ["polling"]
        tree.until_arrived("old/0.tif")
        tree.intake.release(tmp_path / "old")
        assert list(tree.intake._polled(str(tmp_path / "old"))) == []
        write(tmp_path / "run" / "1.tif")
        tree.until_arrived("old/0.tif", "run/1.tif")
        (tmp_path / "run" / "1.tif").write_bytes(content(5))
        tree.until(lambda: len(tree.arrivals) == 3)


def test_files_arrive_while_the_observer_still_looks(tmp_path: Path) -> None:
    """Until it is at work, rescans find what comes, and the observer is said to be none."""
    with SlowShare(tmp_path, rescan_s=0.1) as tree:
        for number in range(3):
            write(tmp_path / "run" / f"{number}.tif", number)
            tree.until(lambda number=number: len(tree.arrivals) == number + 1)
        assert not tree.answers.is_set()
        assert (tree.intake.observer, tree.intake.why) == ("none", "nfs4 at /mnt/share")
        tree.answers.set()
        tree.until(lambda: tree.intake.observer == "polling")


def test_what_came_while_the_observer_was_started_is_looked_for(tmp_path: Path) -> None:
    """Its first look takes for old what came after the rescan: the tree is looked through again."""
    write(tmp_path / "run" / "0.tif")
    with SlowShare(tmp_path, rescan_s=3600) as tree:
        tree.until_arrived("run/0.tif")
        write(tmp_path / "run" / "1.tif")
        tree.rest()
        assert tree.names == ["run/0.tif"]
        tree.answers.set()
        tree.until_arrived("run/0.tif", "run/1.tif")


def test_an_intake_stops_while_its_observer_still_looks(tmp_path: Path) -> None:
    """Nobody waits for a look at a share; it ends by itself, and wakes nobody any more."""
    (tmp_path / "run").mkdir()
    with SlowShare(tmp_path, rescan_s=0.1) as tree:
        hints = tree.intake._hints
    assert not tree.answers.is_set()
    assert not hints.is_settled
    assert tree.intake.observer == "none"
    tree._woken.clear()
    tree.answers.set()
    assert ended(hints)
    assert not tree._woken.is_set()


def test_a_root_may_vanish_while_its_observer_still_looks(tmp_path: Path) -> None:
    """That is told as ever; the look that was under way is of no consequence."""
    root = tmp_path / "root"
    root.mkdir()
    with SlowShare(root, rescan_s=0.1) as tree:
        before = tree.intake._hints
        shutil.rmtree(root)
        tree.until(lambda: tree.intake.error is not None)
        tree.answers.set()
        assert ended(before)
        root.mkdir()
        tree.until(lambda: tree.intake.observer == "polling")
        assert tree.intake._hints is not before
        write(root / "run" / "0.tif")
        tree.until_arrived("run/0.tif")


def test_a_share_that_was_looked_through_is_not_polled_for_runs_that_are_over(
    tmp_path: Path,
) -> None:
    """The observer begins when the first rescan has told which runs those are."""
    for number in range(5):
        stat = write(tmp_path / "old" / f"Pos{number}" / "0.tif").stat()
    raws = [
        (f"Pos{n}/0.tif", stat.st_size, (tmp_path / f"old/Pos{n}/0.tif").stat().st_mtime_ns)
        for n in range(5)
    ]
    told = {"state": "complete", "raws_fingerprint": fingerprint(raws)}
    (tmp_path / "old" / "segbatch_run.json").write_text(json.dumps(told))
    write(tmp_path / "new" / "0.tif")
    with SlowShare(tmp_path, rescan_s=0.1) as tree:
        tree.answers.set()
        tree.until(lambda: tree.intake.observer == "polling")
        tree.until_arrived("new/0.tif")
        assert set(tree.folders) == {str(tmp_path), str(tmp_path / "new")}
