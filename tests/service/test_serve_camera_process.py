"""The service and the process that drives its camera: either may be killed, frames stay counted."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from segbatch.acquire.camera.child import CAMERA_NICE
from segbatch.acquire.camera.files import PARTIAL_SUFFIX
from segbatch.acquire.camera.hold import hold_name
from segbatch.acquire.camera.left import CUT_OFF
from tests.acquire.cameras import camera_pids, is_gone, until
from tests.acquire.test_camera_hanging_disk import hanging_disk
from tests.service.runs import COMMAND
from tests.service.serving import Service
from tests.service.test_serve_camera import camera_records, image_numbers, write_settings

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    """Return the folder that the camera writes to and the service watches."""
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


def serve(watched: Path) -> Service:
    """Start a service whose camera takes frames without end into one folder."""
    config = write_settings(watched.parent / "segbatch.toml", watched, frames_per_run=0)
    return Service([], watched.parent / "state", config=config)


def acquires(service: Service, frames: int = 20) -> tuple[dict[str, Any], int]:
    """Wait for so many frames more; return the camera's status and its process."""
    camera = service.until(lambda: service.status()["camera"])
    wanted = camera["frames_written"] + frames
    service.until(lambda: service.status()["camera"]["frames_written"] >= wanted)
    camera = service.status()["camera"]
    assert camera["state"] == "acquiring"
    (pid,) = camera_pids(service.process.pid)
    return camera, pid


def descriptors(pid: int) -> list[str]:
    """Return what a process holds open."""
    held = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            held.append(str(each.readlink()))
    return held


def whole(folder: Path, told: dict[str, Any]) -> bool:
    """Tell whether the frames on the disk are those of the record, without a hole."""
    numbers = image_numbers(folder)
    return len(numbers) == told["written"] and numbers == [*range(numbers[0], numbers[-1] + 1)]


def test_the_camera_is_killed_and_goes_on(watched: Path) -> None:
    """With its process killed the camera has failed, goes on by itself, and counts on."""
    with serve(watched) as service:
        before, pid = acquires(service)
        os.kill(pid, signal.SIGKILL)
        (lost,) = service.until(lambda: service.said("the camera's process is gone"))
        service.until(lambda: len(service.said("acquisition begins")) == 2)
        after, again = acquires(service)
        assert service.end() == 143
    (killed, first), (_, second) = camera_records(watched).items()

    assert again != pid
    assert "ended by signal 9" in lost["error"]
    assert lost["error"] == first["error"]
    assert (first["state"], second["state"]) == ("failed", "stopped")
    assert after["frames_written"] > first["written"] >= before["frames_written"]
    assert first["written"] == len(image_numbers(killed))
    assert first["taken"] == first["written"] + first["not_written"]


def test_the_service_is_killed_and_its_camera_ends(watched: Path) -> None:
    """With the service killed, the camera's process ends its run, whole, and then itself."""
    with serve(watched) as service:
        _, pid = acquires(service)
        service.process.kill()
        service.process.wait()
        until(lambda: is_gone(pid), "the end of the camera's process")
    ((folder, told),) = camera_records(watched).items()

    assert (told["state"], told["error"], told["not_written"]) == ("stopped", None, 0)
    assert whole(folder, told)
    assert not list(folder.glob(f".*{PARTIAL_SUFFIX}"))


