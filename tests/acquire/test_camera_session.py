"""The service's camera: every failure is a state that passes, and nothing is left behind."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from segbatch.acquire.camera.calls import CoreCalls
from segbatch.acquire.camera.door import open_camera
from segbatch.acquire.camera.errors import CameraError, CameraSilentError
from segbatch.acquire.camera.session import CameraSession
from segbatch.acquire.camera.status import CameraStatus
from segbatch.acquire.find import find_raw_files
from segbatch.errors import SettingsError
from tests.acquire.cameras import camera_settings, camera_threads, opened, until

if TYPE_CHECKING:
    from pathlib import Path

    from segbatch.settings.sections import CameraSettings


class Driven:
    """A session and all the states it went through."""

    def __init__(self, settings: CameraSettings) -> None:
        self.seen: list[CameraStatus] = []
        self.settings = settings
        self.session = CameraSession(settings, self.note)

    def note(self) -> None:
        """Keep the status after each change."""
        self.seen.append(self.session.status)

    @property
    def states(self) -> list[str]:
        """The states in their order, each once."""
        states = [status.state for status in self.seen]
        return [one for i, one in enumerate(states) if not i or one != states[i - 1]]


def test_a_session_takes_its_frames_and_ends(tmp_path: Path) -> None:
    """A session with a number of frames takes them, is off then, and leaves no thread."""
    driven = Driven(camera_settings(frames=12, out=str(tmp_path)))
    driven.session.start()
    until(lambda: driven.states[-1:] == ["off"], "the end")

    assert driven.session.stop(20)
    status = driven.session.status
    assert driven.states == ["connecting", "acquiring", "off"]
    assert (status.frames_taken, status.frames_written, status.error) == (12, 12, None)
    assert len(find_raw_files(tmp_path)) == 12
    assert camera_threads() == []


def test_a_session_is_stopped_in_the_middle(tmp_path: Path) -> None:
    """A session without end stops when told, keeps its frames, and can be followed by another."""
    for number in (1, 2):
        driven = Driven(camera_settings(frames=0, out=str(tmp_path)))
        driven.session.start()
        until(lambda driven=driven: driven.session.status.frames_written > 5, "frames")
        assert driven.session.stop(20)
        assert driven.session.status.state == "off"
        assert len(list(tmp_path.iterdir())) == number
        assert camera_threads() == []


def test_a_session_that_is_asked_to_stop_ends_by_itself(tmp_path: Path) -> None:
    """Asked to stop, twice and by its own thread, a session ends its run; waiting comes later."""
    driven = Driven(camera_settings(frames=0, out=str(tmp_path)))

    def ask() -> None:
        driven.note()
        if driven.session.status.frames_written > 5:
            driven.session.ask_to_stop()
            driven.session.ask_to_stop()

    driven.session = CameraSession(driven.settings, ask)
    driven.session.start()
    until(lambda: driven.states[-1:] == ["off"], "the end")

    assert driven.session.stop(20)
    assert driven.session.status.frames_written == driven.session.status.frames_taken > 5
    assert len(find_raw_files(tmp_path)) == driven.session.status.frames_taken
    assert camera_threads() == []


def test_a_session_that_was_never_started_can_be_stopped() -> None:
    """Asking and stopping are answered before there is anything to stop."""
    driven = Driven(camera_settings())
    driven.session.ask_to_stop()

    assert driven.session.stop(0)


def test_a_failure_is_a_state_that_passes(tmp_path: Path) -> None:
    """Where the folder cannot be made the session says so, tries again, and recovers."""
    out = tmp_path / "runs"
    out.write_text("a file stands where the folder should be")
    driven = Driven(camera_settings(frames=4, out=str(out)))
    driven.session.start()
    until(lambda: "failed" in driven.states, "the failure")
    failed = next(status for status in driven.seen if status.state == "failed")
    out.unlink()
    until(lambda: driven.states[-1] == "off", "the end")

    assert driven.session.stop(20)
    assert str(out) in (failed.error or "")
    assert failed.retry_in_s is not None
    assert 0 < failed.retry_in_s <= 1
    assert driven.session.status.frames_written == 4
    assert driven.session.status.retry_in_s is None


def test_retries_come_later_and_later(tmp_path: Path) -> None:
    """A camera that is not there is tried again after 1 s, then after 2 s."""
    driven = Driven(camera_settings(device="DemoCamera/Nothing", out=str(tmp_path)))
    driven.session.start()
    until(lambda: driven.states.count("failed") == 2, "two failures")
    assert driven.session.stop(20)

    waits = [status.retry_in_s for status in driven.seen if status.state == "failed"]
    assert waits == [1.0, 2.0]
    assert "Nothing" in (driven.seen[1].error or "")
    assert list(tmp_path.iterdir()) == []
    assert camera_threads() == []


def test_a_refused_property_is_a_state(tmp_path: Path) -> None:
    """A property that the camera does not have is named in the status."""
    driven = Driven(camera_settings(trigger_mode="Software", out=str(tmp_path)))
    driven.session.start()
    until(lambda: "failed" in driven.states, "the failure")
    assert driven.session.stop(20)

    failed = next(status for status in driven.seen if status.state == "failed")
    assert "TriggerMode" in (failed.error or "")


def test_a_core_that_hangs_is_left_behind_and_taken_back() -> None:
    """A core that does not answer is an error in time; it can be opened again when it does."""
    settings = camera_settings()
    camera = open_camera(settings)
    api = camera.core.api
    camera.calls.timeout_s = 0.5
    with pytest.raises(CameraSilentError, match="sleeping"):
        camera.calls.ask("sleeping", lambda: api.sleep(3000))
    with pytest.raises(CameraSilentError):
        camera.facts()
    assert not camera.close()
    with pytest.raises(CameraSilentError, match="still hangs: sleeping"):
        open_camera(settings)

    until(lambda: not camera_threads(), "the core's return")
    with opened(settings) as again:
        assert again.facts().label == "DCam"


def test_one_process_drives_one_camera() -> None:
    """A second camera in the same process is refused while the first is open."""
    with (
        opened(camera_settings()),
        pytest.raises(CameraError, match="drives a camera already"),
    ):
        open_camera(camera_settings())


def test_questions_are_answered_in_one_thread() -> None:
    """Answers and errors come back to whoever asked, whichever thread that is."""
    calls = CoreCalls(5.0)
    names: list[str] = []

    def ask() -> None:
        names.append(calls.ask("name", lambda: threading.current_thread().name))

    asking = [threading.Thread(target=ask) for _ in range(4)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    with pytest.raises(CameraError, match="dividing"):
        calls.ask("dividing", lambda: 1 // 0)

    assert calls.end(lambda: None)
    assert names == ["camera-core"] * 4


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"device": ""}, "LIBRARY/DEVICE"),
        ({"device": "DCam"}, "LIBRARY/DEVICE"),
        ({"config_file": "/nowhere/at.cfg"}, "hardware configuration"),
        ({"micro_manager_dir": "/nowhere"}, "device adapters"),
        ({"config_file": "MMConfig_demo.cfg", "device": "Other/Cam"}, "DemoCamera/DCam"),
    ],
)
def test_settings_that_name_no_camera_are_refused(changes: dict[str, str], word: str) -> None:
    """What names no camera is refused with what would."""
    with pytest.raises(SettingsError) as told:
        open_camera(camera_settings(**changes))

    assert word in told.value.wanted
    until(lambda: not camera_threads(), "no thread left")


def test_a_configuration_file_is_loaded() -> None:
    """A Micro-Manager configuration names the camera, its devices and its roles."""
    with opened(camera_settings(config_file="MMConfig_demo.cfg", device="")) as camera:
        assert camera.facts().device == "DCam"
        assert camera.label == "Camera"
