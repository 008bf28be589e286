"""Which engine runs a model, and why: what is built in, and what was made beforehand.

OpenVINO and ONNX Runtime run the network itself. An artifact (``artifact.py``) is a precision
that needs a file of its own, an engine that has to be built, or nothing but the proof that a
precision passed the gate on this processor.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from segbatch.errors import EngineError, SegbatchError
from segbatch.infer.engine.machine import processor_id
from segbatch.infer.engine.made.artifact import (
    Artifact,
    EngineManifest,
    engines_of,
    kind_of,
    load_artifact,
    rebuild_command,
)
from segbatch.infer.engine.network.models import SHIPPED
from segbatch.infer.engine.probe import Probe, probe
from segbatch.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from segbatch.infer.engine.manifest import Manifest, Model
    from segbatch.settings import Settings

# What runs the very network, without anything made beforehand.
BUILT_IN = (
    ("openvino", "bf16"),
    ("openvino", "fp16"),
    ("openvino", "fp32"),
    ("onnxruntime", "fp32"),
)
TENSORRT = ("tensorrt", "tensorrt_rtx")
REMEDY = "use --engine onnxruntime --precision fp32"
log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine, a precision, the file that it opens, and what a trial of it showed.

    ``sha256`` is that of the file, verified once more on the bytes that are opened.
    """

    engine: str
    precision: str
    file: Path
    sha256: str
    trial: Probe
    why: str
    artifact: Artifact | None = None


def choose(model: Model, settings: Settings) -> Choice:
    """Choose what the settings name, or the fastest that passed the gate and runs here.

    Among what was made of this model beforehand and fits this machine the fastest is taken,
    by the times of its export; ``auto`` takes it before what is built in unless a built-in
    engine was faster in the same turns. Without any, OpenVINO is taken where its trial run
    succeeds, in bf16 where the model's manifest records that it passed and the processor
    computes in it, else in fp32; else ONNX Runtime.

    Raises
    ------
    EngineError
        The engine or precision that was named cannot be used, or none can.
    """
    made, refused = _made(model, settings)
    for choice in made:
        return choice
    built_in = any(_named(settings, *kind) for kind in BUILT_IN)
    if refused and not built_in:
        raise refused[0]
    for each in refused:
        log.warning("an engine made beforehand is left out", why=str(each))
    if not built_in:
        raise _not_made(model, settings)
    return _built_in(model, settings)


@cache
def why_no_tensorrt(flavour: str) -> str:
    """Say why no engine of a flavour can run here; empty where one can. Asked once a process."""
    from segbatch.infer.engine.tensorrt.driver import why_unusable

    return why_unusable("tensorrt" if flavour == "tensorrt" else "tensorrt_rtx") or ""


def why_unfit(manifest: EngineManifest, manifest_file: Path, source_sha256: str) -> str:
    """Say why an engine that is whole must not run here; empty where it may."""
    named, made = " ".join(kind_of(manifest_file)), f"{manifest.engine} {manifest.precision}"
    if named != made:
        return f"its name says {named or 'nothing'}, and its manifest {made}"
    if manifest.source_sha256 != source_sha256:
        return f"it was made of another network, SHA-256 {manifest.source_sha256}"
    if manifest.parity is None:
        return "it was never compared with its network"
    if not manifest.parity.passed:
        return "it did not pass the gate"
    if manifest.engine in TENSORRT:
        return ""  # its own door looks at GPU, driver and version
    if manifest.hardware.processor not in (None, processor_id()):
        return f"it passed the gate on another processor, {manifest.hardware.processor}"
    return ""


def load_fitting(manifest_file: Path, source_sha256: str) -> Artifact:
    """Read an engine's manifest, verify its file, and refuse it where it does not fit.

    Raises
    ------
    EngineError
        It is broken, or is not for this network or machine; the remedy rebuilds it.
    """
    artifact = load_artifact(manifest_file)
    why = why_unfit(artifact.manifest, manifest_file, source_sha256)
    if why:
        raise EngineError(
            f"engine {manifest_file.name}: {why}",
            "an engine that passed the gate on this network and machine",
            rebuild_command(manifest_file),
        )
    if artifact.manifest.engine in TENSORRT:
        from segbatch.infer.engine.tensorrt.fits import fitting_bytes

        fitting_bytes(artifact, source_sha256)
    return artifact


