"""What may run in segbatch's ring of buffers beside TensorRT: torch, and ONNX Runtime's CUDA.

Each is a ``Program`` as in ``segbatch.infer.engine.tensorrt.ring``: it computes on addresses that
never change, on the stream that it is given. So reading, tables, pinned memory, copies and
streams are those of the product, on a real GPU, also where TensorRT does not run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from segbatch.infer.engine.tensorrt.device import CudaDevice
from segbatch.infer.engine.tensorrt.ring import Tensor
from segbatch.infer.engine.tensorrt.runtime import Request, Runner

Shape = tuple[int, int, int, int]
SLOTS = 3


def tensors(shape: Shape, stride: int, dtype: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the input and the outputs of a network of one class that decides."""
    n, _, y, x = shape
    blocks = (n, y // stride, x // stride)
    return Tensor("image", shape, np.dtype(dtype)), (
        Tensor("logits", (n, 1, y, x), np.dtype(np.float32)),
        Tensor("mask", (n, y, x), np.dtype(np.uint8)),
        Tensor("confidence", blocks, np.dtype(np.float32)),
        Tensor("entropy", blocks, np.dtype(np.float32)),
    )


@dataclass(frozen=True)
class _Seen:
    """Memory of the GPU as other libraries are shown it."""

    __cuda_array_interface__: dict[str, Any]


def seen_by_torch(device: Any, tensor: Tensor, address: int) -> torch.Tensor:
    """Return the memory at an address, as a torch tensor that does not own it."""
    if not isinstance(device, CudaDevice):  # the pretended one of a dry run
        found = device.memory[address].view(tensor.dtype).reshape(tensor.shape)
        return torch.from_numpy(found)
    described = {
        "shape": tensor.shape,
        "typestr": tensor.dtype.str,
        "data": (address, False),
        "version": 3,
    }
    seen = torch.as_tensor(_Seen(described), device="cuda:0")
    if seen.data_ptr() != address:
        raise RuntimeError("torch copied memory that it was to share")
    return seen


class TorchProgram:
    """A function of torch, recorded as one graph of kernels for each slot."""

    def __init__(
        self,
        device: Any,
        shape: Shape,
        stride: int,
        function: Callable[..., Sequence[torch.Tensor]],
    ) -> None:
        self.input, self.outputs = tensors(shape, stride, "float16")
        self._device = device
        self._function = function
        self._pool: Any = None

    def bind(self, addresses: dict[str, int]) -> Callable[[int], None]:
        """Return what computes on these addresses."""
        device = self._device
        image = seen_by_torch(device, self.input, addresses[self.input.name])
        targets = [seen_by_torch(device, each, addresses[each.name]) for each in self.outputs]

        @torch.no_grad()
        def compute() -> None:
            for target, found in zip(targets, self._function(image), strict=True):
                target.copy_(found)

        if not isinstance(device, CudaDevice):
            return lambda stream: device.give(stream, compute)
        graph = self._recorded(compute)

        def launch(stream: int) -> None:
            with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
                graph.replay()

        return launch

    def _recorded(self, compute: Callable[[], None]) -> Any:
        """Record what is computed; graphs share their memory, since they run one after another."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):  # compiles, and lets cuDNN choose
                compute()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            compute()
        self._pool = graph.pool()
        torch.cuda.synchronize()
        return graph


class OnnxRuntimeProgram:
    """ONNX Runtime's CUDA provider on the ring's own stream; the network ends in the decision."""

    def __init__(self, shape: Shape, stride: int, network: bytes) -> None:
        self.input, self.outputs = tensors(shape, stride, "float16")
        self._network = network
        self._sessions: dict[int, Any] = {}

    def bind(self, addresses: dict[str, int]) -> Callable[[int], None]:
        """Return what computes on these addresses."""
        bindings: dict[int, Any] = {}

        def launch(stream: int) -> None:
            import onnxruntime

            session = self._session(stream)
            if stream not in bindings:
                bindings[stream] = self._bound(session, addresses)
            options = onnxruntime.RunOptions()
            # The ring's events tell when it is done; waiting here would keep copies from it.
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
            session.run_with_iobinding(bindings[stream], options)

        return launch

    def _session(self, stream: int) -> Any:
        """Return the session that computes on a stream: it is told of it when it is made."""
        import onnxruntime

        if stream not in self._sessions:
            cuda = ("CUDAExecutionProvider", {"user_compute_stream": str(stream)})
            if hasattr(onnxruntime, "preload_dlls"):
                onnxruntime.preload_dlls()  # of CUDA and cuDNN, where torch brought them
            session = onnxruntime.InferenceSession(self._network, providers=[cuda])
            if session.get_providers()[0] != "CUDAExecutionProvider":
                raise RuntimeError(f"ONNX Runtime fell back to {session.get_providers()}")
            self._sessions[stream] = session
        return self._sessions[stream]

    def _bound(self, session: Any, addresses: dict[str, int]) -> Any:
        binding = session.io_binding()
        each = self.input
        binding.bind_input(
            each.name, "cuda", 0, each.dtype.type, list(each.shape), addresses[each.name]
        )
        for each in self.outputs:
            binding.bind_output(
                each.name, "cuda", 0, each.dtype.type, list(each.shape), addresses[each.name]
            )
        return binding


class RingEngine:
    """A program in segbatch's ring, as ``door.Engine`` wants it; ``alone`` is it without copies.

    Parameters
    ----------
    program, device
        As in ``Ring``; ``undo`` is called at the end, before the device goes.
    """

    decides = True

    def __init__(
        self,
        name: str,
        version: str,
        precision: str,
        program: Any,
        device: Any,
        undo: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.version, self.precision = name, version, precision
        self.input_shape: Shape | None = program.input.shape
        self._device, self._undo = device, undo
        self._runner = Runner(device, program, SLOTS)
        self._runner.warm_up()
        at = {
            each.name: device.allocate(each.size_bytes)
            for each in (program.input, *program.outputs)
        }
        self._launch = program.bind(at)
        self._stream = device.stream()

    def alone(self) -> None:
        """Let the GPU compute once, input and outputs staying there; does not wait for it."""
        self._launch(self._stream)

    def wait(self) -> None:
        """Wait until the GPU has done all that ``alone`` asked for."""
        self._device.drain(self._stream)

    @contextmanager
    def request(self, shape: Shape, _streams: int) -> Iterator[Request]:
        """Lend a slot of the ring."""
        with self._runner.request(shape) as request:
            yield request

    def close(self) -> None:
        """Give everything back."""
        self._runner.close()
        self._undo()
        self._device.close()
