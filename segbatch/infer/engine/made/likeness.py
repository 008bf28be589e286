"""How alike two engines' answers are, and whether that is like enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from segbatch.infer.engine.made.artifact import Likeness, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

PASSING_AGREEMENT = 0.999
# A mask of few objects agrees in all its background: a hundredth of foreground that came or
# went may be a ten-thousandth of the pixels. So the objects are asked for too, at this many
# times the tolerated part of the mask.
IOU_TIMES = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What an engine says of one input: mask (Y, X) uint8, probabilities (K, Y, X) or None."""

    mask: NDArray[np.uint8]
    probabilities: NDArray[np.float32] | None


def least_iou(tolerance: float) -> float:
    """Return the overlap of objects that goes with an agreement of masks."""
    return max(0.0, 1.0 - IOU_TIMES * (1.0 - tolerance))


def likeness(
    name: str, wanted: Sequence[Answer], found: Sequence[Answer], *, noise: bool = False
) -> Likeness:
    """Compare answers to the same inputs, pixel by pixel."""
    pixels = same = both = either = values = 0
    largest = total = 0.0
    for right, got in zip(wanted, found, strict=True):
        pixels += right.mask.size
        equal = right.mask == got.mask
        same += int(np.count_nonzero(equal))
        both += int(np.count_nonzero(equal & (right.mask > 0)))
        either += int(np.count_nonzero((right.mask > 0) | (got.mask > 0)))
        if right.probabilities is not None and got.probabilities is not None:
            difference = np.abs(right.probabilities - got.probabilities)
            largest = max(largest, float(difference.max()))  # NaN is never above: see below
            total += float(difference.sum(dtype=np.float64))
            values += difference.size
    finite = np.isfinite(total)
    return Likeness(
        frames=name,
        count=len(wanted),
        noise=noise,
        max_probability_difference=(largest if finite else 1.0) if values else None,
        mean_probability_difference=(total / values if finite else 1.0) if values else None,
        mask_agreement=same / pixels if finite else 0.0,
        iou=None if not either else both / either if finite else 0.0,
    )


def tolerance_of(likenesses: list[Likeness]) -> float:
    """Return the highest ``tolerance`` with which ``judge`` lets these pass; at least 0."""
    bars = [each.mask_agreement for each in likenesses]
    bars += [
        1.0 - (1.0 - each.iou) / IOU_TIMES
        for each in likenesses
        if each.iou is not None and not each.noise
    ]
    return max(0.0, min(bars, default=0.0))


def judge(likenesses: list[Likeness], tolerance: float, reference: str) -> Verdict:
    """Hold likenesses against the bars.

    Masks have to agree in ``tolerance`` of the pixels of each set; on frames that are not
    noise objects have to overlap as well.
    """
    least = least_iou(tolerance)
    passed = all(
        each.mask_agreement >= tolerance and (each.iou is None or each.iou >= least or each.noise)
        for each in likenesses
    )
    return Verdict(
        passed=passed,
        tolerance=tolerance,
        least_iou=least,
        reference=reference,
        likeness=likenesses,
    )
