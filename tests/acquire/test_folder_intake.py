"""The life of a watched tree: runs that come, end and change, folders that vanish, events lost."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from segbatch.acquire.folder import hints as hints_module
from segbatch.acquire.folder.fingerprint import fingerprint
from tests.acquire.live_writers import content, is_numbered, numbered, write
from tests.acquire.making import frame_of
from tests.acquire.watching import RESCAN_S, SETTLE_S, Watched

FRAMES = 10_000


def fill(root: Path, count: int, folders: int) -> None:
    """Write tiny frames into nested folders; each says its number in its pixels."""
    import tifffile

    for number in range(count):
        folder = root / f"day{number % folders % 7}" / f"well{number % folders}"
        if number < folders:
            folder.mkdir(parents=True)
        tifffile.imwrite(folder / f"{number}.tif", numbered(number, (2, 2)), metadata=None)


def test_ten_thousand_files_moved_in_at_once_all_arrive(tmp_path: Path) -> None:
    """New nested folders tell of few of their files by events; every one of them arrives, once."""
    source, root = tmp_path / "source", tmp_path / "watched"
    fill(source / "run", FRAMES, 100)
    root.mkdir()
    with Watched(root) as tree:
        (source / "run").rename(root / "run")
        tree.until(lambda: len(tree.arrivals) >= FRAMES)
        tree.rest()
        numbers = sorted(int(arrival.raw.stem) for arrival in tree.arrivals)
        assert numbers == list(range(FRAMES))
        for arrival in tree.arrivals[::500]:
            assert is_numbered(frame_of(arrival.raw).pixels, int(arrival.raw.stem))
        assert tree.intake.pending == 0


OVERFLOW = """
import logging, os, signal, sys, threading, time
from pathlib import Path
from segbatch.acquire.folder.intake import Intake

logging.getLogger("watchdog").addHandler(logging.FileHandler(sys.argv[2]))
woken = threading.Event()
root, rescan_s = Path(sys.argv[1]), float(sys.argv[3])
intake = Intake(root, run_depth=1, settle_s=0.2, rescan_s=rescan_s, wake=woken.set)
intake.start()
while intake.observer == "none":
    intake.take(1)
print("watching", flush=True)
names, end = set(), time.monotonic() + 120
while len(names) < int(sys.argv[4]) and time.monotonic() < end:
    names |= {arrival.raw.name for arrival in intake.take(1000)}
    if due_s := intake.due_in_s:
        woken.wait(min(due_s, 0.1))
        woken.clear()
intake.stop()
print(len(names), flush=True)
"""


def test_an_overflow_of_the_kernels_queue_loses_no_file(tmp_path: Path) -> None:
    """A process that is held up misses events; what they would have told of is found anyway."""
    limit = Path("/proc/sys/fs/inotify/max_queued_events")
    if not limit.exists():
        pytest.skip("this system has no inotify")
    count = int(limit.read_text()) // 2 + 1000  # two events a file: created, closed
    if count > 20_000:
        pytest.skip(f"the queue holds {limit.read_text().strip()} events here")
    root, told = tmp_path / "watched", tmp_path / "watchdog.log"
    (root / "run").mkdir(parents=True)
    data = content()
    command = [sys.executable, "-c", OVERFLOW, str(root), str(told), "3600", str(count)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        while "watching" not in (line := child.stdout.readline()):
            assert line
        child.send_signal(signal.SIGSTOP)
        for number in range(count):
            (root / "run" / f"{number}.tif").write_bytes(data)
        child.send_signal(signal.SIGCONT)
        assert child.stdout.readlines()[-1].strip() == str(count)
    assert "overflowed" in told.read_text()


def test_a_rescan_finds_what_no_event_told_of(tmp_path: Path) -> None:
    """With nobody listening, files still arrive: late, but all."""
    with Watched(tmp_path) as tree:
        tree.intake._hints.stop()
        tree.intake._watch = lambda: None
        write(tmp_path / "run" / "a.tif")
        tree.until_arrived("run/a.tif")


def test_watching_resumes_when_its_thread_died(tmp_path: Path) -> None:
    """A rescan notices that nobody listens any more, and sees to it."""
    (tmp_path / "run").mkdir()
    with Watched(tmp_path) as tree:
        tree.rest(SETTLE_S)
        before = tree.intake._hints
        before._observer.stop()
        tree.until(lambda: tree.intake._hints is not before and tree.is_settled)
        assert tree.intake.observer == "inotify"
        assert tree.intake._hints.is_alive


def test_runs_are_folders_of_a_depth(tmp_path: Path) -> None:
    """All below a run's folder is its own; files higher up belong to the folder they lie in."""
    for name in ("top.tif", "a/1.tif", "a/b/2.tif", "a/b/c/3.tif"):
        write(tmp_path / name)
    wanted = {
        0: {"top.tif": ".", "a/1.tif": ".", "a/b/2.tif": ".", "a/b/c/3.tif": "."},
        1: {"top.tif": ".", "a/1.tif": "a", "a/b/2.tif": "a", "a/b/c/3.tif": "a"},
        2: {"top.tif": ".", "a/1.tif": "a", "a/b/2.tif": "a/b", "a/b/c/3.tif": "a/b"},
    }
    for depth, runs in wanted.items():
        with Watched(tmp_path, run_depth=depth) as tree:
            tree.until_arrived(*runs)
            found = {
                name: arrival.run.relative_to(tmp_path).as_posix()
                for name, arrival in zip(tree.names, tree.arrivals, strict=True)
            }
            assert found == runs
            for run in tree.intake.runs():
                held = [n for n, r in runs.items() if r == run.relative_to(tmp_path).as_posix()]
                assert tree.intake.raws(run) == [tmp_path / name for name in sorted(held)]