def trial_of(model: Model, engine: str, precision: str, artifact: Artifact | None = None) -> Probe:
    """Try an engine on the network, or on the file made of it, in a process of its own."""
    if engine in TENSORRT:
        return Probe(usable=True, bytes_per_px=1.0)  # its memory is not the processor's
    manifest = model.manifest
    file = model.file if artifact is None else artifact.file
    sha256 = manifest.sha256 if artifact is None else artifact.manifest.sha256
    return probe(file, sha256, engine, precision, manifest.input_channels, manifest.stride or 1)


def _named(settings: Settings, engine: str, precision: str) -> bool:
    """Tell whether the settings allow an engine and precision."""
    # The same library in two flavours: who has one of them means that one.
    engines = TENSORRT if settings.engine == "tensorrt" else (settings.engine,)
    return (settings.engine == "auto" or engine in engines) and (
        settings.precision in ("auto", precision)
    )


def _made(model: Model, settings: Settings) -> tuple[list[Choice], list[EngineError]]:
    """Return what was made beforehand and may run, the best first, and what is refused."""
    fitting: list[Artifact] = []
    refused: list[EngineError] = []
    for file in engines_of(_manifest_file(model), model.manifest.sha256):
        if not _named(settings, *kind_of(file)):
            continue
        try:
            fitting.append(load_fitting(file, model.manifest.sha256))
        except SegbatchError as error:
            refused.append(EngineError(error.got, error.wanted, error.remedy))
    fitting.sort(key=_ms)
    choices: list[Choice] = []
    for artifact in fitting:
        manifest = artifact.manifest
        faster = list(_faster_built_in(model, settings, manifest))
        if faster:
            log.info("a built-in engine was faster at export", made=manifest.file, faster=faster)
            continue
        trial = trial_of(model, manifest.engine, manifest.precision, artifact)
        if trial.usable:
            why = f"passed the gate, {_ms(artifact):.1f} ms a frame at export"
            choices.append(
                Choice(
                    manifest.engine,
                    manifest.precision,
                    artifact.file,
                    manifest.sha256,
                    trial,
                    why,
                    artifact,
                )
            )
            break
        refused.append(
            EngineError(
                f"engine {artifact.manifest_file.name} cannot be used here: {trial.reason}",
                "an engine that runs",
                rebuild_command(artifact.manifest_file),
            )
        )
    if choices:
        for each in refused:
            log.warning("an engine made beforehand is left out", why=str(each))
    return choices, refused


def _manifest_file(model: Model) -> Path:
    return model.file.with_suffix(".json")


def _ms(artifact: Artifact) -> float:
    speed = artifact.manifest.speed
    return float("inf") if speed is None else speed.engine_ms


def _faster_built_in(model: Model, settings: Settings, made: EngineManifest) -> Iterator[str]:
    """Yield the built-in engines that were faster than one made beforehand, in its own turns."""
    if made.speed is None:
        return
    for engine, precision in BUILT_IN:
        ms = made.speed.others.get(f"{engine} {precision}")
        if (
            ms is not None
            and ms < made.speed.engine_ms
            and (made.engine, made.precision) != (engine, precision)
            and _named(settings, engine, precision)
            and (precision == "fp32" or _passed(model.manifest, engine, precision))
        ):
            yield f"{engine} {precision}"


