"""The gate: an engine is the same network, or it is not written.

Likeness is measured to the source network, run by ONNX Runtime in fp32; time is measured in
turns, so that what else the machine does falls on all alike.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from segbatch.infer import decide
from segbatch.infer.engine.likeness import Answer, judge, likeness

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from segbatch.infer.engine.artifact import Verdict
    from segbatch.infer.engine.door import Deciding, Engine
    from segbatch.infer.engine.manifest import Manifest
    from segbatch.learn.export.frames import Frames, Picture

# Engines whose times differ by less are called equally fast; masks that agree less by more than
# this are called less accurate.
SAME_TIME, SAME_AGREEMENT = 0.1, 1e-4
TIMED_S, FEWEST_ROUNDS, MOST_ROUNDS = 20.0, 3, 15


def answer(engine: Engine, image: Picture, manifest: Manifest) -> Answer:
    """Run one input; every place of an engine of fixed batch is given the same.

    An engine that decides runs twice, once for its logits and once for its masks.
    """
    shape: Any = engine.input_shape or image.shape
    with engine.request(shape, 1) as request:
        image.fill(request.input)
        logits = np.asarray(request.infer()[0], np.float32).copy()
    if not engine.decides:
        return decided_from(logits, manifest)
    with engine.request(shape, 1) as request:
        image.fill(request.input)
        mask = cast("Deciding", request).decide().mask[0].copy()
    return decided_from(logits, manifest, mask)


def decided_from(
    logits: NDArray[np.float32], manifest: Manifest, mask: NDArray[np.uint8] | None = None
) -> Answer:
    """Return probabilities of logits (K, Y, X), and the mask where the engine gave none."""
    if manifest.output == "sigmoid":
        probabilities = decide.sigmoid(logits)
        if mask is None:
            mask = (logits[0] > np.float32(decide.logit(manifest.threshold))).astype(np.uint8)
    else:
        probabilities = decide.softmax(logits)
        if mask is None:
            mask = logits.argmax(axis=0).astype(np.uint8)
    return Answer(mask, probabilities)


def compare(
    engine: Engine,
    sets: Sequence[Frames],
    wanted: Sequence[Sequence[Answer]],
    manifest: Manifest,
    tolerance: float,
    reference: str,
) -> Verdict:
    """Run every input of ``sets`` and judge the answers against ``wanted``."""
    found = [
        likeness(
            frames.name,
            right,
            [answer(engine, each, manifest) for each in frames.inputs],
            noise=frames.noise,
        )
        for frames, right in zip(sets, wanted, strict=True)
    ]
    return judge(found, tolerance, reference)


def time_in_turns(engines: Mapping[str, Engine], image: Picture) -> tuple[dict[str, float], int]:
    """Time each engine on one input, one after the other, round after round.

    Returns
    -------
    milliseconds
        Median a frame of each engine: counts to input, and the mask or the logits.
    rounds
        How often each was timed, after one run that is not counted.
    """
    first = sum(_one_ms(engine, image) for engine in engines.values())
    rounds = round(min(MOST_ROUNDS, max(FEWEST_ROUNDS, TIMED_S * 1000.0 / max(first, 1e-3))))
    taken: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, engine in engines.items():
            taken[name].append(_one_ms(engine, image))
    return {name: statistics.median(each) for name, each in taken.items()}, rounds


def _one_ms(engine: Engine, image: Picture) -> float:
    shape: Any = engine.input_shape or image.shape
    with engine.request(shape, 1) as request:
        started = time.perf_counter()
        image.fill(request.input)
        if engine.decides:
            cast("Deciding", request).decide()
        else:
            request.infer()
        taken_s = time.perf_counter() - started
    return taken_s * 1000.0 / int(shape[0])


def worse_than(new_ms: float, new: Verdict, other_ms: float, other: Verdict) -> str:
    """Say in which way an engine is worse than another; empty where it is not.

    Slower and no more alike, or less alike and no faster.
    """
    agreement, others = (min(e.mask_agreement for e in v.likeness) for v in (new, other))
    if new_ms > other_ms * (1 + SAME_TIME) and agreement <= others:
        return f"slower ({new_ms:.1f} to {other_ms:.1f} ms a frame) and no more accurate"
    if agreement < others - SAME_AGREEMENT and new_ms > other_ms * (1 - SAME_TIME):
        return f"less accurate ({agreement:.4%} to {others:.4%} of the mask) and no faster"
    return ""
