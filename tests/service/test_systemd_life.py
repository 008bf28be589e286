"""The service under a real systemd, with the unit as `segbatch install-service` writes it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from segbatch.acquire.find import find_raw_files
from tests.acquire.cameras import camera_pids, is_gone
from tests.house.places import COMMAND
from tests.service.systemd_room import Room, until, why_no_room
from tests.service.threads import held_threads

REASON = why_no_room()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)

UNIT = "segbatch.service"
FRAMES = 4
SETTINGS = """
threads = 1
[[watch]]
path = "{drop}"
[serve]
settle_s = 0.3
rescan_s = 0.5
run_quiet_s = 2.0
"""


class Service:
    """segbatch installed in a room, and the folder that it watches."""

    def __init__(self, room: Room, drop: Path) -> None:
        self.room, self.drop = room, drop

    def install(self, text: str = SETTINGS) -> None:
        """Write the settings and install the service as an administrator does."""
        self.room.write("/etc/segbatch/segbatch.toml", text.format(drop=self.drop))
        answer = self.room.run(COMMAND, "install-service", "--cpu")
        for command in answer.stdout.partition("run:")[2].strip().splitlines():
            if "systemctl restart" not in command:
                self.room.run(*command.split())
        self.room.run("chown", "-R", "segbatch:segbatch", self.drop)

    def adjust(self, *lines: str) -> None:
        """Change the unit by a drop-in, as `systemctl edit` does."""
        text = "\n".join(["[Service]", *lines, ""])
        self.room.write(f"/etc/systemd/system/{UNIT}.d/test.conf", text)
        self.room.run("systemctl", "daemon-reload")

    def systemctl(self, verb: str, check: bool = True) -> int:
        """Tell systemd to do something with the service."""
        return self.room.run("systemctl", verb, UNIT, check=check).returncode

    def show(self, name: str) -> str:
        """Return a property of the service."""
        return self.room.show(UNIT, name)

    @property
    def pid(self) -> int:
        """The main process, as this machine numbers it."""
        return self.room.outer_pid(int(self.show("MainPID")))

    def simulate(self, run: str, seed: int = 1, frames: int = FRAMES) -> Path:
        """Let frames of a run appear in the watched folder."""
        staging = self.drop.parent / "staging"
        subprocess.run(
            [COMMAND, "simulate", staging, f"--frames={frames}", f"--seed={seed}",
             "--height-px=270", "--width-px=360"],
            capture_output=True,
            check=True,
        )  # fmt: skip
        self.room.run("chown", "-R", "segbatch:segbatch", staging)
        return staging.rename(self.drop / run)

    def outcomes(self, run: str) -> list[str]:
        """Return the outcomes recorded in a run."""
        logs = sorted((self.drop / run).glob("*_qc.json"))
        return [json.loads(log.read_text())["outcome"] for log in logs]

    def await_frames(self, run: str, frames: int = FRAMES) -> None:
        """Wait until every frame of a run has its outcome."""
        try:
            until(lambda: len(self.outcomes(run)) == frames, f"{frames} outcomes in {run}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.room.journal(UNIT)}") from None

    def await_restart(self, before: int) -> None:
        """Wait until systemd has started it again, and it is ready."""
        until(
            lambda: int(self.show("NRestarts")) > before and self.show("ActiveState") == "active",
            "the service is started again",
        )


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    """Start a systemd for the tests of this module."""
    started = Room()
    yield started
    started.close()


@pytest.fixture
def service(room: Room, tmp_path: Path) -> Iterator[Service]:
    """Install the service; it is stopped and gone after the test."""
    drop = tmp_path / "drop"
    drop.mkdir()
    installed = Service(room, drop)
    installed.install()
    installed.adjust("RestartSec=100ms")
    yield installed
    room.run("systemctl", "kill", "-s", "KILL", UNIT, check=False)
    installed.systemctl("stop")
    installed.systemctl("reset-failed", check=False)
    room.run("sh", "-c", "rm -rf /etc/systemd/system/segbatch* /etc/segbatch /var/lib/segbatch")
    room.run("journalctl", "--rotate", "--vacuum-time=1s")


def test_ready_means_that_frames_are_processed(service: Service) -> None:
    """Started, it is ready with a warm engine, and records the frames that appear as its user."""
    service.systemctl("start")
    said = service.room.journal(UNIT)
    assert said.index("engine openvino: runs beads") < said.rindex("engine opened")
    assert said.rindex("engine opened") < said.index('"event": "ready"')
    assert "frames/s" in service.show("StatusText")
    assert f"{service.drop}: can be written" in said
    user = service.room.run("ps", "-o", "user=", "-p", service.show("MainPID")).stdout
    assert user.strip() == "segbatch"

    service.simulate("run1")
    service.await_frames("run1")
    logs = list((service.drop / "run1").glob("*_qc.json"))
    assert {stat.S_IMODE(log.stat().st_mode) for log in logs} == {0o660}
    until((service.drop / "run1" / "segbatch_run.json").exists, "the run is settled")
    lines = [json.loads(line) for line in service.room.journal(UNIT).splitlines() if "{" in line]
    assert len([line for line in lines if line["event"] == "frame"]) == FRAMES
    health = f"import urllib.request as u; print(u.urlopen('{HEALTH}').status)"
    assert service.room.run(sys.executable, "-c", health).stdout == "200\n"


HEALTH = "http://127.0.0.1:9417/healthz"


def test_killed_it_starts_again_and_goes_on(service: Service) -> None:
    """Killed with SIGKILL, it is started again and records what arrived meanwhile."""
    service.systemctl("start")
    service.simulate("run1")
    service.await_frames("run1")
    os.kill(service.pid, signal.SIGKILL)
    service.simulate("run2", seed=2)
    service.await_restart(0)
    service.await_frames("run2")

    assert service.show("NRestarts") == "1"
    assert len(service.outcomes("run1")) == FRAMES


def test_stopped_process_is_ended_by_the_watchdog(service: Service) -> None:
    """A process that stands still is taken for hung, ended and started again."""
    service.adjust("RestartSec=100ms", "WatchdogSec=2", "TimeoutAbortSec=2")
    service.systemctl("start")
    os.kill(service.pid, signal.SIGSTOP)
    service.await_restart(0)
    service.simulate("run1")
    service.await_frames("run1")

    assert "Watchdog timeout" in service.room.journal(UNIT)


def test_hung_workers_are_ended_by_the_watchdog(service: Service) -> None:
    """With its main thread alive and its workers stuck on frames, it is ended and goes on anew."""
    service.adjust("RestartSec=100ms", "WatchdogSec=3", "TimeoutAbortSec=2")
    service.systemctl("start")
    pid = service.pid
    service.simulate("run1", frames=40)
    until(lambda: len(service.outcomes("run1")) >= 2, "frames are under way")
    with held_threads(pid, but=pid):
        assert len(service.outcomes("run1")) < 40
        service.await_restart(0)
    service.await_frames("run1", 40)

    assert "Watchdog timeout" in service.room.journal(UNIT)


def test_stop_drains(service: Service) -> None:
    """Stopped among frames, it ends cleanly, nothing half written; started, it does the rest."""
    service.systemctl("start")
    service.simulate("run1", frames=40)
    until(lambda: len(service.outcomes("run1")) >= 2, "frames are under way")
    service.systemctl("stop")

    assert service.show("Result") == "success"
    assert service.show("ExecMainStatus") == "143"
    assert list(service.drop.rglob(".*")) == []
    service.systemctl("start")
    service.await_frames("run1", 40)


def test_reload_takes_new_settings(service: Service) -> None:
    """A reload makes it go by the new settings, without a new process."""
    service.systemctl("start")
    process = service.show("MainPID")
    labels = SETTINGS.replace("threads = 1", "threads = 1\nsave_labels = true")
    service.room.write("/etc/segbatch/segbatch.toml", labels.format(drop=service.drop))
    service.systemctl("reload")
    until(lambda: "settings read again" in service.room.journal(UNIT), "settings are read again")
    service.simulate("run1")
    service.await_frames("run1")

    assert list((service.drop / "run1").glob("*_labels.tif"))
    assert service.show("MainPID") == process
    assert service.show("ActiveState") == "active"


def test_reload_keeps_the_old_settings_where_the_new_are_bad(service: Service) -> None:
    """Settings that cannot be used are refused at a reload, by name, and work goes on."""
    service.systemctl("start")
    service.room.write("/etc/segbatch/segbatch.toml", "[serve]\nsetle_s = 1\n")
    service.systemctl("reload")
    until(lambda: "the old ones stay" in service.room.journal(UNIT), "the settings are refused")
    service.simulate("run1")
    service.await_frames("run1")

    assert "did you mean serve.settle_s?" in service.room.journal(UNIT)
    assert service.show("ActiveState") == "active"


def test_bad_settings_are_no_reason_to_start_again(service: Service) -> None:
    """Settings that cannot be used end the start with exit code 2, and it stays so."""
    service.room.write("/etc/segbatch/segbatch.toml", "[serve]\nsetle_s = 1\n")

    assert service.systemctl("start", check=False) != 0
    until(lambda: service.show("ActiveState") == "failed", "the start has failed")
    assert service.show("ExecMainStatus") == "2"
    assert service.show("NRestarts") == "0"


def test_sandbox_holds(service: Service) -> None:
    """From inside the unit only its own folders, the loopback and no device can be reached."""
    room, probe = service.room, service.drop / "probe.py"
    shutil.copy(Path(__file__).with_name("sandbox_probe.py"), probe)
    room.write("/run/user/1000/secret", "x")
    room.run("mknod", "-m", "666", "/run/device", "c", "1", "11")  # the kernel's log
    room.run(sys.executable, "-c", OTHER_ADDRESS)
    service.adjust("ExecStartPre=", "Type=oneshot", "ExecStart=", "Restart=no",
                   f"ExecStart={sys.executable} {probe} {service.drop}")  # fmt: skip
    service.systemctl("start")
    inside = found(room.journal(UNIT))
    outside = found(
        room.run(
            "env", "STATE_DIRECTORY=/var/lib/segbatch", "CACHE_DIRECTORY=/var/cache/segbatch",
            sys.executable, probe, service.drop,
        ).stdout
    )  # fmt: skip

    assert outside.keys() == inside.keys()
    assert set(outside.values()) == {"yes"}
    allowed = {"write-drop", "write-state", "write-cache", "send-to-itself"}
    assert {name for name, answer in inside.items() if answer == "yes"} == allowed


def found(text: str) -> dict[str, str]:
    """Return what the probe printed."""
    return dict(re.findall(r"^(\S+) (yes|no)$", text, re.MULTILINE))


# Gives the room a second address that is not of the loopback's range (SIOCSIFADDR).
OTHER_ADDRESS = """
import fcntl, socket, struct
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any:
    address = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton("192.0.2.1"))
    fcntl.ioctl(any, 0x8916, struct.pack("16s16s", b"lo:1", address))
