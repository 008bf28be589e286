"""ONNX Runtime on the processor: the reference, and the fallback that runs everywhere."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from segbatch.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray


class OnnxRuntimeEngine:
    """One session in fp32; concurrent requests share its threads.

    Parameters
    ----------
    network
        The ONNX file.
    threads
        Processor threads for all requests together.

    Raises
    ------
    EngineError
        The file cannot be loaded.
    """

    name = "onnxruntime"
    precision = "fp32"

    def __init__(self, network: Path, threads: int) -> None:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as states

        onnxruntime.disable_telemetry_events()  # nothing about a lab's runs leaves its machine
        # ONNX Runtime's errors have no common base but Exception.
        self._errors = (
            states.Fail,
            states.InvalidArgument,
            states.InvalidGraph,
            states.InvalidProtobuf,
            states.NoSuchFile,
            states.NotImplemented,
            states.RuntimeException,
        )
        self.version = version("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A pattern of allocations per input shape halves nothing and doubles the memory.
        options.enable_mem_pattern = False
        options.log_severity_level = 4  # what goes wrong is raised
        # Threads that spin while they wait would take the processor from the host's work.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                str(network), options, providers=["CPUExecutionProvider"]
            )
        except self._errors as error:
            raise EngineError(
                f"ONNX Runtime {self.version} cannot load {network}: {error}",
                "an ONNX network of known operators",
            ) from error
        self._input = self._session.get_inputs()[0].name
        self._gate: dict[int, threading.BoundedSemaphore] = {}
        self._lock = threading.Lock()

    @contextmanager
    def request(
        self, shape: tuple[int, int, int, int], streams: int
    ) -> Iterator[OnnxRuntimeRequest]:
        """Lend a request for (N, C, Y, X) input; waits while ``streams`` are lent."""
        with self._lock:
            gate = self._gate.setdefault(streams, threading.BoundedSemaphore(streams))
        with gate:
            yield OnnxRuntimeRequest(self, shape)

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits of one batch."""
        try:
            outputs: list[Any] = self._session.run(None, {self._input: batch})
        except self._errors as error:
            raise EngineError(
                f"ONNX Runtime failed on input of shape {batch.shape}: {error}",
                "the shapes that the model's manifest allows",
            ) from error
        return np.asarray(outputs[0], np.float32)

    def close(self) -> None:
        """Release the session."""
        del self._session


class OnnxRuntimeRequest:
    """Input to be filled, and the call that turns it into logits."""

    def __init__(self, engine: OnnxRuntimeEngine, shape: tuple[int, int, int, int]) -> None:
        self._engine = engine
        self.input: NDArray[np.float32] = np.empty(shape, np.float32)

    def infer(self) -> NDArray[np.float32]:
        """Return logits (N, K, Y, X) of ``input``, valid while the request is lent."""
        return self._engine.run(self.input)
