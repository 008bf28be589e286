"""A GPU of host memory, the only pretence in these tests: what needs a GPU has no other.

Streams are threads that do what they are given in order but in their own time; so an order that
the ring forgets to ask for is an order that it does not get.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segbatch.infer.engine.tensorrt.device import DeviceMemoryError
from segbatch.infer.engine.tensorrt.ring import Tensor


class PretendDevice:
    """Memory is a dictionary of arrays, streams are threads; see ``Device``."""

    def __init__(self, room_bytes: float = float("inf"), delay_s: float = 0.0) -> None:
        self.room_bytes = room_bytes
        self.delay_s = delay_s
        self.memory: dict[int, NDArray[np.uint8]] = {}
        self.copied: list[tuple[str, int]] = []
        self.open = True
        self._streams: dict[int, queue.SimpleQueue[Any]] = {}
        self._threads: list[threading.Thread] = []
        self._marks: dict[int, threading.Event] = {}
        self._rng = np.random.default_rng(0)

    def use(self) -> None:
        """Fail once the device is closed."""
        assert self.open

    def pinned(self, size_bytes: int) -> NDArray[np.uint8]:
        """Return ordinary memory."""
        return np.zeros(size_bytes, np.uint8)

    def allocate(self, size_bytes: int) -> int:
        """Return where a new array stands, while there is room."""
        self.room_bytes -= size_bytes
        if self.room_bytes < 0:
            raise DeviceMemoryError(f"no room for {size_bytes} bytes")
        address = 1000 + len(self.memory)
        self.memory[address] = np.zeros(size_bytes, np.uint8)
        return address

    def stream(self) -> int:
        """Start a thread."""
        todo: queue.SimpleQueue[Any] = queue.SimpleQueue()
        pauses = self._rng.uniform(0, self.delay_s, 997)

        def work() -> None:
            for turn, task in enumerate(iter(todo.get, None)):
                time.sleep(pauses[turn % len(pauses)])
                task()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self._threads.append(thread)
        self._streams[len(self._streams) + 1] = todo
        return len(self._streams)

    def event(self) -> int:
        """Return a new mark."""
        self._marks[len(self._marks) + 1] = threading.Event()
        return len(self._marks)

    def give(self, stream: int, task: Callable[[], object]) -> None:
        """Let a stream do something when it comes to it."""
        self._streams[stream].put(task)

    def upload(self, address: int, source: NDArray[np.uint8], stream: int) -> None:
        """Copy in the stream's own time."""
        self.copied.append(("up", source.nbytes))
        self.give(stream, lambda: np.copyto(self.memory[address], source))

    def download(self, target: NDArray[np.uint8], address: int, stream: int) -> None:
        """Copy in the stream's own time."""
        self.copied.append(("down", target.nbytes))
        self.give(stream, lambda: np.copyto(target, self.memory[address]))

    def record(self, event: int, stream: int) -> None:
        """Let a new mark be set when the stream comes to it."""
        mark = self._marks[event] = threading.Event()
        self.give(stream, mark.set)

    def wait(self, stream: int, event: int) -> None:
        """Let the stream wait for the mark as it is now."""
        self.give(stream, self._marks[event].wait)

    def finish(self, event: int) -> None:
        """Wait for the mark as it is now."""
        self._marks[event].wait()

    def drain(self, stream: int) -> None:
        """Wait until all is done that the stream was given."""
        done = threading.Event()
        self.give(stream, done.set)
        done.wait()

    def close(self) -> None:
        """End the threads."""
        for todo in self._streams.values():
            todo.put(None)
        for thread in self._threads:
            thread.join()
        self.open = False


class PretendProgram:
    """Logits are twice the input; the mask is where they exceed 1, in the device's memory.

    Like an engine's contexts, all slots share one scratch memory. ``fails`` lets launches fail.
    """

    def __init__(
        self,
        device: PretendDevice,
        shape: tuple[int, int, int, int],
        dtype: str = "float32",
        outputs: tuple[str, ...] = ("logits", "mask", "confidence", "entropy"),
        stride: int = 4,
    ) -> None:
        n, _, y, x = shape
        blocks = (n, y // stride, x // stride)
        known = {
            "logits": Tensor("logits", shape, np.dtype(dtype)),
            "mask": Tensor("mask", (n, y, x), np.dtype(np.uint8)),
            "confidence": Tensor("confidence", blocks, np.dtype(np.float32)),
            "entropy": Tensor("entropy", blocks, np.dtype(np.float32)),
        }
        self.input = Tensor("image", shape, np.dtype(dtype))
        self.outputs = [known[name] for name in outputs]
        self.fails = False
        self._device = device
        self._scratch = np.zeros(shape, dtype)

    def bind(self, addresses: dict[str, int]) -> Callable[[int], None]:
        """Compute on the device's arrays, in the stream's own time."""
        memory = self._device.memory
        at = {
            each.name: memory[addresses[each.name]].view(each.dtype).reshape(each.shape)
            for each in (self.input, *self.outputs)
        }

        def compute() -> None:
            np.multiply(at["image"], 2, out=self._scratch)
            time.sleep(self._device.delay_s / 2)
            if "logits" in at:
                at["logits"][...] = self._scratch
            if "mask" in at:
                at["mask"][...] = self._scratch[:, 0] > 1
                at["confidence"][...] = self._scratch[:, 0, ::4, ::4]
                at["entropy"][...] = self._scratch[:, 0, 1::4, 1::4]

        def launch(stream: int) -> None:
            if self.fails:
                raise RuntimeError("the library failed")
            self._device.give(stream, compute)

        return launch
