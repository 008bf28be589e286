"""ONNX Runtime on the processor: the reference, and the fallback that runs everywhere."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from segbatch.errors import EngineError
from segbatch.infer.engine.decided import DECIDED, Decided
from segbatch.infer.engine.digest import read_verified

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from segbatch.infer.engine.made.artifact import Shape


class OnnxRuntimeEngine:
    """One session; concurrent requests share its threads.

    Parameters
    ----------
    network
        The ONNX file.
    threads
        Processor threads for all requests together.
    precision
        ``fp32``, or ``int8`` for a network that was quantised.
    sha256
        Of the network that is meant, verified on the bytes that are loaded; empty where nobody
        knows.
    input_shape
        The one (N, C, Y, X) that it was made for; None where any will do.

    Raises
    ------
    EngineError
        The file is another, or cannot be loaded: its weights have to be in it.
    """

    name = "onnxruntime"

    def __init__(
        self,
        network: Path,
        threads: int,
        precision: str = "fp32",
        *,
        sha256: str = "",
        input_shape: Shape | None = None,
    ) -> None:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as states

        # ONNX Runtime's errors have no common base but Exception.
        self._errors = (
            states.Fail,
            states.InvalidArgument,
            states.InvalidGraph,
            states.InvalidProtobuf,
            states.NotImplemented,
            states.RuntimeException,
        )
        self.version = version("onnxruntime")
        self.precision = precision
        self.input_shape = input_shape
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
                read_verified(network, sha256), options, providers=["CPUExecutionProvider"]
            )
            # Kept for a change of providers, which never comes: a second copy of every weight.
            self._session._model_bytes = None
        except self._errors as error:
            raise EngineError(
                f"ONNX Runtime {self.version} cannot load {network}: {error}",
                "an ONNX network of known operators",
            ) from error
        self._input = self._session.get_inputs()[0].name
        outputs = [each.name for each in self._session.get_outputs()]
        self._logits = outputs[0]
        self.decides = set(outputs).issuperset(DECIDED)
        self._gate: dict[int, threading.BoundedSemaphore] = {}
        self._lock = threading.Lock()

    @contextmanager
    def request(self, shape: Shape, streams: int) -> Iterator[OnnxRuntimeRequest]:
        """Lend a request for (N, C, Y, X) input; waits while ``streams`` are lent."""
        with self._lock:
            gate = self._gate.setdefault(streams, threading.BoundedSemaphore(streams))
        with gate:
            yield OnnxRuntimeRequest(self, shape)

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits of one batch."""
        return np.asarray(self.outputs(batch, self._logits)[0], np.float32)

    def outputs(self, batch: NDArray[np.float32], *names: str) -> list[Any]:
        """Return the outputs of these names for one batch."""
        try:
            outputs: list[Any] = self._session.run(names, {self._input: batch})
        except self._errors as error:
            raise EngineError(
                f"ONNX Runtime failed on input of shape {batch.shape}: {error}",
                "the shapes that the model's manifest allows",
            ) from error
        return outputs

    def close(self) -> None:
        """Release the session."""
        del self._session


class OnnxRuntimeRequest:
    """Input to be filled, and the call that turns it into logits."""

    def __init__(self, engine: OnnxRuntimeEngine, shape: Shape) -> None:
        self._engine = engine
        self.input: NDArray[np.float32] = np.empty(shape, np.float32)

    def infer(self) -> NDArray[np.float32]:
        """Return logits (N, K, Y, X) of ``input``, valid while the request is lent."""
        return self._engine.run(self.input)

    def decide(self) -> Decided:
        """Return the masks of ``input``, of a network that ends in them."""
        return Decided(*self._engine.outputs(self.input, *DECIDED))
