"""Buffers that are used again and again, and the order in which a GPU uses them.

Each slot has an input and outputs on the GPU and in pinned host memory. Three streams are
shared by all slots, one for each direction of the bus and one for computing::

    upload    [0][1][2]   [0]...
    compute      [  0  ][  1  ][  2  ]...
    download            [0]    [1]...

so that while one slot computes another is filled and a third is read. Events keep the order
within a slot; between slots nothing is shared but the GPU's scratch memory, which only the
computing stream touches.

What a caller sees of the outputs is read-only: there are users who scale an output in place, and
the next one to use the buffer would find it scaled.
"""

from __future__ import annotations

import math
import queue
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from segbatch.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from segbatch.infer.engine.tensorrt.device import Device


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of a program: its name, shape, and type of numbers."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


class Program(Protocol):
    """What is computed: one input, some outputs, at addresses that never change."""

    @property
    def input(self) -> Tensor:
        """What is filled."""
        ...

    @property
    def outputs(self) -> Sequence[Tensor]:
        """What can be read."""
        ...

    def bind(self, addresses: dict[str, int]) -> Callable[[int], None]:
        """Return what gives the computation on these addresses, by name, to a stream."""
        ...


class Slot:
    """One place in the ring: fill ``input``, call ``run``.

    ``input`` is pinned memory of the program's input shape.
    """

    def __init__(self, ring: Ring) -> None:
        device, program = ring.device, ring.program
        self._ring = ring
        self._uploaded, self._computed, self._done = (device.event() for _ in range(3))
        tensors = (program.input, *program.outputs)
        self._at = {each.name: device.allocate(each.size_bytes) for each in tensors}
        self._pinned = {each.name: device.pinned(each.size_bytes) for each in tensors}
        self._seen = {each.name: _view(self._pinned[each.name], each) for each in program.outputs}
        for array in self._seen.values():
            array.flags.writeable = False
        self.input: NDArray[Any] = _view(self._pinned[program.input.name], program.input)
        self._launch = program.bind(self._at)

    def run(self, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Compute on ``input`` and return the outputs called ``names``; no others cross the bus.

        They are read-only, and valid until the next run of this slot.
        """
        ring, device, name = self._ring, self._ring.device, self._ring.program.input.name
        device.use()
        # One at a time: nobody else may use a stream while a graph is captured from it.
        with ring.submitting:
            device.upload(self._at[name], self._pinned[name], ring.upload)
            device.record(self._uploaded, ring.upload)
            device.wait(ring.compute, self._uploaded)
            self._launch(ring.compute)
            device.record(self._computed, ring.compute)
            device.wait(ring.download, self._computed)
            for output in names:
                device.download(self._pinned[output], self._at[output], ring.download)
            device.record(self._done, ring.download)
        device.finish(self._done)
        return {output: self._seen[output] for output in names}


class Ring:
    """A program with its slots.

    Parameters
    ----------
    slots
        Inputs in flight; 3 keep the GPU busy (one filled, one computed, one read).

    Raises
    ------
    DeviceMemoryError
        There is no room for the slots.
    """

    def __init__(self, device: Device, program: Program, slots: int) -> None:
        self.device = device
        self.program = program
        self.upload, self.compute, self.download = (device.stream() for _ in range(3))
        self.submitting = threading.Lock()
        self._slots = slots
        # None once the ring is closed, passed on among those who still wait.
        self._idle: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        for _ in range(slots):
            self._idle.put(Slot(self))

    @contextmanager
    def lend(self) -> Iterator[Slot]:
        """Lend a slot; waits while all of them are lent.

        Raises
        ------
        EngineError
            The ring was closed.
        """
        # Who asks now is told at once: closing would never have its turn among those who ask on.
        if self._closed:
            raise _closed()
        slot = self._idle.get()
        if slot is None:
            self._idle.put(None)
            raise _closed()
        try:
            yield slot
        finally:
            self._idle.put(slot)

    def close(self) -> None:
        """Wait for what is lent, then for the GPU; buffers are the device's to give back."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            for _ in range(self._slots):
                self._idle.get()
            self._idle.put(None)
            self.device.use()
            for stream in (self.upload, self.compute, self.download):
                self.device.drain(stream)


def _closed() -> EngineError:
    return EngineError("an engine that was closed", "an open engine")


def _view(memory: NDArray[np.uint8], tensor: Tensor) -> NDArray[Any]:
    return memory.view(tensor.dtype).reshape(tensor.shape)