def _not_made(model: Model, settings: Settings) -> EngineError:
    engine, precision = settings.engine, settings.precision
    options = "".join(
        f" --{key} {value}"
        for key, value in (("engine", engine), ("precision", precision))
        if value != "auto"
    )
    if engine == "onnxruntime" and precision in ("bf16", "fp16"):
        return EngineError(
            f"engine onnxruntime with precision {precision}",
            f"fp32 or int8: ONNX Runtime does not compute in {precision} on a processor",
            "use --precision fp32, or --engine openvino",
        )
    named = f"{'any engine' if engine == 'auto' else engine}, precision {precision}"
    nothing = f"nothing was made of model {model.manifest.name} for {named}"
    if engine in TENSORRT and (told := _why_no_flavour(engine)):
        why, _, remedy = told.partition("; remedy: ")
        return EngineError(
            f"{nothing}, and it cannot run here: {why}",
            "a GPU, its driver and the library",
            f"{remedy or 'segbatch doctor says more'}; or use --engine auto",
        )
    # A model that was taken in lies in a cache folder that the user never named.
    words = [settings.model or str(_manifest_file(model))]
    words += ["--arch", settings.arch] if settings.arch else []
    shipped = model.file.parent == SHIPPED.parent
    named_model = "" if shipped else f" {shlex.join(words)}"
    if precision == "int8" and not shipped:
        options += " --frames FOLDER"
    return EngineError(
        nothing,
        "an engine made beforehand, beside the model",
        # Whoever names a kind wants it, slower than another or not.
        f"segbatch export-engine{named_model}{options} --force",
    )


def _why_no_flavour(engine: str) -> str:
    """Say why no engine of what the settings call ``engine`` can run here; empty where one can."""
    reasons = [why_no_tensorrt(each) for each in (TENSORRT if engine == "tensorrt" else (engine,))]
    if "" in reasons:
        return ""
    from segbatch.infer.engine.tensorrt.flavour import installed

    there = [why for each, why in zip(TENSORRT, reasons, strict=False) if each in installed()]
    return (there or reasons)[0]


def _built_in(model: Model, settings: Settings) -> Choice:
    """Choose among the engines that run the network itself."""
    if settings.engine == "onnxruntime":
        return _reference(model, "named in the settings")
    wanted, sha256 = settings.precision, model.manifest.sha256
    if wanted in ("bf16", "fp16"):
        trial = trial_of(model, "openvino", wanted)
        if trial.usable:
            if not _passed(model.manifest, "openvino", wanted):
                log.warning("precision was not compared on this model", precision=wanted)
            return Choice("openvino", wanted, model.file, sha256, trial, "named in the settings")
    else:
        trial = trial_of(model, "openvino", "fp32")
        if trial.usable:
            return _openvino(model, wanted, trial)
    if settings.engine == "openvino" or wanted in ("bf16", "fp16"):
        raise EngineError(
            f"OpenVINO in {wanted} cannot be used here: {trial.reason}",
            "an engine that runs this model",
            REMEDY,
        )
    log.warning("OpenVINO cannot be used here, ONNX Runtime runs instead", reason=trial.reason)
    return _reference(model, f"OpenVINO cannot be used here: {trial.reason}")


def _openvino(model: Model, wanted: str, trial: Probe) -> Choice:
    """Choose the precision where OpenVINO works in fp32."""
    gated, sha256 = _passed(model.manifest, "openvino", "bf16"), model.manifest.sha256
    why = "named"
    if wanted == "auto":
        why = "bf16 has not passed the parity gate on this model"
        if gated and not trial.computes_in("bf16"):
            why = "this processor does not compute in bf16"
        elif gated:
            fast = trial_of(model, "openvino", "bf16")
            why = "fastest that passed the parity gate" if fast.usable else "bf16 failed"
            if fast.usable:
                return Choice("openvino", "bf16", model.file, sha256, fast, why)
    return Choice("openvino", "fp32", model.file, sha256, trial, why)


def _reference(model: Model, why: str) -> Choice:
    trial = trial_of(model, "onnxruntime", "fp32")
    if not trial.usable:
        raise EngineError(
            f"ONNX Runtime cannot run {model.file}: {trial.reason}", "a network that runs"
        )
    return Choice("onnxruntime", "fp32", model.file, model.manifest.sha256, trial, why)


def _passed(manifest: Manifest, engine: str, precision: str) -> bool:
    return any(
        entry.passed and (entry.engine, entry.precision) == (engine, precision)
        for entry in manifest.parity
    )
