"""Memory for frames that other processes see too, so that nothing is copied to them."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

# A larger frame is measured where it is: that takes the time of many short calls anyway.
PLACE_BYTES = 1 << 25


class SharedFrames:
    """Places for frames in memory that ``descriptor`` names; Linux only.

    A place is free again when the last array on it is gone. What was never
    written to takes no memory, and the place that was freed last is taken
    first, so there is as much memory in use as frames were under way at once.

    Parameters
    ----------
    places
        Frames that there is room for at once, of up to 32 MiB each.

    Raises
    ------
    OSError
        The system gives no such memory.
    """

    def __init__(self, places: int) -> None:
        self.descriptor = os.memfd_create("segbatch-frames")
        try:
            os.ftruncate(self.descriptor, places * PLACE_BYTES)
            self._memory = mmap.mmap(self.descriptor, places * PLACE_BYTES)
        except OSError:
            os.close(self.descriptor)
            raise
        self._start = ctypes.addressof(ctypes.c_ubyte.from_buffer(self._memory))
        self._size = len(self._memory)
        self._free = list(range(places))
        self._taking = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return what ``numpy.empty`` does, in shared memory if there is a free place for it."""
        kind = np.dtype(dtype)
        count = math.prod(shape)
        place = self._take() if 0 < count * kind.itemsize <= PLACE_BYTES else None
        if place is None:
            return np.empty(shape, kind)
        try:
            block = (ctypes.c_ubyte * PLACE_BYTES).from_buffer(self._memory, place * PLACE_BYTES)
        except ValueError:  # closed meanwhile
            return np.empty(shape, kind)
        # Appended without the lock: the collector may run this in a thread that holds it.
        weakref.finalize(block, self._free.append, place).atexit = False
        pixels: NDArray[Any] = np.frombuffer(memoryview(block), kind, count).reshape(shape)
        return pixels

    def offset_of(self, pixels: NDArray[Any]) -> int | None:
        """Return where in the memory an array begins, in bytes; None where it lies elsewhere."""
        offset = pixels.__array_interface__["data"][0] - self._start
        inside = 0 <= offset < self._size and pixels.flags.c_contiguous
        return offset if inside else None

    def close(self) -> None:
        """Lend no more; the memory goes at once, or with this object and the last array on it."""
        with self._taking:
            self._free = []
            descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
            with suppress(BufferError):
                self._memory.close()

    def _take(self) -> int | None:
        with self._taking:
            return self._free.pop() if self._free else None
