"""From logits to classes, and how sure the network was.

A threshold on a probability is applied to the logit (``p > t`` exactly when
``l > log(t / (1 - t))``), so that no exponential is taken per pixel.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Logits are counted in 65536 bins of 1/2048 between -16 and 16; beyond, a
# probability differs from 0 or 1 by less than 1.2e-7.
BINS_PER_LOGIT = 2048
BINS = 1 << 16
BLOCK_ROWS = 32
# Certainty is a mean over millions of pixels that resemble their neighbours:
# in frames of a megapixel and more, every fourth row gives it to a thousandth.
LARGE_PX, LARGE_STEP = 1 << 20, 4


def counted_rows(frame_px: int, first_row: int) -> slice:
    """Return the rows of a region to count, so that a frame counts the same however it is cut.

    ``frame_px`` is the whole frame's area, ``first_row`` the region's first row in it.
    """
    step = LARGE_STEP if frame_px >= LARGE_PX else 1
    return slice(-first_row % step, None, step)


def whole_blocks(kept: slice, stride: int) -> slice:
    """Return the blocks of ``stride`` pixels that lie inside ``kept``; where none does, the first.

    What is kept starts on a block; at the frame's end it may stop inside one, whose other
    pixels are mirrored out of the frame and would count twice.
    """
    first = kept.start // stride
    return slice(first, max(kept.stop // stride, first + 1))


def logit(probability: float) -> float:
    """Return ``log(p / (1 - p))``."""
    return math.log(probability / (1.0 - probability))


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``1 / (1 + exp(-l))``, written so that nothing overflows."""
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * logits), np.float32)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return class probabilities over the first axis of (K, Y, X) logits."""
    scores = np.exp(logits - logits.max(axis=0))
    return np.asarray(scores / scores.sum(axis=0), np.float32)


def decide_binary(
    logits: NDArray[np.float32], threshold: float, mask: NDArray[np.uint8], counted: slice
) -> tuple[float, float, int]:
    """Write 1 into ``mask`` where the class's probability exceeds ``threshold``.

    Parameters
    ----------
    logits
        (Y, X).
    threshold
        Probability, between 0 and 1.
    mask
        (Y, X), written.
    counted
        Rows to be counted for the certainty.

    Returns
    -------
    confidence, entropy, pixels
        Sums over the counted rows of the winning class's probability and of
        the entropy in bits, from a histogram of logits with bins of 1/2048;
        and how many pixels they are.
    """
    np.greater(logits, np.float32(logit(threshold)), out=mask.view(np.bool_))
    rows = logits[counted]
    if not rows.size:
        return 0.0, 0.0, 0
    # Saturating conversion to 16 bits is the clip to the outermost bins.
    binned = cv2.addWeighted(rows, BINS_PER_LOGIT, rows, 0, BINS // 2, dtype=cv2.CV_16U)
    found = cv2.calcHist([binned], [0], None, [BINS], [0, BINS]).reshape(-1).astype(np.float64)
    confidence, entropy = _binary_tables(threshold)
    # Sums rather than dot products: those would wake one BLAS thread per processor.
    return float((found * confidence).sum()), float((found * entropy).sum()), rows.size


@cache
def _binary_tables(threshold: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return, per bin, the winning class's probability and the entropy in bits."""
    at = (np.arange(BINS) - BINS // 2) / BINS_PER_LOGIT
    p = 1.0 / (1.0 + np.exp(-at))
    entropy = -(p * np.log2(p) + (1.0 - p) * np.log2(1.0 - p))
    return np.where(at > logit(threshold), p, 1.0 - p), entropy


def decide_classes(
    logits: NDArray[np.float32], mask: NDArray[np.uint8], counted: slice
) -> tuple[float, float, int]:
    """Write the index of the most probable class into ``mask``; ties go to the lower index.

    Parameters
    ----------
    logits
        (K, Y, X), background first.
    mask
        (Y, X), written.
    counted
        Rows to be counted for the certainty; its step divides ``BLOCK_ROWS``.

    Returns
    -------
    confidence, entropy, pixels
        As from ``decide_binary``, by softmax; NaN where counted logits are not finite, or
        further apart than float32 reaches.
    """
    confidence = entropy = 0.0
    pixels = 0
    for top in range(0, mask.shape[0], BLOCK_ROWS):
        rows = slice(top, top + BLOCK_ROWS)
        with np.errstate(over="ignore", invalid="ignore"):
            found = _decide_block(logits[:, rows], mask[rows], counted)
        confidence, entropy, pixels = confidence + found[0], entropy + found[1], pixels + found[2]
    return confidence, entropy, pixels


def _decide_block(
    logits: NDArray[np.float32], mask: NDArray[np.uint8], counted: slice
) -> tuple[float, float, int]:
    """Do the work of ``decide_classes`` on rows few enough to stay in the processor's cache."""
    best = logits[0].copy()
    wins = np.empty(mask.shape, np.uint8)
    mask[...] = 0
    for index in range(1, len(logits)):
        # Indices rise, so the largest index that won its comparison is the winner.
        np.greater(logits[index], best, out=wins.view(np.bool_))
        np.multiply(wins, np.uint8(index), out=wins)
        np.maximum(mask, wins, out=mask)
        np.maximum(best, logits[index], out=best)
    margin: NDArray[Any] = logits[:, counted] - best[counted]
    scores = np.exp(margin)
    total = scores.sum(axis=0)
    # H = log Z - sum(p * margin), for logits shifted so that the best is 0.
    nats = np.log(total) - (scores * margin).sum(axis=0) / total
    return (
        float((1.0 / total).sum(dtype=np.float64)),
        float(nats.sum(dtype=np.float64)) / math.log(2.0),
        total.size,
    )
