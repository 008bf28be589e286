"""What may be made of a model on this machine, and the making of each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from segbatch.errors import EngineError, ModelError
from segbatch.infer.engine.choice import BUILT_IN, TENSORRT, Choice, trial_of, why_no_tensorrt
from segbatch.infer.engine.digest import read_verified
from segbatch.infer.engine.half import LARGEST
from segbatch.infer.engine.probe import UNFIT, probe
from segbatch.learn.export.precision import Range, activation_range, to_fp16, to_int8
from segbatch.log import get_logger

if TYPE_CHECKING:
    from pathlib import Path

    from segbatch.infer.engine.manifest import Model
    from segbatch.infer.engine.tensorrt.flavour import Flavour
    from segbatch.learn.export.frames import Material

Kind = tuple[str, str]
ON_PROCESSOR: tuple[Kind, ...] = (*BUILT_IN, ("openvino", "int8"), ("onnxruntime", "int8"))
ON_GPU: tuple[Kind, ...] = tuple((f, p) for f in TENSORRT for p in ("fp16", "fp32", "int8"))
# What `--precision auto` tries there, one after the other until one passes: each takes long to
# build, and int8 gains little over fp16 and costs its accuracy.
AUTO_ON_GPU = ("fp16", "fp32")
NO_FRAMES = "it is calibrated on your own frames: --frames PATH"
log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Made:
    """An engine that can be opened, and what its manifest is to say of its making.

    ``network`` is the ONNX file that precision made of the source.
    """

    choice: Choice
    network: bytes
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Offer:
    """What a machine offers of what is wanted.

    A later one of ``groups`` is only tried where nothing of the one before it passes;
    ``declined`` says why the other kinds are not tried.
    """

    groups: list[list[Kind]]
    declined: dict[Kind, str]

    def told(self) -> list[str]:
        """Return what is declined in words, kinds of one engine and reason together."""
        together: dict[tuple[str, str], list[str]] = {}
        for (engine, precision), why in self.declined.items():
            together.setdefault((engine, why), []).append(precision)
        return [f"{e} {', '.join(some)}: not offered: {why}" for (e, why), some in together.items()]


def offered(
    model: Model, engine: str, precision: str, *, calibrates: bool, exact: bool = False
) -> Offer:
    """Return the kinds to try, and why the others are not offered on this machine.

    Parameters
    ----------
    model
        To be run.
    engine, precision
        ``auto`` for all that make sense, or the one that is wanted; ``tensorrt`` is either
        flavour, as at the door.
    calibrates
        There are frames to calibrate INT8 on. Noise would not do: its range is not theirs.
    exact
        ``tensorrt`` is that flavour alone: an engine is made again as the one that it was.

    Raises
    ------
    EngineError
        What was named does not exist, or not on this machine.
    """
    either = TENSORRT if engine == "tensorrt" and not exact else ()
    known = [
        kind
        for kind in (*ON_GPU, *ON_PROCESSOR)
        if (engine in ("auto", kind[0]) or kind[0] in either) and precision in ("auto", kind[1])
    ]
    if not known:
        raise EngineError(
            f"engine {engine} with precision {precision}",
            "one of " + ", ".join(f"{e} {p}" for e, p in (*ON_GPU, *ON_PROCESSOR)),
            "leave --precision out for the fastest that passes the gate",
        )
    reasons = {kind: _declined(model, *kind) for kind in known}
    for kind in known:
        if kind[1] == "int8" and not calibrates:
            reasons[kind] = reasons[kind] or NO_FRAMES
    if engine == "auto" and not reasons.get(("openvino", "fp32"), "-"):
        for kind in known:
            if kind[0] == "onnxruntime":
                reasons[kind] = reasons[kind] or "OpenVINO runs here, and is faster"
    if precision == "auto":
        for kind in known:
            if kind in ON_GPU and kind[1] not in AUTO_ON_GPU:
                reasons[kind] = reasons[kind] or "only where it is named"
    one_by_one = [[k for k in ON_GPU if k[1] == each] for each in (*AUTO_ON_GPU, "int8")]
    groups = [
        [kind for kind in known if kind in some and not reasons[kind]]
        for some in (*one_by_one, ON_PROCESSOR)
    ]
    offer = Offer(
        [group for group in groups if group], {kind: why for kind, why in reasons.items() if why}
    )
    if not offer.groups and NO_FRAMES in offer.declined.values():
        raise EngineError(
            "int8 without frames to calibrate on",
            "frames as they will come, with objects in them",
            "name them: --frames FOLDER",
        )
    if not offer.groups:
        raise EngineError(
            "; ".join(offer.told()),
            "an engine and a precision that this machine has",
            "segbatch selftest says what it offers",
        )
    return offer


def _declined(model: Model, engine: str, precision: str) -> str:
    """Say why a kind is not offered here; empty where it is."""
    if engine in TENSORRT:
        return why_no_tensorrt(engine)
    trial = trial_of(model, engine, "fp32")
    if not trial.usable:
        return trial.reason
    if engine == "openvino" and not trial.computes_in(precision):
        return f"{UNFIT} {precision}"
    return ""


def make(model: Model, kind: Kind, material: Material, folder: Path, remarks: list[str]) -> Made:
    """Make an engine of one kind; what has a file of its own is written into ``folder``.

    Raises
    ------
    ModelError
        The network cannot be written in the precision, or its values do not fit into it.
    EngineError
        The engine cannot be built, or does not run what was made.
    """
    engine, precision = kind
    source = read_verified(model.file, model.manifest.sha256)
    options: dict[str, Any] = {}
    network = source
    if precision == "fp16":
        options = _checked_range(source, material, remarks)
        if engine in TENSORRT:
            network = to_fp16(source, half_input=True)
    elif precision == "int8":
        symmetric = engine in TENSORRT
        network = to_int8(source, material.calibration, symmetric=symmetric)
        side = material.calibration[0].shape[2]
        options = {"calibration": f"{len(material.calibration)} patches of {side} px"}
    if engine in TENSORRT:
        options["frame_shape"] = list(_planned_for(model, material))
        return Made(_built(model, kind, network, material, folder), network, options)
    file, sha256 = model.file, model.manifest.sha256
    if network is not source:
        file = folder / f"{model.file.stem}.{engine}-{precision}.onnx"
        file.write_bytes(network)
        sha256 = hashlib.sha256(network).hexdigest()
    manifest = model.manifest
    trial = probe(file, sha256, engine, precision, manifest.input_channels, manifest.stride or 1)
    if not trial.usable:
        raise EngineError(f"{engine} in {precision} does not run here: {trial.reason}")
    return Made(Choice(engine, precision, file, sha256, trial, "new"), network, options)


def _checked_range(source: bytes, material: Material, remarks: list[str]) -> dict[str, Any]:
    """Look whether every layer's values fit into fp16, with a margin for frames to come."""
    found: Range = activation_range(source, material.calibration)
    if not found.fits_fp16:
        raise ModelError(
            f"layer {found.layer} gives values up to {found.largest:.3g}",
            f"at most {LARGEST:.0f} for fp16",
            "use --precision fp32 or bf16, which have the range",
        )
    if found.near_limit:
        told = f"fp16 may overflow: layer {found.layer} gives values up to {found.largest:.3g}"
        log.warning(told, limit=LARGEST)
        remarks.append(f"{told}, of {LARGEST:.0f}")
    return {"largest_activation": round(found.largest, 3), "largest_activation_in": found.layer}


