"""An open camera: every question has its time limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from segbatch.acquire.camera.errors import CameraError, CameraSilentError
from segbatch.log import get_logger

if TYPE_CHECKING:
    from segbatch.acquire.camera.calls import CoreCalls
    from segbatch.acquire.camera.core import Core, Shot

WITHOUT_END = 2**31 - 1  # the most images that a sequence can be asked for
_logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Facts:
    """What does not change during a run.

    ``gain`` is as the camera says it, None where it has none;
    ``pixel_size_um`` is 0 where Micro-Manager was not calibrated.
    """

    label: str
    library: str
    device: str
    backend: str
    bit_depth: int
    width: int
    height: int
    bytes_per_pixel: int
    exposure_ms: float
    gain: str | None
    binning: str | None
    pixel_size_um: float
    roi_px: tuple[int, int, int, int]
    hardware_triggered: bool


@dataclass(slots=True)
class Batch:
    """What the ring buffer gave, and its state after that.

    ``running`` is the camera's state before anything was taken out, so that a
    batch with nothing left and a camera at rest is the last one.
    """

    running: bool
    shots: list[Shot] = field(default_factory=list)
    left: int = 0
    capacity: int = 0
    overflowed: bool = False


class Camera:
    """A camera that answers through Micro-Manager's core; close it after use.

    Made by ``door.open_camera``. Every method raises ``CameraError`` where
    Micro-Manager refuses and ``CameraSilentError`` where it does not answer.
    """

    def __init__(
        self, core: Core, calls: CoreCalls, label: str, let_go: Callable[[], None]
    ) -> None:
        self.core = core
        self.calls = calls
        self.label = label
        self._let_go = let_go
        self._ours = False

    def facts(self) -> Facts:
        """Ask for what the frames will be like."""
        return self.calls.ask("asking for the image's format", self._facts)

    def _facts(self) -> Facts:
        core, api, label = self.core, self.core.api, self.label
        if (parts := int(api.getNumberOfComponents())) != 1:
            raise CameraError(
                f"camera {label} gives {parts} components a pixel",
                "a monochrome image",
                "set its PixelType to a grey one, such as 16bit",
            )
        names = core.texts(api.getDevicePropertyNames(label))

        def value(name: str) -> str | None:
            return str(api.getProperty(label, name)) if name in names else None

        trigger = (value("TriggerMode") or "").casefold()
        return Facts(
            label=label,
            library=api.getDeviceLibrary(label),
            device=api.getDeviceName(label),
            backend=core.backend,
            bit_depth=int(api.getImageBitDepth()),
            width=int(api.getImageWidth()),
            height=int(api.getImageHeight()),
            bytes_per_pixel=int(api.getBytesPerPixel()),
            exposure_ms=float(api.getExposure(label)),
            gain=value("Gain"),
            binning=value("Binning"),
            pixel_size_um=float(api.getPixelSizeUm()),
            roi_px=core.roi(label),
            hardware_triggered=trigger.startswith(("hardware", "external", "edge", "level")),
        )

    def busy(self) -> bool:
        """Tell whether a sequence is under way that we did not start."""
        return not self._ours and self.calls.ask(
            "asking whether it is acquiring", lambda: bool(self.core.api.isSequenceRunning())
        )

    @property
    def has_started(self) -> bool:
        """Whether the sequence, and what is in the ring buffer, is ours."""
        return self._ours

    def start(self, frames: int) -> None:
        """Start a sequence of ``frames`` images; it stops when the ring buffer is full.

        The other way, the core would clear the whole ring without a word.
        """
        self._ours = True  # before the answer: if that comes too late, the sequence still runs
        try:
            self.calls.ask(
                "starting the sequence",
                lambda: self.core.api.startSequenceAcquisition(min(frames, WITHOUT_END), 0.0, True),
            )
        except CameraSilentError:
            raise
        except CameraError:
            self._ours = False  # refused: what runs now, if anything, is somebody else's
            raise

    def stop(self) -> None:
        """Stop the sequence that we started."""
        if self._ours:
            self.calls.ask("stopping the sequence", self.core.api.stopSequenceAcquisition)
            self._ours = False

    def drain(self, limit: int) -> Batch:
        """Take at most ``limit`` images out of the ring buffer."""
        return self.calls.ask("taking images out of the ring buffer", lambda: self._drain(limit))

    def _drain(self, limit: int) -> Batch:
        api = self.core.api
        batch = Batch(running=bool(api.isSequenceRunning()))
        try:
            while len(batch.shots) < limit and int(api.getRemainingImageCount()) > 0:
                batch.shots.append(self.core.pop())
        except Exception as error:
            if not batch.shots:
                raise
            # What was taken out is handed on; the next question meets the error again.
            _logger.warning("ring buffer broke off", error=str(error).splitlines()[0])
        batch.left = int(api.getRemainingImageCount())
        batch.capacity = int(api.getBufferTotalCapacity())
        batch.overflowed = bool(api.isBufferOverflowed())
        return batch

    def snap(self, exposure_ms: float) -> Shot:
        """Expose one image and return it."""

        def expose() -> Shot:
            self.core.api.snapImage()
            return self.core.snapped()

        return self.calls.ask("taking one image", expose, extra_s=exposure_ms / 1000)

    def close(self) -> bool:
        """Leave the camera; return whether it let go in time."""
        if self.calls.silent:
            self.core.abandon()
        if self.calls.end(self._leave):
            return True
        self.core.abandon()
        return False

    def _leave(self) -> None:
        try:
            if self._ours:
                self.core.api.stopSequenceAcquisition()
        finally:
            self._let_go()
