"""The one door to engines: a model and the settings become an engine."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from segbatch.errors import EngineError
from segbatch.infer.engine.machine import available_threads
from segbatch.infer.engine.manifest import Manifest, Model
from segbatch.infer.engine.onnxruntime_engine import OnnxRuntimeEngine
from segbatch.infer.engine.probe import Probe, probe
from segbatch.log import get_logger

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from segbatch.settings import Settings

GIB = float(1 << 30)
log = get_logger(__name__)


class Request(Protocol):
    """One lent place in an engine: fill ``input``, call ``infer``."""

    input: NDArray[np.float32]

    def infer(self) -> NDArray[np.float32]:
        """Return logits (N, K, Y, X), valid only while the request is lent."""
        ...


class Engine(Protocol):
    """What runs a network; ``request`` may be called from several threads."""

    name: str
    version: str
    precision: str

    def request(
        self, shape: tuple[int, int, int, int], streams: int
    ) -> AbstractContextManager[Request]:
        """Lend a request for (N, C, Y, X) input."""
        ...

    def close(self) -> None:
        """Give back what the engine holds."""
        ...


@dataclass(frozen=True, slots=True)
class Opened:
    """An engine with what planning needs to know of it.

    ``bytes_per_px`` is per stream; ``memory_bytes`` is what is left of the
    limit for all streams together.
    """

    engine: Engine
    threads: int
    bytes_per_px: float
    memory_bytes: float


def open_engine(model: Model, settings: Settings) -> Opened:
    """Open the engine that the settings name, or the fastest that can be trusted.

    ``auto`` takes OpenVINO where its trial run succeeds, else ONNX Runtime;
    ``--precision auto`` takes bf16 where the manifest records that it passed
    the parity gate and the processor computes in it, else fp32. Which and why
    is logged.

    Raises
    ------
    EngineError
        The engine or precision that was named cannot be used, or none can.
    """
    threads = available_threads() if settings.threads == "auto" else settings.threads
    engine, precision, found, why = _choose(model, settings)
    memory = max(0.0, settings.memory_gib * GIB - found.fixed_bytes)
    opened: Engine
    if engine == "openvino":
        from segbatch.infer.engine.openvino_engine import OpenVinoEngine

        opened = OpenVinoEngine(model.file, precision, threads, memory, found.bytes_per_px)
    else:
        opened = OnnxRuntimeEngine(model.file, threads)
    log.info(
        "engine opened",
        engine=engine,
        version=opened.version,
        precision=precision,
        threads=threads,
        why=why,
        bytes_per_px=round(found.bytes_per_px),
    )
    return Opened(opened, threads, found.bytes_per_px, memory)


def _choose(model: Model, settings: Settings) -> tuple[str, str, Probe, str]:
    """Return engine, precision, what its trial showed, and why it was taken."""
    if settings.engine == "onnxruntime":
        return _reference(model, settings, "named in the settings")
    wanted = settings.precision
    if wanted != "bf16":
        trial = _trial(model, "openvino", "fp32")
        if trial.usable:
            gated = _passed(model.manifest, "openvino", "bf16")
            if wanted == "auto" and gated and trial.native_bf16:
                fast = _trial(model, "openvino", "bf16")
                if fast.usable:
                    return "openvino", "bf16", fast, "fastest that passed the parity gate"
            return (
                "openvino",
                "fp32",
                trial,
                "named" if wanted == "fp32" else _why_fp32(trial, gated),
            )
    else:
        trial = _trial(model, "openvino", "bf16")
        if trial.usable:
            if not _passed(model.manifest, "openvino", "bf16"):
                log.warning("precision was not compared on this model", precision="bf16")
            return "openvino", "bf16", trial, "named in the settings"
    if settings.engine == "openvino" or wanted == "bf16":
        raise EngineError(
            f"OpenVINO in {wanted} cannot be used here: {trial.reason}",
            "an engine that runs this model",
            "use --engine onnxruntime --precision fp32",
        )
    log.warning("OpenVINO cannot be used here, ONNX Runtime runs instead", reason=trial.reason)
    return _reference(model, settings, f"OpenVINO cannot be used here: {trial.reason}")


def _reference(model: Model, settings: Settings, why: str) -> tuple[str, str, Probe, str]:
    if settings.precision == "bf16":
        raise EngineError(
            "engine onnxruntime with precision bf16",
            "fp32: ONNX Runtime does not compute in bf16 on a processor",
            "use --precision fp32, or --engine openvino",
        )
    trial = _trial(model, "onnxruntime", "fp32")
    if not trial.usable:
        raise EngineError(
            f"ONNX Runtime cannot run {model.file}: {trial.reason}", "a network that runs"
        )
    return "onnxruntime", "fp32", trial, why


def _trial(model: Model, engine: str, precision: str) -> Probe:
    manifest = model.manifest
    return probe(
        model.file,
        manifest.sha256,
        engine,
        precision,
        manifest.input_channels,
        manifest.stride or 1,
    )


def _passed(manifest: Manifest, engine: str, precision: str) -> bool:
    return any(
        entry.passed and (entry.engine, entry.precision) == (engine, precision)
        for entry in manifest.parity
    )


def _why_fp32(trial: Probe, gated: bool) -> str:
    if not gated:
        return "bf16 has not passed the parity gate on this model"
    return "this processor does not compute in bf16" if not trial.native_bf16 else "bf16 failed"
