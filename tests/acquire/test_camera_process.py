"""The service's camera in a process of its own: it may be killed, crash and hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from segbatch.acquire.camera.apart import CHILD, CameraProcess
from segbatch.acquire.camera.child import Begin, Word
from segbatch.acquire.camera.record import RECORD_NAME, CameraRecord
from segbatch.acquire.camera.status import CameraStatus
from segbatch.acquire.camera.writing import DEPTH
from segbatch.acquire.find import find_raw_files
from tests.acquire.cameras import camera_settings, camera_threads, frames_in, is_gone, until

if TYPE_CHECKING:
    from segbatch.settings.sections import CameraSettings

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there are no such signals")

# A module that every Python process of the test begins with; in the one that drives a camera it
# does something once that camera is open, as a library may.
CUSTOM = """
import ctypes, os, sys, threading, time
from pathlib import Path

def act():
    while not getattr(sys.modules.get("segbatch.acquire.camera.door"), "_held", None):
        time.sleep(0.01)
    {act}

once = Path({once!r})
if "segbatch.acquire.camera.child" in sys.orig_argv and not once.exists():
    once.touch()
    threading.Thread(target=act, daemon=True).start()
"""
HANG_THE_CORE = (
    'sys.modules["segbatch.acquire.camera.door"]._held[0].ask("x", lambda: time.sleep(999))'
)
HANG_AS_IT_LETS_GO = (
    "from segbatch.acquire.camera import calls, core, errors; "
    "core.PythonCore.let_go = lambda self: time.sleep(999); "
    "calls.CoreCalls.ask = lambda *a, **k: exec('raise errors.CameraError(\\'the cable\\')', "
    "{'errors': errors})"
)
HOLD_THE_LOCK = "ctypes.PyDLL(None).sleep(999)"  # a PyDLL keeps the interpreter's lock
IN_HAND = DEPTH + 3  # frames that are on their way to the disk, at most
PRINT = "[os.write(1, b'half a line {') and time.sleep(0.001) for _ in range(10**6)]"


class Driven:
    """A camera in a process of its own, and all the states it went through."""

    def __init__(self, settings: CameraSettings) -> None:
        self.seen: list[CameraStatus] = []
        self.camera = CameraProcess(settings, self.note)
        self.camera.start()

    def note(self) -> None:
        """Keep the status after each change."""
        self.seen.append(self.camera.status)

    @property
    def states(self) -> list[str]:
        """The states in their order, each once."""
        states = [status.state for status in self.seen]
        return [one for i, one in enumerate(states) if not i or one != states[i - 1]]

    def acquires(self, frames: int = 6) -> int:
        """Wait until it takes so many frames more; return the process that does."""
        begun = self.camera.status.frames_written
        until(lambda: self.camera.status.frames_written >= begun + frames, "frames")
        assert self.camera.status.state == "acquiring"
        assert self.camera.pid is not None
        return self.camera.pid

    def failed(self) -> CameraStatus:
        """Wait until it has failed; return the first such status."""
        until(lambda: "failed" in self.states, "the failure")
        return next(status for status in self.seen if status.state == "failed")


def runs(out: Path) -> list[tuple[Path, CameraRecord]]:
    """Return the runs in a folder, in the order in which they began."""
    found = [
        (file.parent, msgspec.json.decode(file.read_bytes(), type=CameraRecord))
        for file in out.glob(f"*/{RECORD_NAME}")
    ]
    return sorted(found, key=lambda each: each[1].started_at)


def descriptors() -> int:
    """Return how many this process holds open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def let_act(monkeypatch: pytest.MonkeyPatch, folder: Path, act: str) -> None:
    """Have the first process that drives a camera do something when that is open."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(CUSTOM.format(act=act, once=str(folder / "once")))
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_it_takes_its_frames_and_ends(tmp_path: Path) -> None:
    """With a number of frames it takes them, is off then, and leaves neither process nor thread."""
    driven = Driven(camera_settings(frames=12, out=str(tmp_path)))
    until(lambda: driven.states[-1:] == ["off"], "the end")

    assert driven.camera.stop(20)
    status = driven.camera.status
    assert driven.states == ["connecting", "acquiring", "off"]
    assert (status.frames_taken, status.frames_written, status.error) == (12, 12, None)
    assert len(find_raw_files(tmp_path)) == 12
    assert driven.camera.pid is None
    assert camera_threads() == []


def test_it_is_stopped_in_the_middle(tmp_path: Path) -> None:
    """Asked to stop, twice, it ends its run, keeps its frames and lets go of the camera."""
    for _ in range(2):
        driven = Driven(camera_settings(frames=0, out=str(tmp_path)))
        driven.acquires()
        driven.camera.ask_to_stop()
        assert driven.camera.stop(20)
        assert driven.camera.status.state == "off"
        assert "failed" not in driven.states

    assert [record.state for _, record in runs(tmp_path)] == ["stopped", "stopped"]
    assert all(len(find_raw_files(folder)) == record.taken for folder, record in runs(tmp_path))
    assert camera_threads() == []


def test_it_can_be_stopped_before_it_was_started(tmp_path: Path) -> None:
    """Asking and stopping are answered before there is anything to stop."""
    camera = CameraProcess(camera_settings(out=str(tmp_path)), lambda: None)
    camera.ask_to_stop()
    camera.start()

    assert camera.stop(20)
    assert camera.status.state == "off"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["ome-tiff", "ndtiff"])
def test_a_killed_process_is_started_again(tmp_path: Path, kind: str) -> None:
    """Killed with SIGKILL it fails by that name, its run too, and counts and takes what is left."""
    driven = Driven(camera_settings(frames=400, out=str(tmp_path), format=kind))
    os.kill(driven.acquires(100), signal.SIGKILL)
    failed = driven.failed()
    until(lambda: driven.states[-1] == "off", "the end")
    assert driven.camera.stop(20)
    (killed, first), (_, second) = runs(tmp_path)

    assert driven.states == ["connecting", "acquiring", "failed", "connecting", "acquiring", "off"]
    assert "ended by signal 9" in (failed.error or "")
    assert 0 < (failed.retry_in_s or 0) <= 1
    assert (first.state, first.error, second.state) == ("failed", failed.error, "complete")
    assert first.ended_at is not None
    assert first.taken == first.written + first.not_written
    assert first.taken + second.taken == driven.camera.status.frames_taken == 400
    assert first.written + second.written == driven.camera.status.frames_written
    assert not list(killed.glob(".*"))
    if kind == "ome-tiff":
        assert len(frames_in(find_raw_files(killed))) == first.written >= 100


@pytest.mark.parametrize("behind", [0, 25])
@pytest.mark.parametrize("kind", ["ome-tiff", "ndtiff"])
def test_a_process_killed_in_a_later_folder_is_counted_exactly(
    tmp_path: Path, kind: str, behind: int
) -> None:
    """Killed so many frames behind a change of folder, no frame is counted twice or left out."""
    settings = camera_settings(frames=400, frames_per_run=60, out=str(tmp_path), format=kind)
    driven = Driven(settings)
    until(lambda: len({status.run for status in driven.seen}) > 3, "a third folder")
    until(lambda: driven.camera.status.frames_taken >= 120 + behind, "frames in it")
    assert driven.camera.pid is not None
    os.kill(driven.camera.pid, signal.SIGKILL)
    failed = driven.failed()
    until(lambda: driven.states[-1] == "off", "the end")
    assert driven.camera.stop(20)
    status, records = driven.camera.status, [record for _, record in runs(tmp_path)]
    cut_off = [record for record in records if record.error == failed.error]

    assert status.frames_taken == 400 == sum(record.taken for record in records)
    assert status.frames_written == sum(record.written for record in records)
    assert all(record.taken == record.written + record.not_written for record in records)
    assert all(record.not_written <= IN_HAND for record in cut_off)
    if kind == "ome-tiff":
        assert len(find_raw_files(tmp_path)) == status.frames_written


def test_a_folder_is_told_before_its_first_frame(tmp_path: Path) -> None:
    """The first word of each folder has the counts of those before it, to the frame."""
    driven = Driven(camera_settings(frames=200, frames_per_run=30, out=str(tmp_path)))
    until(lambda: driven.states[-1:] == ["off"], "the end")
    assert driven.camera.stop(20)
    first: dict[str, int] = {}
    for status in driven.seen:
        first.setdefault(status.run, status.frames_taken)
    del first[""]

    assert list(first.values()) == [0, 30, 60, 90, 120, 150, 180]
    assert list(first) == [str(folder) for folder, _ in runs(tmp_path)]


def test_a_fault_of_ours_costs_no_count_and_no_process(tmp_path: Path) -> None:
    """Where taking a status fails the process is ended, its frames count, and another goes on."""

    class Faulty(Driven):
        pid = 0

        def note(self) -> None:
            super().note()
            if not self.pid and self.camera.status.frames_written > 50:
                self.pid = self.camera.pid or 0
                raise ValueError("a fault of ours")

    held = descriptors()
    driven = Faulty(camera_settings(frames=300, out=str(tmp_path)))
    failed = driven.failed()
    ended = not Path(f"/proc/{driven.pid}").exists()
    until(lambda: driven.states[-1] == "off", "the end")
    assert driven.camera.stop(20)
    records = [record for _, record in runs(tmp_path)]

    assert failed.error == "the camera's process is left: ValueError: a fault of ours"
    assert ended
    assert [record.state for record in records] == ["failed", "complete"]
    assert records[0].error == failed.error
    assert driven.camera.status.frames_taken == 300 == sum(record.taken for record in records)
    assert len(find_raw_files(tmp_path)) == driven.camera.status.frames_written
    assert descriptors() == held
    assert camera_threads() == []


def test_signals_to_the_group_are_for_the_service(tmp_path: Path) -> None:
    """SIGINT, SIGTERM and SIGHUP, at any time, leave the camera alone."""
    driven = Driven(camera_settings(frames=0, out=str(tmp_path)))
    until(lambda: driven.camera.pid is not None, "a process")
    pid = driven.camera.pid or 0
    for _ in range(10):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
    assert driven.acquires() == pid

    assert driven.camera.stop(20)
    assert [record.state for _, record in runs(tmp_path)] == ["stopped"]


def test_a_process_that_stands_still_is_started_again(tmp_path: Path) -> None:
    """A process that does not say a word for long is killed, its run fails, and all goes on."""
    driven = Driven(camera_settings(frames=0, out=str(tmp_path), timeout_s=1.0))
    pid = driven.acquires()
    os.kill(pid, signal.SIGSTOP)
    failed = driven.failed()
    again = driven.acquires()

    assert driven.camera.stop(20)
    assert "did not say a word" in (failed.error or "")
    assert again != pid
    assert is_gone(pid)
    assert [record.state for _, record in runs(tmp_path)] == ["failed", "stopped"]


def test_a_process_that_does_not_end_is_killed(tmp_path: Path) -> None:
    """What does not end in time is killed, which is told, and its run's record says so."""
    driven = Driven(camera_settings(frames=0, out=str(tmp_path)))
    pid = driven.acquires()
    os.kill(pid, signal.SIGSTOP)

    assert not driven.camera.stop(0.5)
    assert is_gone(pid)
    assert driven.camera.status.state == "off"
    ((_, record),) = runs(tmp_path)
    assert record.state == "failed"
    assert "did not end within 0.5 s" in (record.error or "")
    assert camera_threads() == []


