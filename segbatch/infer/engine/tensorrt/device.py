"""Memory, copies and their order on a GPU: what the ring of buffers needs, and nothing else.

``CudaDevice`` is the one place where CUDA is called. It speaks to the driver itself through
cuda-bindings, not to the CUDA runtime: a runtime has to match the driver (one of CUDA 13 refuses
drivers before 580), while the driver's own calls are the same in all of them. TensorRT works in
the GPU's primary context, and so do these buffers.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from segbatch.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


class DeviceMemoryError(EngineError):
    """The GPU, or what can be pinned of the machine's memory, has no room left."""


class Device(Protocol):
    """Memory, streams and events of one GPU, all given back by ``close``.

    A stream does what it is given in the order it was given; an event marks a place in a stream
    for another stream, or a thread, to wait for. Addresses, streams and events are numbers.
    """

    def use(self) -> None:
        """Make the GPU the calling thread's; before any other call in that thread."""
        ...

    def pinned(self, size_bytes: int) -> NDArray[np.uint8]:
        """Return host memory that the GPU copies to and from by itself, zeroed."""
        ...

    def allocate(self, size_bytes: int) -> int:
        """Return the address of memory of the GPU."""
        ...

    def stream(self) -> int:
        """Return a new stream."""
        ...

    def event(self) -> int:
        """Return a new event."""
        ...

    def upload(self, address: int, source: NDArray[np.uint8], stream: int) -> None:
        """Copy pinned memory to the GPU when ``stream`` comes to it."""
        ...

    def download(self, target: NDArray[np.uint8], address: int, stream: int) -> None:
        """Copy to pinned memory from the GPU when ``stream`` comes to it."""
        ...

    def record(self, event: int, stream: int) -> None:
        """Mark with ``event`` all that ``stream`` was given so far."""
        ...

    def wait(self, stream: int, event: int) -> None:
        """Let ``stream`` go on only when what ``event`` marks is done."""
        ...

    def finish(self, event: int) -> None:
        """Wait until what ``event`` marks is done."""
        ...

    def drain(self, stream: int) -> None:
        """Wait until ``stream`` has nothing left to do."""
        ...

    def close(self) -> None:
        """Give everything back, the last that was made first."""
        ...


class CudaDevice:
    """The first GPU that the driver shows; see ``Device``.

    Raises
    ------
    EngineError
        A call failed; the error of CUDA is named.
    DeviceMemoryError
        There is no room left.
    """

    def __init__(self) -> None:
        from cuda.bindings import driver

        self._driver: Any = driver
        self._undo: list[Callable[[], object]] = []
        self._call(driver.cuInit, 0)
        gpu = self._call(driver.cuDeviceGet, 0)
        self._context = self._call(driver.cuDevicePrimaryCtxRetain, gpu)
        self._undo.append(lambda: driver.cuDevicePrimaryCtxRelease(gpu))
        self.use()

    def use(self) -> None:
        """Make the GPU the calling thread's."""
        self._call(self._driver.cuCtxSetCurrent, self._context)

    def pinned(self, size_bytes: int) -> NDArray[np.uint8]:
        """Return page-locked host memory, zeroed."""
        address = int(self._call(self._driver.cuMemHostAlloc, size_bytes, 0))
        self._undo.append(lambda: self._driver.cuMemFreeHost(address))
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))
        memory[...] = 0
        return memory

    def allocate(self, size_bytes: int) -> int:
        """Return the address of memory of the GPU, aligned to 256 bytes."""
        pointer = self._call(self._driver.cuMemAlloc, size_bytes)
        self._undo.append(lambda: self._driver.cuMemFree(pointer))
        return int(pointer)

    def stream(self) -> int:
        """Return a stream that does not wait for the default one."""
        flags = self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        made = self._call(self._driver.cuStreamCreate, int(flags))
        self._undo.append(lambda: self._driver.cuStreamDestroy(made))
        return int(made)

    def event(self) -> int:
        """Return an event for which threads sleep: a spinning one takes a core from the host."""
        flags = self._driver.CUevent_flags
        both = int(flags.CU_EVENT_BLOCKING_SYNC) | int(flags.CU_EVENT_DISABLE_TIMING)
        made = self._call(self._driver.cuEventCreate, both)
        self._undo.append(lambda: self._driver.cuEventDestroy(made))
        return int(made)

    def upload(self, address: int, source: NDArray[np.uint8], stream: int) -> None:
        """Copy pinned memory to the GPU."""
        self._call(
            self._driver.cuMemcpyHtoDAsync, address, source.ctypes.data, source.nbytes, stream
        )

    def download(self, target: NDArray[np.uint8], address: int, stream: int) -> None:
        """Copy to pinned memory from the GPU."""
        self._call(
            self._driver.cuMemcpyDtoHAsync, target.ctypes.data, address, target.nbytes, stream
        )

    def record(self, event: int, stream: int) -> None:
        """Mark all that ``stream`` was given so far."""
        self._call(self._driver.cuEventRecord, event, stream)

    def wait(self, stream: int, event: int) -> None:
        """Let ``stream`` wait for ``event``."""
        self._call(self._driver.cuStreamWaitEvent, stream, event, 0)

    def finish(self, event: int) -> None:
        """Sleep until ``event`` has come."""
        self._call(self._driver.cuEventSynchronize, event)

    def drain(self, stream: int) -> None:
        """Wait until ``stream`` has nothing left to do."""
        self._call(self._driver.cuStreamSynchronize, stream)

    def close(self) -> None:
        """Give everything back; errors are of no use to anyone by then."""
        if self._undo:
            self.use()
        while self._undo:
            self._undo.pop()()

    def _call(self, function: Any, *arguments: Any) -> Any:
        """Call the driver and return what it returns besides its status."""
        status, *found = function(*arguments)
        if status == self._driver.CUresult.CUDA_SUCCESS:
            return found[0] if found else None
        message = f"CUDA: {function.__name__} answered {status.name}"
        if status == self._driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise DeviceMemoryError(
                message,
                "room on the GPU for the engine and its buffers",
                "close what else uses the GPU (nvidia-smi), or export with a smaller --frame-shape",
            )
        raise EngineError(
            message, "a GPU that works", "see what nvidia-smi and the kernel's log say"
        )