def test_a_released_run_is_not_reported_until_it_changes(tmp_path: Path) -> None:
    """Then all of it is reported anew: added files, changed ones and the others."""
    run = tmp_path / "run"
    for number in range(3):
        write(run / f"{number}.tif", number)
    with Watched(tmp_path) as tree:
        tree.until(lambda: len(tree.arrivals) == 3)
        raws = tree.intake.raws(run)
        stats = [(raw.name, raw.stat().st_size, raw.stat().st_mtime_ns) for raw in raws]
        assert tree.intake.fingerprint(run) == tree.intake.release(run) == fingerprint(stats)
        assert tree.intake.runs() == []
        (run / "0_qc.json").write_text("{}")
        write(run / "0_mask.tif", software="segbatch 1.0")
        tree.rest(3 * RESCAN_S)
        assert len(tree.arrivals) == 3
        write(run / "3.tif", 3)
        tree.until(lambda: len(tree.arrivals) == 7)
        assert tree.intake.runs() == [run]
        tree.intake.raws(run)
        tree.intake.release(run)
        write(run / "1.tif", 11)
        tree.until(lambda: len(tree.arrivals) == 11)
        assert is_numbered(frame_of(tree.arrivals[-3].raw).pixels, 11)


def test_a_file_that_comes_while_its_run_is_ended_is_not_lost(tmp_path: Path) -> None:
    """Between listing the run's files and releasing it, others may have come."""
    run = tmp_path / "run"
    write(run / "0.tif")
    with Watched(tmp_path) as tree:
        tree.until_arrived("run/0.tif")
        assert tree.intake.raws(run) == [run / "0.tif"]
        write(run / "1.tif")
        tree.intake.release(run)
        tree.until(lambda: "run/1.tif" in tree.names)


def test_finished_runs_of_the_past_cost_nothing_at_a_start(tmp_path: Path) -> None:
    """A run file that answers for the very raw files there are says that nothing is to be done."""
    for name in ("done", "changed", "stopped"):
        write(tmp_path / name / "0.tif")
        stat = (tmp_path / name / "0.tif").stat()
        told = {
            "schema": "segbatch.run/1",
            "state": "stopped" if name == "stopped" else "complete",
            "raws_fingerprint": fingerprint([("0.tif", stat.st_size, stat.st_mtime_ns)]),
        }
        (tmp_path / name / "segbatch_run.json").write_text(json.dumps(told))
    write(tmp_path / "changed" / "1.tif")
    with Watched(tmp_path) as tree:
        tree.until(lambda: len(tree.arrivals) == 3)
        tree.rest(2 * RESCAN_S)
        assert sorted(tree.names) == ["changed/0.tif", "changed/1.tif", "stopped/0.tif"]


