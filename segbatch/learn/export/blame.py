"""Why an engine did not pass: the frames, the figures, and the layer where it departs."""

from __future__ import annotations

import math
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from segbatch.errors import EngineError
from segbatch.infer.engine.choice import TENSORRT
from segbatch.infer.engine.cpu.onnxruntime_engine import OnnxRuntimeEngine
from segbatch.infer.engine.digest import read_verified
from segbatch.infer.engine.made.likeness import tolerance_of
from segbatch.infer.tiles import up
from segbatch.learn.export.gate import answer, comparable
from segbatch.learn.export.layers import Parting, parting

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from segbatch.infer.engine.door import Engine
    from segbatch.infer.engine.made.artifact import Verdict
    from segbatch.infer.engine.manifest import Model
    from segbatch.learn.export.candidates import Made
    from segbatch.learn.export.exporting import Entry, Result
    from segbatch.learn.export.frames import Material, Picture

# Every layer's values of such a square are held at once, twice.
SIDE_PX = 256
# Masks that agree less are wrong, whatever a tolerance would let pass.
LEAST_OFFERED = 0.9


def blame(model: Model, made: Made, verdict: Verdict, material: Material, engine: Engine) -> str:
    """Say on which frames an engine departs from its network, how far, and in which layer."""
    worst = min(verdict.likeness, key=lambda each: each.mask_agreement)
    told = f"masks agree in {worst.mask_agreement:.4%} of the pixels of {worst.frames} frames"
    if worst.iou is not None:
        told += f", objects overlap by {worst.iou:.2%}"
    frames = next(each for each in material.sets if each.name == worst.frames)
    square = _worst_square(model, engine, frames.inputs)
    found = _parting(model, made, square)
    if found is None:
        return f"{told}; its layers cannot be told apart"
    return f"{told}; {found}"


def _parting(model: Model, made: Made, square: NDArray[np.float32]) -> Parting | None:
    engine, precision = made.choice.engine, made.choice.precision
    source = read_verified(model.file, model.manifest.sha256)
    native = precision if engine == "openvino" and precision != "int8" else ""
    # TensorRT shows no layers; ONNX Runtime rounds to the precision that the file states.
    network = source if engine not in TENSORRT and native else made.network
    return parting(source, network, square, openvino_precision=native)


def _worst_square(model: Model, engine: Engine, images: list[Picture]) -> NDArray[np.float32]:
    """Return the square around the pixel where engine and source differ most."""
    stride = model.manifest.stride or 1
    largest, found = -1.0, images[0].values()
    with closing(OnnxRuntimeEngine(model.file, 1, sha256=model.manifest.sha256)) as reference:
        for image in images:
            right, got = (answer(each, image, model.manifest) for each in (reference, engine))
            if right.probabilities is None or got.probabilities is None:
                continue
            off = np.nan_to_num(
                np.abs(right.probabilities - got.probabilities).max(axis=0), nan=1.0
            )
            off = off[comparable(engine, image, model.manifest)]
            if off.max() <= largest:
                continue
            largest = float(off.max())
            at = np.unravel_index(int(off.argmax()), off.shape)
            side = up(SIDE_PX + model.manifest.margin_px, stride)
            spans = []
            for place, length in zip(at, image.shape[2:], strict=True):
                start = max(0, min(int(place) - side // 2, length - side)) // stride * stride
                spans.append(slice(start, start + side))
            found = image.values()[:, :, spans[0], spans[1]]
    return np.ascontiguousarray(found)


def none_passed(result: Result) -> EngineError:
    """Return the error that says why no engine was written, and what to try."""
    last = [entry for entry in result.entries if entry.why]
    told = "; ".join(f"{entry.label}: {entry.why}" for entry in last)
    return EngineError(f"no engine passed the gate: {told}", _wanted(last), _remedy(last, result))


def _wanted(entries: list[Entry]) -> str:
    verdict = next((entry.verdict for entry in entries if entry.verdict is not None), None)
    if verdict is None:
        return "an engine that gives the network's masks"
    return (
        f"masks that agree with the network's in {verdict.tolerance:.4%} of the pixels, "
        f"objects that overlap by {verdict.least_iou:.2%}"
    )


def _remedy(entries: list[Entry], result: Result) -> str:
    tries = []
    precisions = {entry.kind[1] for entry in entries}
    if "int8" in precisions:
        tries.append("--frames with frames as they will come, to calibrate on")
    if precisions - {"fp32"}:
        tries.append("another --precision: fp32 is exact")
    verdict = next((entry.verdict for entry in entries if entry.verdict is not None), None)
    if verdict is not None:
        enough = math.floor(tolerance_of(verdict.likeness) * 1e5) / 1e5
        if LEAST_OFFERED <= enough < verdict.tolerance:
            tries.append(f"--tolerance {enough:g} if masks that agree so far are enough")
    if not result.material.source:
        tries.append("--frames with your own frames, which these stand in for")
    return "try " + "; or ".join(tries) if tries else ""
