"""Attaching to a running Micro-Manager: pycromanager's real client, the real core behind it."""

from __future__ import annotations

import contextlib
import gc
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from segbatch.acquire.camera.core import JavaCore
from segbatch.acquire.camera.door import open_camera
from segbatch.acquire.camera.errors import CameraBusyError, CameraError, CameraSilentError
from segbatch.acquire.camera.properties import apply
from segbatch.acquire.camera.run import Run
from segbatch.acquire.camera.session import CameraSession
from segbatch.acquire.camera.status import CameraStatus
from segbatch.acquire.find import find_raw_files
from segbatch.errors import SettingsError
from tests.acquire.cameras import (
    ZELUX,
    camera_settings,
    camera_threads,
    frames_in,
    opened,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from segbatch.acquire.camera.core import Shot
    from segbatch.settings.sections import CameraSettings

# pycromanager's bridge leaves the closing of its sockets to the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed socket:ResourceWarning")
SERVER = Path(__file__).with_name("bridge_server.py")


def attached(**changes: object) -> CameraSettings:
    """Return settings that attach to whatever camera Micro-Manager has."""
    return camera_settings(**{"backend": "java", "device": "", "timeout_s": 5.0, **changes})


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def micro_manager(port: int, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run a Micro-Manager that answers at ``port``."""
    command = [sys.executable, str(SERVER), str(port), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            yield child
        finally:
            child.kill()


def test_a_run_over_the_bridge(tmp_path: Path) -> None:
    """Frames taken through a running Micro-Manager have their bit depth, gain and camera."""
    port = free_port()
    settings = attached(frames=6, exposure_ms=40.0, gain_db=2.0)
    with micro_manager(port):
        with opened(settings, port=port) as camera:
            record = Run(camera, settings, lambda: tmp_path).take(threading.Event())
        with opened(settings, port=port) as camera:  # Micro-Manager was left as it was
            assert camera.facts().gain == "2"
    frames = frames_in(find_raw_files(tmp_path))

    assert (record.backend, record.camera, record.device) == ("java", "Cam-1", "DemoCamera/DCam")
    assert (record.written, record.state) == (6, "complete")
    assert {frame.bit_depth for frame in frames} == {10}
    assert {frame.pixels.shape for frame in frames} == {(240, 320)}
    assert {frame.acquisition.gain_db for frame in frames} == {2.0}
    assert len({frame.pixels.tobytes() for frame in frames}) > 1
    assert camera_threads() == []


def test_by_the_clock_over_the_bridge(tmp_path: Path) -> None:
    """Single images at an interval come over the bridge too."""
    port = free_port()
    settings = attached(frames=2, interval_ms=100.0, device="DemoCamera/DCam")
    with micro_manager(port), opened(settings, port=port) as camera:
        assert Run(camera, settings, lambda: tmp_path).take(threading.Event()).written == 2


def test_refusals_over_the_bridge() -> None:
    """A camera that is not loaded, a missing property and a refused value are named."""
    port = free_port()
    with micro_manager(port):
        with pytest.raises(SettingsError, match="no such camera") as told:
            open_camera(attached(device="TSI/TSICam"), port=port)
        assert "DemoCamera/DCam (Cam-1)" in told.value.wanted
        settings = attached(trigger_mode="Software")
        with opened(settings, port=port) as camera:
            with pytest.raises(SettingsError, match="TriggerMode"):
                Run(camera, settings, Path).take(threading.Event())
            with pytest.raises(CameraError, match="asking: java") as refused:
                camera.calls.ask("asking", lambda: camera.core.api.getProperty("Cam-1", "No"))
            assert "\n" not in refused.value.got


def test_a_live_view_is_waited_for(tmp_path: Path) -> None:
    """While somebody else acquires the session waits, and does not stop them."""
    port = free_port()
    seen: list[CameraStatus] = []
    with micro_manager(port, "--busy"):
        session = CameraSession(
            attached(out=str(tmp_path)), lambda: seen.append(session.status), port=port
        )
        session.start()
        until(lambda: [each.state for each in seen].count("waiting") == 2, "waiting twice")
        assert session.stop(20)
        with (
            opened(attached(), port=port) as camera,
            pytest.raises(CameraBusyError),
        ):
            Run(camera, attached(), Path).take(threading.Event())
    assert list(tmp_path.iterdir()) == []
    assert "somebody else" in (next(each for each in seen if each.state == "waiting").error or "")


def test_a_sequence_that_was_left_behind_ends_by_itself(tmp_path: Path) -> None:
    """A sequence of ours that runs on in Micro-Manager ends at a full ring, and work goes on."""
    port = free_port()
    seen: list[CameraStatus] = []
    settings = attached(frames=3, properties=ZELUX, exposure_ms=2.0, out=str(tmp_path))
    with micro_manager(port):
        camera = open_camera(settings, port=port)
        apply(camera, settings)
        camera.start(10**6)
        camera.core.abandon()  # as after an answer that never came
        session = CameraSession(settings, lambda: seen.append(session.status), port=port)
        session.start()
        until(lambda: [each.state for each in seen[-1:]] == ["off"], "its frames")
        assert session.stop(20)
        camera.close()
    assert session.status.frames_written == 3
    until(lambda: not camera_threads(), "no thread left")


def test_micro_manager_goes_and_comes_back(tmp_path: Path) -> None:
    """When Micro-Manager is killed the session says so, and goes on with the next one."""
    port = free_port()
    seen: list[CameraStatus] = []
    settings = attached(frames=0, exposure_ms=40.0, timeout_s=5.0, out=str(tmp_path))
    session = CameraSession(settings, lambda: seen.append(session.status), port=port)
    with micro_manager(port):
        session.start()
        until(lambda: session.status.frames_written > 3, "frames")
    until(lambda: session.status.state == "failed", "the failure")
    assert "does not answer" in (session.status.error or "")
    until(lambda: "nothing listens" in (session.status.error or ""), "nobody there")
    with micro_manager(port):
        before = session.status.frames_written
        until(lambda: session.status.frames_written > before + 3, "frames again")
        assert session.stop(20)
    until(lambda: not camera_threads(), "no thread left")

    assert len(list(tmp_path.iterdir())) == 2
    assert len(find_raw_files(tmp_path)) == session.status.frames_written


@pytest.mark.parametrize("dies_first", [False, True])
def test_the_garbage_collector_never_waits_for_micro_manager(dies_first: bool) -> None:
    """What is left of a camera can be thrown away in any thread when Micro-Manager is gone."""
    port = free_port()
    settings = attached(timeout_s=1.0)
    with micro_manager(port) as server:
        camera = open_camera(settings, port=port)
        ask = partial(camera.core.api.getDevicePropertyNames, camera.label)
        ring: list[object] = [camera.calls.ask("asking", ask)]
        ring.append(ring)
        if dies_first:
            server.kill()
            with pytest.raises(CameraSilentError):
                camera.facts()
        camera.close()
    del ring, camera, ask
    collecting = threading.Thread(target=gc.collect, daemon=True)
    collecting.start()
    collecting.join(30)
    assert not collecting.is_alive()
    until(lambda: not camera_threads(), "no thread left")


def test_frames_over_the_bridge_leave_nothing_behind() -> None:
    """However many images were taken, of Micro-Manager's objects only the core is held."""
    port = free_port()
    settings = attached(frames=12)
    with micro_manager(port), opened(settings, port=port) as camera:
        camera.start(12)
        shots: list[Shot] = []

        def all_came() -> bool:
            shots.extend(camera.drain(4).shots)
            return len(shots) == 12

        until(all_came, "all frames")
        assert isinstance(camera.core, JavaCore)
        assert camera.core._objects == {camera.core.api}


def test_nobody_listens() -> None:
    """Where no Micro-Manager runs the error says how to start its server."""
    with pytest.raises(CameraError, match="nothing listens") as told:
        open_camera(attached(), port=free_port())

    assert "Run server on port" in told.value.remedy


def test_somebody_listens_and_does_not_answer() -> None:
    """Something else at Micro-Manager's port is an error in time."""
    with socket.create_server(("127.0.0.1", 0)) as dumb, pytest.raises(CameraSilentError):
        open_camera(attached(timeout_s=0.5), port=dumb.getsockname()[1])


def test_the_backend_is_found_out() -> None:
    """``auto`` takes a Micro-Manager that runs, and else starts the core here."""
    port = free_port()
    with opened(camera_settings(backend="auto"), port=port) as camera:
        assert camera.facts().backend == "python"
    with micro_manager(port), opened(attached(backend="auto"), port=port) as camera:
        assert camera.facts().backend == "java"