def test_run_files_are_found_where_results_go(tmp_path: Path) -> None:
    """With results elsewhere, what was done is read there."""
    root, out = tmp_path / "watched", tmp_path / "out"
    stat = write(root / "run" / "0.tif").stat()
    (out / "run").mkdir(parents=True)
    answered = fingerprint([("0.tif", stat.st_size, stat.st_mtime_ns)])
    told = {"state": "complete", "raws_fingerprint": answered}
    (out / "run" / "segbatch_run.json").write_text(json.dumps(told))
    with Watched(root, out=out) as tree:
        tree.rest(3 * RESCAN_S)
        assert not tree.arrivals


def test_a_changed_file_of_an_open_run_is_reported_again_when_it_is_quiet(tmp_path: Path) -> None:
    """What was written over is another frame."""
    path = write(tmp_path / "run" / "0.tif", 1)
    with Watched(tmp_path) as tree:
        tree.until_arrived("run/0.tif")
        path.write_bytes(content(2))
        tree.until(lambda: len(tree.arrivals) == 2)
        assert is_numbered(frame_of(path).pixels, 2)
        tree.intake.again(path)
        tree.until(lambda: len(tree.arrivals) == 3)
        tree.rest()
        assert len(tree.arrivals) == 3


def test_a_removed_run_is_forgotten(tmp_path: Path) -> None:
    """Nothing is kept of files that are gone."""
    write(tmp_path / "run" / "0.tif")
    (tmp_path / "run" / "broken.tif").write_bytes(b"II")
    with Watched(tmp_path) as tree:
        tree.until_arrived("run/0.tif")
        shutil.rmtree(tmp_path / "run")
        tree.until(lambda: tree.intake.runs() == [])
        assert tree.intake.pending == 0
        assert tree.intake.quiet_s(tmp_path / "run") == float("inf")


def test_a_root_may_vanish_and_come_back(tmp_path: Path) -> None:
    """That is an error that is told, not raised, and ends; other roots go on meanwhile."""
    root, other = tmp_path / "root", tmp_path / "other"
    other.mkdir()
    with Watched(root) as tree, Watched(other) as second:
        assert tree.intake.error is not None
        assert tree.intake.observer == "none"
        root.mkdir()
        tree.until(lambda: tree.intake.error is None)
        write(root / "run" / "0.tif")
        tree.until_arrived("run/0.tif")
        root.rename(tmp_path / "away")
        tree.until(lambda: tree.intake.error is not None)
        assert "No such file" in str(tree.intake.error)
        write(other / "run" / "1.tif")
        second.until_arrived("run/1.tif")
        write(tmp_path / "away" / "run" / "2.tif")
        (tmp_path / "away").rename(root)
        tree.until_arrived("run/0.tif", "run/2.tif")
        assert tree.intake.error is None
        tree.until(lambda: tree.intake.observer == "inotify")
        write(root / "run" / "3.tif")
        tree.until_arrived("run/0.tif", "run/2.tif", "run/3.tif")


LOCKED = """
import os, sys, time
from pathlib import Path
from segbatch.acquire.folder.intake import Intake

os.geteuid() or os.setuid(65534)  # no mode keeps root out
intake = Intake(Path("."), run_depth=1, settle_s=0.1, rescan_s=0.1, wake=lambda: None)
intake.start()
names, end = [], time.monotonic() + 2
while time.monotonic() < end:
    names += [arrival.raw.name for arrival in intake.take(10)]
    time.sleep(0.02)
intake.stop()
print(intake.unreadable)
print(names)
"""


def test_a_root_that_is_a_link_tells_of_its_files(tmp_path: Path) -> None:
    """What it leads to is watched, and everything bears the name that was given."""
    (tmp_path / "disk").mkdir()
    root = tmp_path / "data"
    root.symlink_to(tmp_path / "disk")
    with Watched(root, rescan_s=3600) as tree:
        tree.until(lambda: tree.intake.due_in_s > 60)
        write(root / "run" / "0.tif")
        tree.until_arrived("run/0.tif")
        assert tree.arrivals[0].run == root / "run"