@pytest.mark.parametrize(
    ("act", "told"),
    [
        pytest.param(HANG_THE_CORE, "core does not answer", id="does not answer"),
        pytest.param(HANG_AS_IT_LETS_GO, "the cable", id="fails and never lets go"),
        pytest.param(HOLD_THE_LOCK, "ended with exit code 1", id="holds the interpreter's lock"),
    ],
)
def test_a_core_that_hangs_is_got_rid_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str, told: str
) -> None:
    """A core that hangs, however it does, ends with its process, and the next one takes frames."""
    let_act(monkeypatch, tmp_path / "custom", act)
    driven = Driven(camera_settings(frames=0, out=str(tmp_path / "out"), timeout_s=1.0))
    failed = driven.failed()
    driven.acquires()

    assert driven.camera.stop(20)
    assert told in (failed.error or "")


def test_what_libraries_print_is_not_taken_for_a_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is printed on descriptor 1 goes to the log, and every status comes through."""
    let_act(monkeypatch, tmp_path / "custom", PRINT)
    driven = Driven(camera_settings(frames=100, out=str(tmp_path / "out")))
    until(lambda: driven.states[-1:] == ["off"], "the end")

    assert driven.camera.stop(20)
    assert driven.states == ["connecting", "acquiring", "off"]
    assert "half a line {" in capfd.readouterr().err


def test_a_change_of_the_room_reaches_the_process(tmp_path: Path) -> None:
    """Room that is asked for anew is looked at by the next attempt, in the other process."""
    camera = CameraProcess(camera_settings(out=str(tmp_path)), lambda: None, min_free_gib=1e6)
    camera.start()
    until(lambda: camera.status.state == "waiting", "a wait for room")
    told = camera.status
    camera.min_free_gib = 0.0
    until(lambda: camera.status.frames_written == 20, "the frames")

    assert camera.stop(20)
    assert "MiB left" in (told.error or "")
    assert camera.min_free_gib == 0.0


def test_a_line_that_is_none_is_logged_and_left_out(tmp_path: Path) -> None:
    """What cannot be read is told with its beginning, and the lines behind it are followed."""
    begin = Begin(camera_settings(frames=0, out=str(tmp_path)), 4827, 0.0, [])
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert child.stdin is not None
    child.stdin.write(msgspec.json.encode(begin) + b"\n")
    child.stdin.write(b"no word of ours " + bytes(1000) + b"\n" + b'{"stop": "perhaps"}\n')
    child.stdin.flush()
    until(lambda: bool(find_raw_files(tmp_path)), "frames")
    child.stdin.write(msgspec.json.encode(Word(stop=True)) + b"\n")
    child.stdin.flush()  # and it is left open
    assert child.stderr is not None
    said = child.stderr.read().decode()
    child.stdin.close()
    child.stderr.close()

    assert child.wait(60) == 0
    assert said.count("a line from the service is left out") == 2
    assert "no word of ours" in said
    assert "perhaps" in said
    assert [record.state for _, record in runs(tmp_path)] == ["stopped"]
