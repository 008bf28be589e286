"""The one door to engines: a model and the settings become an engine."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from segbatch.errors import EngineError
from segbatch.infer.engine.choice import choose
from segbatch.infer.engine.decided import Decided
from segbatch.infer.engine.machine import available_threads
from segbatch.log import get_logger

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from segbatch.infer.engine.choice import Choice
    from segbatch.infer.engine.made.artifact import Shape
    from segbatch.infer.engine.manifest import Model
    from segbatch.settings import Settings

__all__ = ["Decided", "Deciding", "Engine", "Opened", "Request", "open_chosen", "open_engine"]

GIB = float(1 << 30)
REMEDY = "segbatch export-engine MODEL --engine tensorrt"
log = get_logger(__name__)


class Request(Protocol):
    """One lent place in an engine: fill ``input``, call ``infer``."""

    input: NDArray[np.float32]

    def infer(self) -> NDArray[np.float32]:
        """Return logits (N, K, Y, X), valid only while the request is lent."""
        ...


class Deciding(Request, Protocol):
    """A request of an engine that ``decides``."""

    def decide(self) -> Decided:
        """Return the masks of ``input``; instead of ``infer``, not after it."""
        ...


class Engine(Protocol):
    """What runs a network; ``request`` may be called from several threads.

    ``input_shape`` is the one (N, C, Y, X) that it takes, None where any will do. Where it
    ``decides``, its requests are ``Deciding``.
    """

    name: str
    version: str
    precision: str
    input_shape: Shape | None
    decides: bool

    def request(self, shape: Shape, streams: int) -> AbstractContextManager[Request]:
        """Lend a request for (N, C, Y, X) input."""
        ...

    def close(self) -> None:
        """Give back what the engine holds."""
        ...


@dataclass(frozen=True, slots=True)
class Opened:
    """An engine with what planning needs to know of it.

    ``bytes_per_px`` is per stream; ``memory_bytes`` is what is left of the limit for all
    streams together. ``decides`` says that the engine's own masks are those that the settings
    ask for.
    """

    engine: Engine
    threads: int
    bytes_per_px: float
    memory_bytes: float
    decides: bool = False


def open_engine(model: Model, settings: Settings) -> Opened:
    """Open the engine that the settings name, or the fastest that can be trusted.

    See ``choose`` for which that is; which and why is logged.

    Raises
    ------
    EngineError
        The engine or precision that was named cannot be used, or none can.
    """
    threads = available_threads() if settings.threads == "auto" else settings.threads
    chosen = choose(model, settings)
    try:
        engine, memory = _open_within(chosen, settings, threads)
    except EngineError:
        # An export may have put another in its place since it was chosen.
        before, chosen = chosen, choose(model, settings)
        if chosen.file == before.file:
            raise
        engine, memory = _open_within(chosen, settings, threads)
    log.info(
        "engine opened",
        engine=engine.name,
        version=engine.version,
        precision=engine.precision,
        file=str(chosen.file),
        threads=threads,
        why=chosen.why,
        bytes_per_px=round(chosen.trial.bytes_per_px),
    )
    threshold = model.manifest.threshold if settings.threshold is None else settings.threshold
    made = chosen.artifact.manifest if chosen.artifact is not None else None
    decides = made is not None and made.decides and made.threshold in (None, threshold)
    return Opened(engine, threads, chosen.trial.bytes_per_px, memory, decides and engine.decides)


def _open_within(chosen: Choice, settings: Settings, threads: int) -> tuple[Engine, float]:
    """Return the engine, and the bytes that it leaves of the limit."""
    memory_bytes = max(0.0, settings.memory_gib * GIB - chosen.trial.fixed_bytes)
    return open_chosen(chosen, threads, memory_bytes), memory_bytes


def open_chosen(chosen: Choice, threads: int, memory_bytes: float = float("inf")) -> Engine:
    """Open an engine that was chosen.

    Raises
    ------
    EngineError
        It cannot be opened.
    """
    opened: Engine
    shape = chosen.artifact.manifest.input_shape if chosen.artifact is not None else None
    if chosen.engine == "openvino":
        from segbatch.infer.engine.cpu.openvino_engine import OpenVinoEngine

        opened = OpenVinoEngine(
            chosen.file,
            chosen.precision,
            threads,
            memory_bytes,
            chosen.trial.bytes_per_px,
            cached=True,
            sha256=chosen.sha256,
            input_shape=shape,
        )
        return opened
    if chosen.engine == "onnxruntime":
        from segbatch.infer.engine.cpu.onnxruntime_engine import OnnxRuntimeEngine

        opened = OnnxRuntimeEngine(
            chosen.file,
            threads,
            chosen.precision,
            sha256=chosen.sha256,
            input_shape=shape,
        )
        return opened
    if chosen.artifact is None:
        raise EngineError(
            f"{chosen.engine} without an engine that was built", "one beside the model", REMEDY
        )
    from segbatch.infer.engine.tensorrt.runtime import TensorRtEngine

    opened = TensorRtEngine(chosen.artifact)
    return opened
