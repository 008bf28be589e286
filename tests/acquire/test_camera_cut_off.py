"""Runs that were cut off with their process: settled by the next, and never one that is taken."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from segbatch.acquire.camera import hold as holding
from segbatch.acquire.camera.files import PARTIAL_SUFFIX
from segbatch.acquire.camera.hold import hold_name
from segbatch.acquire.camera.left import CUT_OFF, settle_all_cut_off
from segbatch.acquire.camera.record import RECORD_NAME, CameraRecord, require_new
from segbatch.acquire.camera.run import Run
from segbatch.acquire.camera.session import CameraSession
from segbatch.acquire.find import find_raw_files
from segbatch.errors import UsageError
from tests.acquire.cameras import camera_settings, opened, until
from tests.acquire.test_camera_command import ACQUIRE, acquire

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there are no such signals")


def read_record(folder: Path) -> CameraRecord:
    """Return what the run says of itself."""
    return msgspec.json.decode((folder / RECORD_NAME).read_bytes(), type=CameraRecord)


@contextlib.contextmanager
def taking(folder: Path, kind: str = "ome-tiff") -> Iterator[subprocess.Popen[bytes]]:
    """Have another process take a run without end, until it is killed."""
    command = [*ACQUIRE, "--frames=0", "--exposure-ms=5", f"--format={kind}", f"--out={folder}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until((folder / RECORD_NAME).exists, "a run")
        until(lambda: read_record(folder).written > 9, "frames")
        yield process
    finally:
        process.kill()
        process.wait()


def cut_off(folder: Path, kind: str = "ome-tiff") -> None:
    """Leave a run behind whose process was killed."""
    with taking(folder, kind) as process:
        process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("kind", ["ome-tiff", "ndtiff"])
def test_a_run_that_was_cut_off_ends_as_failed(tmp_path: Path, kind: str) -> None:
    """It says why, how many frames lie on the disk, and nothing hidden is left beside them."""
    run = tmp_path / "somebody" / "run42"
    cut_off(run, kind)
    left = read_record(run)
    (run / f".img_000000999.tif{PARTIAL_SUFFIX}").write_bytes(b"half")
    settle_all_cut_off(tmp_path)
    record = read_record(run)

    assert left.state == "acquiring"
    assert (record.state, record.error, record.started_at) == ("failed", CUT_OFF, left.started_at)
    assert record.ended_at is not None
    assert record.taken == record.written + record.not_written >= left.taken
    assert record.written >= left.written
    if kind == "ome-tiff":
        assert record.written == len(find_raw_files(run))
    assert not list(run.glob(".*"))


def test_a_frame_without_content_is_not_written(tmp_path: Path) -> None:
    """A file that has its name and nothing in it, as after a power cut, is no frame."""
    cut_off(tmp_path / "run")
    raws = find_raw_files(tmp_path)
    os.truncate(raws[-1], 0)
    settle_all_cut_off(tmp_path)

    assert read_record(tmp_path / "run").written == len(raws) - 1


def test_a_run_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    """What a living process takes goes on, whoever tidies beside it, and ends as it should."""
    run = tmp_path / "run"
    with taking(run) as process:
        for _ in range(100):
            settle_all_cut_off(tmp_path)
        assert read_record(run).state == "acquiring"
        with pytest.raises(UsageError, match="takes the run of another process"):
            require_new(run)
        process.terminate()
        process.wait()
    record = read_record(run)

    assert (record.state, record.not_written) == ("stopped", 0)
    assert not list(run.glob(".*"))


def test_two_runs_never_begin_in_one_folder(tmp_path: Path) -> None:
    """Of two that found a folder empty the second is refused, and may have it when that is over."""
    first = holding.hold(tmp_path)
    assert first is not None
    with pytest.raises(UsageError, match="takes the run of another process"):
        holding.hold(tmp_path)
    first.release()
    second = holding.hold(tmp_path)

    assert second is not None
    second.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lock", [None, ".segbatch-camera@another-computer.lock"])
def test_a_run_that_nobody_can_judge_is_left_alone(tmp_path: Path, lock: str | None) -> None:
    """Without a lock file of this computer a record stays as it is, to the byte."""
    cut_off(tmp_path / "run")
    own = tmp_path / "run" / hold_name()
    own.unlink() if lock is None else own.rename(own.with_name(lock))
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    settle_all_cut_off(tmp_path)

    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before


def test_a_disk_without_locks_keeps_no_lock_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no file can be locked a run is taken all the same, and nobody takes it for dead."""

    def refused(_: object) -> bool:
        raise OSError(37, os.strerror(37))

    monkeypatch.setattr(holding, "try_lock", refused)
    settings = camera_settings(frames=5)
    seen: list[list[str]] = []
    with opened(settings) as camera:
        run = Run(
            camera,
            settings,
            lambda: tmp_path,
            lambda folder, _: seen.append([each.name for each in folder.glob("*.lock")]),
        )
        assert run.take(threading.Event()).state == "complete"

    assert seen
    assert not any(seen)


def test_a_run_of_nothing_goes_with_its_folder(tmp_path: Path) -> None:
    """A run that was cut off before its first frame leaves no folder; an untouched one stays."""
    for name in ("nothing", "begins"):
        (tmp_path / name).mkdir()
        (tmp_path / name / hold_name()).touch()
    (tmp_path / "nothing" / RECORD_NAME).write_text("{}")
    settle_all_cut_off(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["begins"]


def test_what_is_no_record_is_left_and_the_others_settled(tmp_path: Path) -> None:
    """A record that cannot be read stays, and keeps none of the others from their end."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / hold_name()).touch()
        (tmp_path / name / RECORD_NAME).write_text("{}" if name != "b" else "no record")
        (tmp_path / name / "img_000000000.tif").write_bytes(b"a frame")
    settle_all_cut_off(tmp_path)

    assert (tmp_path / "b" / RECORD_NAME).read_text() == "no record"
    assert (tmp_path / "b" / hold_name()).exists()
    assert [read_record(tmp_path / name).state for name in ("a", "c")] == ["failed", "failed"]


def test_the_next_session_settles_before_it_takes_frames(tmp_path: Path) -> None:
    """A session's first look at its folder settles what was cut off there."""
    cut_off(tmp_path / "run")
    seen: list[str] = []
    settings = camera_settings(frames=5, out=str(tmp_path))
    session = CameraSession(settings, lambda: seen.append(read_record(tmp_path / "run").state))
    session.start()

    assert session.wait(60)
    assert seen[0] == "failed"
    assert session.status.frames_written == 5


def test_acquire_settles_and_refuses_a_folder_that_was_cut_off(tmp_path: Path) -> None:
    """A new run never goes beside the frames of one that was cut off, which has its end then."""
    run = tmp_path / "run"
    cut_off(run)
    dry = acquire("--frames=5", f"--out={run}", "--dry-run")
    after_dry = read_record(run).state
    done = acquire("--frames=5", f"--out={run}")

    assert (dry.returncode, after_dry) == (2, "acquiring")
    assert done.returncode == 2
    assert "holds files already, such as img_000000000.tif" in done.stderr
    assert "a run that was cut off is settled" in done.stderr
    assert read_record(run).state == "failed"


def test_acquire_uses_a_folder_that_holds_an_old_lock_alone(tmp_path: Path) -> None:
    """A folder in which a run was cut off before its first file is as good as an empty one."""
    (tmp_path / hold_name()).touch()
    done = acquire("--frames=5", "--exposure-ms=10", f"--out={tmp_path}", "--json")

    assert json.loads(done.stdout)["runs"][0]["written"] == 5
    assert not list(tmp_path.glob(".*"))
