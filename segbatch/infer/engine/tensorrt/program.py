"""A TensorRT engine as what the ring runs: one context a slot, one scratch memory for all.

A context is bound to its slot's addresses for good, which is what a captured graph of kernels
needs. Contexts of their own would each keep scratch memory, most of what an engine needs; as all
of them compute on one stream, one after another, they may share it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from segbatch.errors import EngineError
from segbatch.infer.engine.kept import kept_file, read_kept, write_kept
from segbatch.infer.engine.made.artifact import rebuild_command
from segbatch.infer.engine.tensorrt.device import DeviceMemoryError
from segbatch.infer.engine.tensorrt.flavour import load, logger, said
from segbatch.infer.engine.tensorrt.ring import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from segbatch.infer.engine.made.artifact import Artifact
    from segbatch.infer.engine.tensorrt.device import Device
    from segbatch.infer.engine.tensorrt.driver import Gpu
    from segbatch.infer.engine.tensorrt.flavour import Flavour


class TrtProgram:
    """An engine, deserialised.

    Parameters
    ----------
    content
        Its bytes, which ``fits.fitting_bytes`` has let through.
    flavour, artifact
        The library, and the engine's manifest.
    gpu
        That runs it; what was compiled for it before is used again.
    device
        For the scratch memory.

    Raises
    ------
    EngineError
        The library does not open it.
    DeviceMemoryError
        There is no room for it.
    """

    def __init__(
        self, content: bytes, flavour: Flavour, artifact: Artifact, gpu: Gpu, device: Device
    ) -> None:
        manifest = artifact.manifest
        self._again = rebuild_command(artifact.manifest_file)
        self._trt = trt = load(flavour)
        self._logger = logger(flavour)
        self._name = f"{flavour} {trt.__version__}"
        self._shape = manifest.input_shape
        keys = (flavour, str(trt.__version__), manifest.sha256, gpu.name, gpu.driver)
        self._cache_file = kept_file("tensorrt", "runtime", *keys)
        self._runtime: Any = None
        self._engine: Any = None
        self._config: Any = None
        self._contexts: list[Any] = []
        self._bound = 0
        try:
            self._open(content)
            self.input = self._tensor(self._image)
            self.outputs = tuple(self._tensor(name) for name in self._names if name != self._image)
            self._scratch = device.allocate(self._scratch_bytes) if self._scratch_bytes else 0
        except BaseException:
            # Before the device goes: the library's objects need it to end in peace.
            self.close()
            raise

    def bind(self, addresses: dict[str, int]) -> Callable[[int], None]:
        """Return what gives the computation on these addresses to a stream."""
        at = self._bound
        with self._logger.errors() as errors:
            if at == len(self._contexts):
                self._contexts.append(self._context(errors))
            context = self._contexts[at]
            if self._scratch:
                context.set_device_memory(self._scratch, self._scratch_bytes)
            for name, address in addresses.items():
                if not context.set_tensor_address(name, address):
                    raise self._failure(f"does not take an address for {name}", errors)
        self._bound += 1

        def launch(stream: int) -> None:
            with self._logger.errors() as errors:
                # By its place, so that nothing but this program keeps a context alive.
                if not self._contexts[at].execute_async_v3(stream):
                    raise self._failure("failed to run the engine", errors)

        return launch

    def keep_compiled(self) -> None:
        """Keep what the RTX flavour compiled for this GPU, so that the next start is quick."""
        if self._config is not None:
            write_kept(self._cache_file, bytes(self._config.get_runtime_cache().serialize()))

    def close(self) -> None:
        """Let go of contexts, then the engine, then the runtime that they came from."""
        self._contexts.clear()
        self._config = None
        self._engine = None
        self._runtime = None

    def _open(self, content: bytes) -> None:
        trt = self._trt
        with self._logger.errors() as errors:
            self._runtime = trt.Runtime(self._logger)
            self._engine = self._runtime.deserialize_cuda_engine(content)
            if self._engine is None:
                raise self._failure("does not open the engine", errors)
            self._scratch_bytes = int(self._engine.device_memory_size_v2)
            count = self._engine.num_io_tensors
            self._names = [self._engine.get_tensor_name(at) for at in range(count)]
            self._image = next(
                name
                for name in self._names
                if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            )
            self._config = self._configured()
            # Contexts know the shapes that the engine leaves free. The first slot takes this one.
            self._contexts.append(self._context(errors))

    def _configured(self) -> Any:
        """Return how contexts are made in the RTX flavour; None in full TensorRT."""
        trt = self._trt
        if not hasattr(trt, "IRuntimeCache"):
            return None
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        compiled = config.create_runtime_cache()
        kept = read_kept(self._cache_file)
        if kept:
            compiled.deserialize(kept)  # what does not fit is left out by the library itself
        config.set_runtime_cache(compiled)
        return config

    def _context(self, errors: list[str]) -> Any:
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        how = strategy if self._config is None else self._config
        context = self._engine.create_execution_context(how)
        if context is None:
            raise self._failure("makes no context of the engine", errors)
        if not context.set_input_shape(self._image, self._shape):
            raise self._failure(f"does not take input {self._shape}", errors)
        return context

    def _tensor(self, name: str) -> Tensor:
        dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
        return Tensor(name, tuple(self._contexts[0].get_tensor_shape(name)), dtype)

    def _failure(self, what: str, errors: list[str]) -> EngineError:
        reason = said(errors)
        if "out of memory" in reason.lower() or "outofmemory" in reason.lower():
            return DeviceMemoryError(
                f"{self._name} {what}: {reason}",
                "room on the GPU for the engine and its buffers",
                "close what else uses the GPU (nvidia-smi), or export with a smaller --frame-shape",
            )
        return EngineError(
            f"{self._name} {what}: {reason}",
            "an engine that runs on this GPU",
            f"{self._again}, or use --engine openvino",
        )
