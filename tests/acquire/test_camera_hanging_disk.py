"""A disk that hangs, as a frozen file system does: what is waited for is told, and since when."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from segbatch.acquire.camera import waits as waits_module
from segbatch.acquire.camera.session import CameraSession
from segbatch.acquire.camera.status import CameraStatus
from segbatch.acquire.camera.waits import DiskWaits
from segbatch.acquire.find import find_raw_files
from tests.acquire.cameras import camera_settings, until

if TYPE_CHECKING:
    from collections.abc import Iterator

SINCE = r"waiting since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00 for the disk of "


class HangingDisk:
    """A small disk that can be made to hang: whoever changes anything on it waits."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def hang(self) -> None:
        """Have everybody wait from now on who changes anything."""
        subprocess.run(["fsfreeze", "--freeze", str(self.place)], check=True)

    def go_on(self) -> None:
        """Let all go on that waits."""
        subprocess.run(["fsfreeze", "--unfreeze", str(self.place)], check=False)


@contextlib.contextmanager
def hanging_disk(folder: Path) -> Iterator[HangingDisk]:
    """Mount a small disk; skip the test where that is not allowed."""
    tools = ("mkfs.ext4", "fsfreeze", "mount", "umount")
    if os.name == "nt" or os.geteuid() != 0 or not all(map(shutil.which, tools)):
        pytest.skip("mounting a disk that hangs needs root")
    image, place = folder / "disk.img", folder / "disk"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    place.mkdir()
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    mounted = subprocess.run(
        ["mount", "-o", "loop", str(image), str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file can be mounted as a disk here")
    disk = HangingDisk(place)
    try:
        yield disk
    finally:
        disk.go_on()
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def told(session: CameraSession, wait: str) -> CameraStatus:
    """Wait until a status says what the disk is waited for; return it."""
    seen: list[CameraStatus] = []
    until(lambda: seen.append(session.status) or wait in (seen[-1].error or ""), wait)
    return seen[-1]


def takes_frames(status: CameraStatus) -> bool:
    """Tell whether frames are taken and nothing is waited for."""
    return status.frames_written > 9 and (status.state, status.error) == ("acquiring", None)


def test_a_disk_that_hangs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a folder or a frame is waited for, the status says so, until the disk goes on."""
    monkeypatch.setattr(waits_module, "TELL_AFTER_S", 0.5)
    with hanging_disk(tmp_path) as disk:
        out = disk.place / "runs"
        out.mkdir()
        settings = camera_settings(frames=0, exposure_ms=20.0, out=str(out), timeout_s=60.0)
        session = CameraSession(settings, lambda: None)
        disk.hang()
        session.start()
        try:
            begins = told(session, "to begin a run's folder")
            disk.go_on()
            until(lambda: takes_frames(session.status), "frames, and no wait")
            disk.hang()
            writes = told(session, "to write frames or records")
            disk.go_on()
            until(lambda: session.status.error is None, "the end of the wait")
            written = session.status.frames_written
            until(lambda: session.status.frames_written > written, "more frames")
        finally:
            disk.go_on()
            assert session.stop(30)
        status = session.status
        assert status.frames_taken == status.frames_written == len(find_raw_files(out))

    assert (begins.state, begins.frames_taken) == ("connecting", 0)
    assert re.fullmatch(SINCE + f"{out} to begin a run's folder", begins.error or "")
    assert writes.state == "acquiring"
    assert re.fullmatch(SINCE + f"{out} to write frames or records", writes.error or "")


def test_what_was_asked_first_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several questions the oldest is told, and none that the disk has done."""
    monkeypatch.setattr(waits_module, "TELL_AFTER_S", 0.0)
    waits = DiskWaits()
    told = []
    with waits.on("to write a frame"):
        with waits.on("to make a folder"):
            told.append(waits.told("here"))
        told.append(waits.told("here"))
    monkeypatch.setattr(waits_module, "TELL_AFTER_S", 1e9)
    with waits.on("to write a frame"):
        told.append(waits.told("here"))

    assert told[0] == told[1]
    assert re.fullmatch(SINCE + "here to write a frame", told[0] or "")
    assert told[2] is waits.told("here") is None
