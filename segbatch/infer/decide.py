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
    logits: NDArray[np.float32], threshold: float, mask: NDArray[np.uint8]
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

    Returns
    -------
    confidence, entropy, pixels
        Sums over all pixels (entropy in bits), from a histogram of logits
        with bins of 1/2048.
    """
    np.greater(logits, np.float32(logit(threshold)), out=mask.view(np.bool_))
    # Saturating conversion to 16 bits is the clip to the outermost bins.
    binned = cv2.addWeighted(logits, BINS_PER_LOGIT, logits, 0, BINS // 2, dtype=cv2.CV_16U)
    counted = cv2.calcHist([binned], [0], None, [BINS], [0, BINS]).reshape(-1).astype(np.float64)
    confidence, entropy = _binary_tables(threshold)
    return float(counted @ confidence), float(counted @ entropy), logits.size


@cache
def _binary_tables(threshold: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return, per bin, the winning class's probability and the entropy in bits."""
    at = (np.arange(BINS) - BINS // 2) / BINS_PER_LOGIT
    p = 1.0 / (1.0 + np.exp(-at))
    entropy = -(p * np.log2(p) + (1.0 - p) * np.log2(1.0 - p))
    return np.where(at > logit(threshold), p, 1.0 - p), entropy


def decide_classes(
    logits: NDArray[np.float32], mask: NDArray[np.uint8], phase: tuple[int, int]
) -> tuple[float, float, int]:
    """Write the index of the most probable class into ``mask``; ties go to the lower index.

    Parameters
    ----------
    logits
        (K, Y, X), background first.
    mask
        (Y, X), written.
    phase
        First (row, column) to be counted for the certainty, each 0 or 1.

    Returns
    -------
    confidence, entropy, pixels
        Sums over every second row and column (entropy in bits): softmax
        costs an exponential per class, and a quarter of the pixels give the
        means to well within a thousandth.
    """
    best = logits[0].copy()
    wins = np.empty(mask.shape, np.uint8)
    mask[...] = 0
    for index in range(1, len(logits)):
        # Indices rise, so the largest index that won its comparison is the winner.
        np.greater(logits[index], best, out=wins.view(np.bool_))
        np.multiply(wins, np.uint8(index), out=wins)
        np.maximum(mask, wins, out=mask)
        np.maximum(best, logits[index], out=best)
    rows, columns = slice(phase[0], None, 2), slice(phase[1], None, 2)
    margin: NDArray[Any] = logits[:, rows, columns] - best[rows, columns]
    scores = np.exp(margin)
    total = scores.sum(axis=0)
    # H = log Z - sum(p * margin), for logits shifted so that the best is 0.
    nats = np.log(total) - (scores * margin).sum(axis=0) / total
    return (
        float((1.0 / total).sum(dtype=np.float64)),
        float(nats.sum(dtype=np.float64)) / math.log(2.0),
        total.size,
    )