def test_a_folder_that_cannot_be_read_is_named_once(tmp_path: Path) -> None:
    """It hides nothing but itself."""
    write(tmp_path / "run" / "0.tif")
    locked = write(tmp_path / "locked" / "1.tif").parent
    locked.chmod(0)
    tmp_path.chmod(0o755)
    command = [sys.executable, "-c", LOCKED]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    locked.chmod(0o755)
    told, names = answer.stdout.splitlines()[-2:]
    assert names == "['0.tif']", answer.stderr
    assert told == "cannot be read: ./locked"
    assert answer.stdout.count("folder left out") == 1


def test_a_flood_of_hints_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where more is told than is kept, a rescan takes the place of the hints."""
    monkeypatch.setattr(hints_module, "MAX_HINTS", 20)
    with Watched(tmp_path, rescan_s=3600) as tree:
        tree.until(lambda: tree.intake.due_in_s > 60)
        for number in range(200):
            write(tmp_path / "run" / f"{number}.tif", number)
        tree.until(lambda: len(tree.arrivals) == 200)


LIMITED = """
import sys, time
from pathlib import Path
Path("/proc/sys/user/max_inotify_" + sys.argv[2]).write_text(sys.argv[3])
from segbatch.acquire.folder.intake import Intake

intake = Intake(Path(sys.argv[1]), run_depth=1, settle_s=0.1, rescan_s=0.2, wake=lambda: None)
intake.start()
names, end = [], time.monotonic() + 30
settled = lambda: intake.observer != "none" or "no events" in intake.why
while not (len(names) >= 8 and settled()) and time.monotonic() < end:
    names += [arrival.raw.name for arrival in intake.take(100)]
    time.sleep(0.02)
print(intake.observer, len(names), intake.why)
intake.stop()
"""


@pytest.mark.parametrize(
    ("what", "limit", "observer", "remedy"),
    [
        ("watches", 0, "none", "fs.inotify.max_user_watches"),
        ("watches", 3, "inotify", "fs.inotify.max_user_watches"),
        ("instances", 0, "none", "fs.inotify.max_user_instances"),
    ],
)
def test_limits_of_inotify_cost_time_and_no_file(
    tmp_path: Path, what: str, limit: int, observer: str, remedy: str
) -> None:
    """Where the system refuses to tell of changes, rescans find them, and the log says why."""
    for number in range(8):
        write(tmp_path / "run" / str(number) / f"{number}.tif")
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", LIMITED]
    answer = subprocess.run(
        [*command, str(tmp_path), what, str(limit)], capture_output=True, text=True, check=False
    )
    if "unshare" in answer.stderr:
        pytest.skip(f"no user namespaces here: {answer.stderr.strip()}")
    assert answer.returncode == 0, answer.stderr
    last = answer.stdout.splitlines()[-1]
    assert last.startswith(f"{observer} 8 ")
    assert remedy in last
    assert "warning" in answer.stdout


def test_the_cost_of_a_frame_does_not_grow_with_its_folder(tmp_path: Path) -> None:
    """Each new file is looked at by itself: its folder is not listed again for it."""
    run = tmp_path / "run"
    for number in range(300):
        write(run / f"{number}.tif")
    with Watched(tmp_path, rescan_s=3600) as tree:
        tree.until(lambda: len(tree.arrivals) == 300)
        tree.until(lambda: tree.intake._rescan is None and not tree.intake._checks)
        listed = []
        rules = tree.intake._rules
        walk = rules.walk
        rules.walk = lambda start, *a, **k: listed.append(start) or walk(start, *a, **k)
        for number in range(300, 400):
            write(run / f"{number}.tif")
            tree.step()
        tree.until(lambda: len(tree.arrivals) == 400)
        assert listed == []


def test_take_hands_over_no_more_than_it_was_asked_for(tmp_path: Path) -> None:
    """The rest waits, and there is something to do at once."""
    for number in range(10):
        write(tmp_path / "run" / f"{number}.tif", number)
    with Watched(tmp_path) as tree:
        tree.gather(10)
        first = tree.intake.take(4)
        assert [arrival.raw.name for arrival in first] == ["0.tif", "1.tif", "2.tif", "3.tif"]
        assert tree.intake.due_in_s == 0
        assert tree.intake.pending == 6
        assert len(tree.intake.take(100)) == 6