def test_both_are_killed_and_the_next_start_settles_the_run(watched: Path) -> None:
    """What both left when they were killed at once is failed before the next run begins."""
    with serve(watched) as service:
        _, pid = acquires(service)
        for number in (signal.SIGSTOP, signal.SIGKILL):  # neither has time to see the other's end
            for each in (service.process.pid, pid):
                os.kill(each, number)
        service.process.wait()
        until(lambda: is_gone(pid), "the end of the camera's process")
    ((cut_off, left),) = camera_records(watched).items()
    with serve(watched) as service:
        acquires(service)
        (settled,) = service.said("a run that was cut off is settled")
        (begun,) = service.said("acquisition begins")
        order = [service.log.index(line) for line in (settled, begun)]
        assert service.end() == 143
    first, second = camera_records(watched).values()

    assert left["state"] == "acquiring"
    assert order == sorted(order)
    assert settled["run"] == str(cut_off) != begun["run"]
    assert (first["state"], second["state"]) == ("failed", "stopped")
    assert first["error"] == settled["error"] == CUT_OFF
    assert first["written"] == len(image_numbers(cut_off)) >= left["written"]
    assert not list(cut_off.glob(f".*{PARTIAL_SUFFIX}"))
    assert not (cut_off / hold_name()).exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_all_drains(watched: Path, number: int, code: int) -> None:
    """A signal that reaches the camera's process too ends the service as one to it alone does."""
    with serve(watched) as service:
        _, pid = acquires(service)
        os.kill(pid, number)
        assert service.end(number) == code
        assert is_gone(pid)
        assert not service.said("the camera's process is gone")
    ((folder, told),) = camera_records(watched).items()

    assert (told["state"], told["error"], told["not_written"]) == ("stopped", None, 0)
    assert whole(folder, told)


def may_be_real_time() -> bool:
    """Return whether the system lets this user's processes go first in real time."""
    return subprocess.run(["chrt", "--rr", "1", "true"], check=False).returncode == 0


def test_the_camera_has_nothing_of_the_service(watched: Path) -> None:
    """Its process goes before the service where it may, and has no lock and no socket of it."""
    with serve(watched) as service:
        _, pid = acquires(service)
        tasks = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
        priorities = {os.getpriority(os.PRIO_PROCESS, task) for task in tasks}
        policies = {os.sched_getscheduler(task) for task in tasks}
        held = descriptors(pid)
        own = os.getpriority(os.PRIO_PROCESS, service.process.pid)
        assert service.end() == 143

    assert max(priorities) <= own
    assert min(priorities) == (CAMERA_NICE if os.geteuid() == 0 else own)
    assert (os.SCHED_RR in policies) == may_be_real_time()
    assert not [
        name for name in held if name.startswith(("socket:", str(watched.parent / "state")))
    ]
    assert len({name for name in held if name.startswith("pipe:")}) <= 3


def page(service: Service) -> str:
    """Return the address of its live page."""
    return str(service.said("live page, metrics and health")[0]["url"])


def healthz(service: Service) -> dict[str, Any]:
    """Read ``/healthz``, whatever it answers."""
    try:
        with urllib.request.urlopen(page(service) + "healthz", timeout=10) as answer:  # noqa: S310 - loopback
            return json.loads(answer.read())
    except urllib.error.HTTPError as refused:
        with refused:
            return json.loads(refused.read())


def test_a_disk_that_hangs_is_told_by_the_service(tmp_path: Path) -> None:
    """While the camera's disk hangs, status and health say so and since when; then all goes on."""
    with hanging_disk(tmp_path) as disk:
        watched = disk.place / "in"
        watched.mkdir()
        config = write_settings(tmp_path / "segbatch.toml", watched, frames_per_run=0)
        with Service([], tmp_path / "state", config=config) as service:
            acquires(service)
            disk.hang()
            try:
                service.until(lambda: service.status()["camera"]["error"])
                hangs, health = service.status(), healthz(service)
                printed = subprocess.run(
                    [*COMMAND, "status", "--url", page(service)],
                    capture_output=True,
                    text=True,
                    check=False,
                )
            finally:
                disk.go_on()
            service.until(lambda: not service.status()["camera"]["error"])
            acquires(service)
            assert service.end() == 143
            assert service.said("the camera waits")[0]["error"] == hangs["camera"]["error"]
        ((folder, told),) = camera_records(watched).items()
        assert (told["state"], told["not_written"]) == ("stopped", 0)
        assert whole(folder, told)

    assert hangs["camera"]["state"] == "acquiring"
    assert f"for the disk of {watched} to write frames" in hangs["camera"]["error"]
    assert hangs["camera"]["error"] in health["why"]
    assert "waiting since" in printed.stdout, printed.stderr
