"""The camera of the tests: Micro-Manager's own simulated one, in its own core."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from segbatch.acquire.camera.apart import CHILD
from segbatch.acquire.camera.door import open_camera
from segbatch.acquire.source import open_source
from segbatch.settings.sections import CameraSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from segbatch.acquire.camera.camera import Camera
    from segbatch.frame import Frame

DEVICE = "DemoCamera/DCam"
ZELUX = {
    "OnCameraCCDXSize": 1440,
    "OnCameraCCDYSize": 1080,
    "PixelType": "16bit",
    "BitDepth": 10,
    "Mode": "Fluorescent Beads",
}
SMALL = ZELUX | {"OnCameraCCDXSize": 320, "OnCameraCCDYSize": 240, "Mode": "Artificial Waves"}


def camera_settings(**changes: Any) -> CameraSettings:
    """Return settings for a small, fast, 10-bit camera, with ``changes``."""
    small = CameraSettings(
        backend="python", device=DEVICE, exposure_ms=5.0, frames=20, properties=dict(SMALL)
    )
    return msgspec.structs.replace(small, **changes)


@contextlib.contextmanager
def opened(settings: CameraSettings, **how: Any) -> Iterator[Camera]:
    """Open the camera, and close it in any case."""
    camera = open_camera(settings, **how)
    try:
        yield camera
    finally:
        assert camera.close()


def frames_in(raws: list[Path]) -> list[Frame]:
    """Read every frame of the raw files, in their order, as the pipeline would."""
    frames = []
    for raw in raws:
        with open_source(raw, bit_depth=None, profile="16bit", max_file_gib=1.0) as source:
            frames += [source.read(page) for page in range(source.frame_count)]
    return frames


def until(true: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not so in {seconds} s: {what}"
        time.sleep(0.01)


def camera_threads() -> list[str]:
    """Return the names of the camera's threads that are alive."""
    return [each.name for each in threading.enumerate() if each.name.startswith("camera-")]


def camera_pids(owner: int, module: str = CHILD) -> list[int]:
    """Return the processes that drive a camera, or run another module, for ``owner``."""
    found = []
    for children in Path("/proc").glob(f"{owner}/task/*/children"):
        for pid in children.read_text().split():
            with contextlib.suppress(OSError):
                if module in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                    found.append(int(pid))
    return found


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended; it may wait to be asked how."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
