"""OpenVINO on the processor: a graph per tile shape, several streams in each.

The precision is always set: left alone, OpenVINO computes in bf16 wherever the
processor can. Its Python package reports its own import to its makers through
``openvino_telemetry``; that module is withheld before the import, so nothing
is sent.
"""

from __future__ import annotations

import hashlib
import io
import queue
import sys
import threading
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from segbatch.errors import EngineError
from segbatch.infer.engine.decided import DECIDED, Decided
from segbatch.infer.engine.digest import read_verified
from segbatch.infer.engine.kept import kept_file, read_kept, write_kept
from segbatch.infer.engine.machine import processor
from segbatch.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from segbatch.infer.engine.made.artifact import Shape

# What of an INT8 network is not quantised is computed in fp32.
HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
log = get_logger(__name__)


def load_openvino() -> Any:
    """Import OpenVINO without its telemetry and return the module."""
    if "openvino" not in sys.modules:
        # None in sys.modules makes the import fail, upon which OpenVINO takes its own stub.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


@dataclass(slots=True)
class _Graph:
    compiled: Any
    bytes: int
    users: int = 0
    idle: queue.SimpleQueue[OpenVinoRequest] = field(default_factory=queue.SimpleQueue)


class OpenVinoEngine:
    """Compiled graphs, kept while they fit in memory.

    Parameters
    ----------
    network
        The ONNX file.
    precision
        ``fp32``, ``bf16``, ``fp16``, or ``int8`` for a network that was quantised.
    threads
        Processor threads for all streams together.
    memory_bytes
        Limit for all graphs together; the least recently used is dropped for
        a new shape.
    bytes_per_px
        What a stream was measured to need per input pixel.
    cached
        Keep compiled graphs in the user's cache folder, and take them from there.
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

    name = "openvino"

    def __init__(
        self,
        network: Path,
        precision: str,
        threads: int,
        memory_bytes: float = float("inf"),
        bytes_per_px: float = 0.0,
        *,
        cached: bool = False,
        sha256: str = "",
        input_shape: Shape | None = None,
    ) -> None:
        self._openvino = load_openvino()
        self.version = str(self._openvino.get_version())
        self.precision = precision
        self.input_shape = input_shape
        self._threads = threads
        self._memory_bytes = memory_bytes
        self._bytes_per_px = bytes_per_px
        self._graphs: OrderedDict[tuple[Shape, int], _Graph] = OrderedDict()
        self._free = threading.Condition()
        content = read_verified(network, sha256)
        self._sha256 = (sha256 or hashlib.sha256(content).hexdigest()) if cached else ""
        try:
            self._core = self._openvino.Core()
            self._network = self._core.read_model(content)
            outputs = {name for each in self._network.outputs for name in each.get_names()}
            self.decides = outputs.issuperset(DECIDED)
        except RuntimeError as error:
            raise EngineError(
                f"OpenVINO {self.version} cannot read {network}: {_one_line(error)}",
                "an ONNX network of known operators",
                "use --engine onnxruntime",
            ) from error

    def capabilities(self) -> list[str]:
        """Return the number formats the processor computes in natively, such as BF16."""
        return list(self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))

    @contextmanager
    def request(self, shape: Shape, streams: int) -> Iterator[OpenVinoRequest]:
        """Lend a request for (N, C, Y, X) input; waits while all of them are lent.

        A graph has one request more than streams, so that a stream computes
        while the last logits are still being read.
        """
        graph = self._borrow(shape, streams)
        try:
            request = graph.idle.get()
            try:
                yield request
            finally:
                graph.idle.put(request)
        finally:
            with self._free:
                graph.users -= 1
                self._free.notify_all()

    def close(self) -> None:
        """Drop every graph."""
        with self._free:
            self._graphs.clear()

    def _borrow(self, shape: Shape, streams: int) -> _Graph:
        key = (shape, streams)
        need = int(shape[0] * shape[2] * shape[3] * self._bytes_per_px * streams)
        with self._free:
            while key not in self._graphs:
                others = sum(graph.bytes for graph in self._graphs.values())
                if not self._graphs or others + need <= self._memory_bytes:
                    self._graphs[key] = self._compile(shape, streams, need)
                    break
                idle = next((k for k, graph in self._graphs.items() if not graph.users), None)
                if idle is None:
                    self._free.wait()
                else:
                    del self._graphs[idle]
            graph = self._graphs[key]
            graph.users += 1
            self._graphs.move_to_end(key)
            return graph

    def _compile(self, shape: Shape, streams: int, need: int) -> _Graph:
        options = {
            "INFERENCE_PRECISION_HINT": HINTS[self.precision],
            "EXECUTION_MODE_HINT": "ACCURACY" if self.precision == "fp32" else "PERFORMANCE",
            "NUM_STREAMS": str(streams),
            "INFERENCE_NUM_THREADS": self._threads,
            # Pinned threads of two processes on one machine would share cores.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            compiled = self._compiled(shape, options)
            graph = _Graph(compiled, need)
            for _ in range(streams + 1):
                graph.idle.put(OpenVinoRequest(compiled.create_infer_request()))
        except RuntimeError as error:
            raise EngineError(
                f"OpenVINO {self.version} cannot compile for input {shape}: {_one_line(error)}",
                "a network that takes that shape",
                "use --engine onnxruntime",
            ) from error
        return graph

    def _compiled(self, shape: Shape, options: dict[str, Any]) -> Any:
        """Return what was compiled before for the same network and processor, or compile it."""
        keys = (self._sha256, self.version, shape, sorted(options.items()), processor())
        kept = kept_file("openvino", "graph", *keys) if self._sha256 else None
        found = read_kept(kept) if kept is not None else b""
        if found:
            try:
                return self._core.import_model(io.BytesIO(found), "CPU", options)
            except RuntimeError as error:
                log.warning("a compiled graph is made again", file=str(kept), why=_one_line(error))
        network = self._network.clone()
        network.reshape(list(shape))
        compiled = self._core.compile_model(network, "CPU", options)
        if kept is not None:
            held = io.BytesIO()
            try:
                compiled.export_model(held)
                write_kept(kept, held.getvalue())
            except RuntimeError as error:
                log.debug("compiled graph not kept", file=str(kept), why=_one_line(error))
        return compiled


class OpenVinoRequest:
    """Input to be filled, and the call that turns it into logits."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self.input: NDArray[np.float32] = request.get_input_tensor().data

    def infer(self) -> NDArray[np.float32]:
        """Return logits (N, K, Y, X) of ``input``, valid while the request is lent."""
        try:
            self._request.infer()
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed: {_one_line(error)}") from error
        logits: NDArray[np.float32] = self._request.get_output_tensor(0).data
        return logits

    def decide(self) -> Decided:
        """Return the masks of ``input``, of a network that ends in them; lent as the logits are."""
        self.infer()
        return Decided(*(self._request.get_tensor(name).data for name in DECIDED))


def _one_line(error: RuntimeError) -> str:
    return " ".join(str(error).split())