def _planned_for(model: Model, material: Material) -> tuple[int, int]:
    """Return the frames that an engine of one shape is for, as large as its gate can follow.

    Of a network without a finite halo the mask of part of a frame says nothing of the whole.
    """
    whole = material.whole_shape if model.manifest.exact_tiling else None
    return whole or material.frame_shape


def _bytes_per_px(model: Model, precision: str) -> float:
    """Return what a network's activations are thought to need on a GPU, by what they need here."""
    known = [trial_of(model, engine, "fp32") for engine in ("openvino", "onnxruntime")]
    return min(each.bytes_per_px for each in known) / (1 if precision == "fp32" else 2)


def _built(model: Model, kind: Kind, network: bytes, material: Material, folder: Path) -> Choice:
    """Build a TensorRT engine that ends in the mask, and open it where there is a GPU."""
    import onnx

    from segbatch.infer.engine.tensorrt import Progress, Source, build_largest
    from segbatch.infer.engine.tensorrt.fitting import planned_shape, room_px, smaller_shape
    from segbatch.learn.export.head import append_decision

    engine, precision = kind
    manifest = model.manifest
    threshold = manifest.threshold if manifest.output == "sigmoid" else None
    decided = append_decision(
        onnx.load_from_string(network), stride=manifest.stride or 1, threshold=threshold
    )

    def progress(at: Progress) -> None:
        tell = log.debug if at.done else log.info
        tell("building", engine=engine, phase=at.phase, done=at.done, steps=at.steps)

    flavour: Flavour = "tensorrt" if engine == "tensorrt" else "tensorrt_rtx"
    frame_shape = _planned_for(model, material)
    room = room_px(flavour, _bytes_per_px(model, precision))
    artifact = build_largest(
        decided.SerializeToString(),
        planned_shape(manifest, frame_shape, room),
        folder,
        model.file.stem,
        source=Source(manifest.name, manifest.sha256, precision, threshold),  # type: ignore[arg-type]
        flavour=flavour,
        progress=progress,
        smaller=partial(smaller_shape, manifest, frame_shape),
    )
    return Choice(
        engine,
        precision,
        artifact.file,
        artifact.manifest.sha256,
        trial_of(model, engine, precision),
        "new",
        artifact,
    )
