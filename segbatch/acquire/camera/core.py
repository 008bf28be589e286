"""The two ways to Micro-Manager's core, made alike: in this process, or over the Java bridge.

Both have the same functions under the same names (``CMMCore``); what differs
is how they return lists, rectangles and images. Everything here runs in the
thread of ``CoreCalls``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from segbatch.acquire.camera.errors import CameraError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Shot:
    """One image as the core gave it: (Y, X) counts, uint8 or uint16, and its tags."""

    pixels: NDArray[np.uint8 | np.uint16]
    tags: Mapping[str, Any]


class Core(ABC):
    """Micro-Manager's core; ``api`` has the functions of ``CMMCore`` under their own names."""

    backend: str

    def __init__(self, api: Any) -> None:
        self.api = api

    @abstractmethod
    def texts(self, vector: Any) -> list[str]:
        """Return a vector of strings as a list."""

    @abstractmethod
    def roi(self, camera: str) -> tuple[int, int, int, int]:
        """Return x, y, width and height in pixels."""

    @abstractmethod
    def pop(self) -> Shot:
        """Take the oldest image out of the ring buffer."""

    @abstractmethod
    def snapped(self) -> Shot:
        """Return the image that ``snapImage`` took."""

    @abstractmethod
    def let_go(self) -> None:
        """Leave the core: unload what we loaded, leave alone what is somebody else's."""

    def abandon(self) -> None:  # noqa: B027 - a call inside this process cannot be cut off
        """Cut off a call that never returns, where that is possible."""


class PythonCore(Core):
    """The core in this process (package pymmcore, pycromanager's Python backend)."""

    backend = "python"

    def texts(self, vector: Any) -> list[str]:
        """Return the list."""
        return [str(item) for item in vector]

    def roi(self, camera: str) -> tuple[int, int, int, int]:
        """Return x, y, width and height in pixels."""
        x, y, width, height = self.api.getROI(camera)
        return int(x), int(y), int(width), int(height)

    def pop(self) -> Shot:
        """Take the oldest image out of the ring buffer."""
        import pymmcore

        tags = pymmcore.Metadata()
        pixels = self.api.popNextImageMD(tags)
        return Shot(pixels, {key: tags.GetSingleTag(key).GetValue() for key in tags.GetKeys()})

    def snapped(self) -> Shot:
        """Return the image that ``snapImage`` took."""
        return Shot(self.api.getImage(), {})

    def let_go(self) -> None:
        """Unload what this process loaded."""
        self.api.unloadAllDevices()


class JavaCore(Core):
    """The core of a running Micro-Manager, over pycromanager's bridge to Java.

    An object of the bridge that ends in the garbage collector asks Micro-Manager
    to forget it, in whatever thread that happens to be, and waits for the answer
    for ever. So all of them are held here, and parted with in the core's thread.
    """

    backend = "java"

    def __init__(self, port: int) -> None:
        super().__init__(None)
        self._port = port
        self._bridge: Any = None
        self._objects: set[Any] = set()

    def connect(self, timeout_s: float) -> None:
        """Reach the Micro-Manager that runs."""
        import pyjavaz.bridge
        from pycromanager import Core as BridgeCore

        bridges, port = pyjavaz.bridge.Bridge, self._port
        # A bridge whose server went away waits for its answer for ever, and is handed out again
        # to whoever asks for this port; the package has no other way to part with it.
        bridges._cached_bridges_by_port.pop(port, None)
        bridges._ports_with_terminated_servers.discard(port)
        # Every object registers a function for the exit of the program and never takes it back:
        # two a frame, for weeks.
        pyjavaz.bridge.atexit = _NothingAtExit
        options = {"port": port, "convert_camel_case": False, "timeout": int(1000 * timeout_s)}
        self._bridge = bridges.create_or_get_existing_bridge(**options)
        self._bridge._java_objects = self._objects
        self.api = BridgeCore(**options)

    def texts(self, vector: Any) -> list[str]:
        """Return the list."""
        with self._passing():
            return [str(vector.get(index)) for index in range(vector.size())]

    def roi(self, camera: str) -> tuple[int, int, int, int]:
        """Return x, y, width and height in pixels."""
        with self._passing():
            found = self.api.getROI(camera)
            return int(found.x), int(found.y), int(found.width), int(found.height)

    def pop(self) -> Shot:
        """Take the oldest image out of the ring buffer."""
        with self._passing():
            return _untag(self.api.popNextTaggedImage())

    def snapped(self) -> Shot:
        """Return the image that ``snapImage`` took."""
        with self._passing():
            return _untag(self.api.getTaggedImage())

    def let_go(self) -> None:
        """Give the bridge back; the running Micro-Manager stays as it is."""
        for remote in list(self._objects):
            self._forget(remote)  # the bridge closes with its last object

    def abandon(self) -> None:
        """End the wait for a Micro-Manager that is gone.

        The bridge waits for every answer for ever, and again when its objects
        are cleared away; only these marks make it give up.
        """
        from pyjavaz import server_terminated

        server_terminated(self._port)
        for remote in list(self._objects):
            remote._closed = True
        if self._bridge is not None:
            self._bridge._closed = True
            self._bridge._shutdown_event.set()

    @contextmanager
    def _passing(self) -> Iterator[None]:
        """Part with the objects that a question brought."""
        try:
            yield
        finally:
            for remote in [each for each in self._objects if each is not self.api]:
                self._forget(remote)

    def _forget(self, remote: Any) -> None:
        try:
            remote._close()
        finally:
            remote._closed = True
            self._objects.discard(remote)


class _NothingAtExit:
    """Stands for ``atexit`` where objects are parted with by hand."""

    @staticmethod
    def register(_: object) -> None:
        """Leave it."""


def _untag(tagged: Any) -> Shot:
    tags = tagged.tags
    pixels, height, width = tagged.pix, int(tags["Height"]), int(tags["Width"])
    if pixels.size != height * width:
        raise CameraError(
            f"an image of {pixels.size} samples", f"{width} x {height} counts", "PixelType 16bit"
        )
    return Shot(pixels.reshape(height, width), tags)
