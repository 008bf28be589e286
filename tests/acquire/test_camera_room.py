"""A camera on a disk with little room: it stops before the disk is full, and goes on by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from segbatch.acquire.camera.record import RECORD_NAME
from segbatch.acquire.camera.session import CameraSession
from segbatch.acquire.camera.status import CameraStatus
from segbatch.acquire.find import find_raw_files
from tests.acquire.cameras import DEVICE, SMALL, camera_settings, until

ON_A_SMALL_DISK = 'mount -t tmpfs -o size=32M tmpfs "$1" && shift && exec "$@"'
pytestmark = pytest.mark.skipif(
    os.name == "nt" or os.geteuid() != 0, reason="mounting a small disk needs root"
)


def on_a_small_disk(disk: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command for which ``disk`` has 32 MiB, and nobody else sees it so."""
    disk.mkdir()
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", ON_A_SMALL_DISK, "sh", str(disk), *command],
        capture_output=True,
        text=True,
        check=False,
    )


def records(disk: Path) -> list[dict[str, Any]]:
    """Return what the runs say of themselves, in their order."""
    return [json.loads(file.read_bytes()) for file in sorted(disk.glob(f"*/{RECORD_NAME}"))]


def scene(disk: Path) -> None:
    """Drive a session on the small disk: full, empty again, full; print what was seen."""
    seen: list[CameraStatus] = []
    settings = camera_settings(frames=0, exposure_ms=10.0, out=str(disk))
    session = CameraSession(settings, lambda: seen.append(session.status), min_free_gib=12 / 1024)
    session.start()
    until(lambda: session.status.state == "waiting", "too little room")
    first, raws = seen[-1], find_raw_files(disk)
    until(lambda: [each.state for each in seen].count("waiting") > 1, "another try")
    told: dict[str, Any] = {"folders_while_waiting": len(list(disk.iterdir()))}
    told |= {"error": first.error, "written": first.frames_written, "raws": len(raws)}
    told["records"] = records(disk)
    for raw in raws:
        raw.unlink()
    until(lambda: session.status.frames_written > first.frames_written + 5, "frames again")
    told["stopped"] = session.stop(20)
    told["runs"] = len(records(disk))
    told["lost"] = session.status.frames_taken - session.status.frames_written
    print(json.dumps(told))  # noqa: T201 - the test reads it


def test_little_room_is_waited_for(tmp_path: Path) -> None:
    """Frames stop before the disk is full, all of them written; with room again they go on."""
    program = "import sys, pathlib; from tests.acquire.test_camera_room import scene; "
    program += "scene(pathlib.Path(sys.argv[1]))"
    disk = tmp_path / "disk"
    done = on_a_small_disk(disk, sys.executable, "-c", program, str(disk))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    (record,) = told["records"]

    assert "MiB left" in told["error"]
    assert "min_free_gib" in told["error"]
    assert told["folders_while_waiting"] == 1
    assert told["raws"] == told["written"] == record["written"] == record["taken"] > 0
    assert (record["state"], record["not_written"]) == ("stopped", 0)
    assert record["error"] == told["error"]
    assert (told["stopped"], told["runs"], told["lost"]) == (True, 2, 0)


@pytest.mark.parametrize(("min_free_gib", "written"), [(12 / 1024, True), (1.0, False)])
def test_one_run_ends_where_room_ends(tmp_path: Path, min_free_gib: float, written: bool) -> None:
    """A run from the command line ends with the disk's exit code, and has lost nothing."""
    disk = tmp_path / "disk"
    command = [sys.executable, "-m", "segbatch", "acquire", f"--device={DEVICE}", "--json"]
    command += [f"--property={name}={value}" for name, value in SMALL.items()]
    command += [f"--set=serve.min_free_gib={min_free_gib}", "--backend=python", "--exposure-ms=10"]
    done = on_a_small_disk(disk, *command, f"--out={disk}/run")

    assert done.returncode == 4, done.stderr
    assert "MiB left" in done.stdout + done.stderr
    if written:
        (run,) = json.loads(done.stdout)["runs"]
        assert run["taken"] == run["written"] > 0
        assert run["state"] == "stopped"