"""


CAMERA = """
[camera]
enabled = true
backend = "python"
device = "DemoCamera/DCam"
exposure_ms = 20.0
out = "{drop}"
[camera.properties]
OnCameraCCDXSize = 320
OnCameraCCDYSize = 240
"""


def camera_acquires(service: Service, frames: int = 20) -> int:
    """Wait until the camera takes frames in a new run; return its process, as this machine does."""
    known = set(service.drop.iterdir())

    def taken() -> bool:
        new = set(service.drop.iterdir()) - known
        return any(len(list(run.glob("img_*.tif"))) >= frames for run in new)

    try:
        until(taken, "frames of the camera")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{service.room.journal(UNIT)}") from None
    (pid,) = camera_pids(service.pid)
    return pid


def camera_runs(service: Service) -> list[tuple[str, int, int]]:
    """Return of each run of the camera its state, and the frames in its record and on the disk."""
    found = []
    for file in sorted(service.drop.glob("*/segbatch_camera.json")):
        told = json.loads(file.read_text())
        frames = [each for each in find_raw_files(file.parent) if each.suffix == ".tif"]
        found.append((told["state"], told["written"], len(frames)))
    return found


@pytest.mark.parametrize("end", ["stop", "kill", "watchdog"])
def test_the_camera_ends_its_run_however_the_service_ends(service: Service, end: str) -> None:
    """Stopped, killed or aborted, the service leaves a run that is whole, before it starts anew."""
    service.install(SETTINGS + CAMERA)
    service.adjust("RestartSec=100ms", "WatchdogSec=3", "TimeoutAbortSec=10")
    service.systemctl("start")
    pid = camera_acquires(service)
    if end == "stop":
        service.systemctl("stop")
        assert service.show("Result") == "success"
    else:
        os.kill(service.pid, signal.SIGKILL if end == "kill" else signal.SIGSTOP)
        assert camera_acquires(service) != pid
        service.systemctl("stop")
    runs = camera_runs(service)

    assert is_gone(pid)
    assert len(runs) == (1 if end == "stop" else 2)
    assert {state for state, _, _ in runs} == {"stopped"}
    assert [written for _, written, _ in runs] == [there for _, _, there in runs]


def test_a_stop_among_the_trials_of_engines_is_clean(service: Service) -> None:
    """Stopped while an engine is tried, which the signal ends too, it has not failed."""
    service.adjust("Environment=XDG_CACHE_HOME=/tmp", "ExecStartPre=")  # nothing is known there
    service.room.run("systemctl", "start", "--no-block", UNIT)
    trial = "segbatch.infer.engine.probe"
    until(
        lambda: int(service.show("MainPID")) and camera_pids(service.pid, trial),
        "the trial of an engine",
    )
    service.systemctl("stop")

    assert service.show("Result") == "success"
    assert service.show("ExecMainStatus") == "143"


def test_a_killed_camera_is_no_end_of_the_service(service: Service) -> None:
    """With the camera's process killed the unit stays as it is, and takes frames again."""
    service.install(SETTINGS + CAMERA)
    service.systemctl("start")
    os.kill(camera_acquires(service), signal.SIGKILL)
    camera_acquires(service)
    service.systemctl("stop")

    assert service.show("Result") == "success"
    assert service.show("NRestarts") == "0"
    assert [state for state, _, _ in camera_runs(service)] == ["failed", "stopped"]


def test_instance_runs_beside_others(service: Service) -> None:
    """An instance of the template runs with its own settings, state and folder."""
    room = service.room
    settings = SETTINGS.format(drop=service.drop) + 'listen = ""\n'
    room.write("/etc/segbatch/left.toml", settings)
    room.run(COMMAND, "install-service", "--cpu", "--instance", "left")
    room.run("systemctl", "daemon-reload")
    room.run("systemctl", "start", "segbatch@left")
    service.simulate("run1")
    service.await_frames("run1")

    assert room.run("ls", "/var/lib/segbatch/left").stdout.strip()
    room.run("systemctl", "stop", "segbatch@left")
    assert room.show("segbatch@left", "Result") == "success"
