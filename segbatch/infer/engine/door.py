"""The one door: a path becomes a model, a model and the settings become an engine."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from segbatch.errors import EngineError, ModelError
from segbatch.infer.engine.cache import keep, recall, replace
from segbatch.infer.engine.halo import Tiling, measure_tiling
from segbatch.infer.engine.manifest import Manifest, Model, load_model
from segbatch.infer.engine.onnxruntime_engine import OnnxRuntimeEngine
from segbatch.infer.engine.probe import Probe, probe
from segbatch.log import get_logger

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from segbatch.settings import Settings

SHIPPED = Path(__file__).parent.parent / "shipped" / "beads.json"
MINIMAL = (
    '{"schema": "segbatch.model/1", "name": "NAME", "file": "NAME.onnx", '
    '"sha256": "(sha256sum NAME.onnx)", "classes": ["bead"], '
    '"normalisation": {"type": "bit_depth"}}'
)
PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin")
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


def open_model(path: str | Path) -> Model:
    """Read a model and find its stride and halo where its manifest does not say.

    Parameters
    ----------
    path
        ``""`` for the shipped network; a manifest ``NAME.json``; or
        ``NAME.onnx`` with ``NAME.json`` beside it.

    Raises
    ------
    ModelError
        It cannot be had as named. No other model is ever taken instead.
    """
    if not str(path):
        return _complete(SHIPPED, load_model(SHIPPED))
    named = Path(path)
    if named.suffix.lower() in PICKLES:
        raise ModelError(
            f"model {named}: a {named.suffix} file may hold code",
            "an ONNX network with its manifest",
            "export it first: an .onnx file, and a .json manifest beside it",
        )
    if named.suffix.lower() not in (".json", ".onnx"):
        raise ModelError(
            f"model {named}", "a manifest NAME.json, or NAME.onnx beside one", "check --model"
        )
    manifest_file = named.with_suffix(".json")
    if named != manifest_file and not named.is_file():
        raise ModelError(f"model {named}: no such file", "an existing file", "check --model")
    if named == manifest_file and not named.is_file():
        raise ModelError(f"model {named}: no such file", "an existing file", "check --model")
    if not manifest_file.is_file():
        raise ModelError(
            f"model {named} without its manifest {manifest_file.name}",
            "a manifest beside the network",
            f"write {manifest_file}, at least {MINIMAL}",
        )
    model = load_model(manifest_file)
    if named != manifest_file and model.file != named:
        raise ModelError(
            f"manifest {manifest_file} describes {model.manifest.file}",
            f"the manifest of {named.name}",
            f"correct its key file, or name {manifest_file} itself",
        )
    return _complete(manifest_file, model)


def _complete(manifest_file: Path, model: Model) -> Model:
    """Measure what tiles must respect, where the manifest does not say, and keep it."""
    manifest = model.manifest
    if None not in (manifest.stride, manifest.exact_tiling) and (
        manifest.halo_px is not None or not manifest.exact_tiling
    ):
        return model
    name = f"tiling-{manifest.sha256}.json"
    found = recall(name, Tiling)
    if found is None:
        found = measure_tiling(
            model.file, manifest.input_channels, available_threads(), manifest.stride
        )
        log.info("tiling measured", model=manifest.name, stride=found.stride, halo_px=found.halo_px)
    full = msgspec.structs.replace(
        manifest,
        stride=found.stride if manifest.stride is None else manifest.stride,
        halo_px=found.halo_px if manifest.halo_px is None else manifest.halo_px,
        exact_tiling=found.exact if manifest.exact_tiling is None else manifest.exact_tiling,
    )
    try:
        replace(manifest_file, msgspec.json.format(msgspec.json.encode(full), indent=2) + b"\n")
    except OSError:
        keep(name, found)
    return Model(full, model.file)


def available_threads() -> int:
    """Return the processors this process may use: its affinity, cut to a control group's quota."""
    if hasattr(os, "sched_getaffinity"):
        processors = len(os.sched_getaffinity(0))
    else:
        processors = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return processors
    if quota == "max":
        return processors
    return max(1, min(processors, round(int(quota) / int(period))))


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
