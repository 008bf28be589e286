"""The gate: an engine is the same network, or it is not written.

Likeness is measured to the source network, run by ONNX Runtime in fp32; time is measured in
turns, so that what else the machine does falls on all alike.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, cast

import numpy as np

from segbatch.errors import EngineError
from segbatch.infer import decide
from segbatch.infer.engine.made.likeness import Answer, judge, likeness
from segbatch.infer.layout import grid_of_engine
from segbatch.infer.tiles import up

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from segbatch.infer.engine.door import Deciding, Engine
    from segbatch.infer.engine.made.artifact import Shape, Verdict
    from segbatch.infer.engine.manifest import Manifest
    from segbatch.infer.tiles import Span
    from segbatch.learn.export.frames import Frames, Picture

# Engines whose times differ by less are called equally fast; masks that agree less by more than
# this are called less accurate.
SAME_TIME, SAME_AGREEMENT = 0.1, 1e-4
TIMED_S, FEWEST_ROUNDS, MOST_ROUNDS = 20.0, 3, 15


def answer(engine: Engine, image: Picture, manifest: Manifest) -> Answer:
    """Run one input, in tiles where the engine takes no larger ones.

    An engine that decides runs twice, once for its logits and once for its masks.
    """
    shape, groups = _requests(engine, image, manifest)
    rows, columns = image.shape[2:]
    logits = np.empty((0, rows, columns), np.float32)
    mask = np.empty((rows, columns), np.uint8) if engine.decides else None
    for tiles in groups:
        with engine.request(shape, 1) as request:
            image.fill(request.input, tiles)
            found = request.infer()
            if not len(logits):
                logits = np.empty((found.shape[1], rows, columns), np.float32)
            for place, (y, x) in zip(found, tiles, strict=False):
                logits[:, y.target, x.target] = place[:, y.kept, x.kept]
        if mask is None:
            continue
        with engine.request(shape, 1) as request:
            image.fill(request.input, tiles)
            masks = cast("Deciding", request).decide().mask
            for place, (y, x) in zip(masks, tiles, strict=False):
                mask[y.target, x.target] = place[y.kept, x.kept]
    return decided_from(logits, manifest, mask)


def _requests(
    engine: Engine, image: Picture, manifest: Manifest
) -> tuple[Shape, list[list[tuple[Span, Span]]]]:
    """Return the shape of the engine's input, and the tiles of one picture by request."""
    shape = engine.input_shape or image.shape
    sides = (image.shape[2], image.shape[3])
    stride, halo = manifest.stride or 1, manifest.tile_halo_px
    tiles = list(grid_of_engine(sides, stride, halo, shape).tiles())
    return shape, [tiles[at : at + shape[0]] for at in range(0, len(tiles), shape[0])]


def comparable(engine: Engine, image: Picture, manifest: Manifest) -> tuple[slice, slice]:
    """Return the rows and columns of a picture in which an engine has to answer as its network.

    All of them, but where the engine takes larger pictures: there the network sees the picture's
    edge, and the engine what is mirrored beyond it.

    Raises
    ------
    EngineError
        There are none.
    """
    sides = image.shape[2:] if engine.input_shape is None else engine.input_shape[2:]
    ends = [
        have if side <= have else have - up(manifest.tile_halo_px, manifest.stride or 1)
        for have, side in zip(image.shape[2:], sides, strict=True)
    ]
    if min(ends) < 1:
        raise EngineError(
            f"frames of {image.shape[2]} x {image.shape[3]} px, and an engine for "
            f"{sides[0]} x {sides[1]}",
            "frames of which more is left than the network's halo",
        )
    return slice(ends[0]), slice(ends[1])


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
    found = []
    for frames, answers in zip(sets, wanted, strict=True):
        parts = [comparable(engine, each, manifest) for each in frames.inputs]
        right = [_part(each, part) for each, part in zip(answers, parts, strict=True)]
        got = [
            _part(answer(engine, each, manifest), part)
            for each, part in zip(frames.inputs, parts, strict=True)
        ]
        found.append(likeness(frames.name, right, got, noise=frames.noise))
    return judge(found, tolerance, reference)


def _part(whole: Answer, part: tuple[slice, slice]) -> Answer:
    probabilities = whole.probabilities
    return Answer(whole.mask[part], None if probabilities is None else probabilities[:, *part])


def time_in_turns(
    engines: Mapping[str, Engine], image: Picture, manifest: Manifest
) -> tuple[dict[str, float], int]:
    """Time each engine on one input, one after the other, round after round.

    Returns
    -------
    milliseconds
        Median a frame of each engine: counts to input, and the mask or the logits.
    rounds
        How often each was timed, after one run that is not counted.
    """
    first = sum(_one_ms(engine, image, manifest) for engine in engines.values())
    rounds = round(min(MOST_ROUNDS, max(FEWEST_ROUNDS, TIMED_S * 1000.0 / max(first, 1e-3))))
    taken: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, engine in engines.items():
            taken[name].append(_one_ms(engine, image, manifest))
    return {name: statistics.median(each) for name, each in taken.items()}, rounds


def _one_ms(engine: Engine, image: Picture, manifest: Manifest) -> float:
    shape, groups = _requests(engine, image, manifest)
    taken_s = 0.0
    for tiles in groups:
        with engine.request(shape, 1) as request:
            started = time.perf_counter()
            image.fill(request.input, tiles)
            if engine.decides:
                cast("Deciding", request).decide()
            else:
                request.infer()
            taken_s += time.perf_counter() - started
    # An engine for larger frames did the work of one.
    used = [min(1.0, a / b) for a, b in zip(image.shape[2:], shape[2:], strict=True)]
    return taken_s * 1000.0 * used[0] * used[1]


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
