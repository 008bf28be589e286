"""How good a mask is: counts first, ratios from counts, nothing hidden in means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


class Counts(msgspec.Struct, frozen=True):
    """Pixels: true positives, false positives, false negatives, true negatives."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn
        )

    @property
    def empty(self) -> bool:
        """Neither truth nor mask holds an object: no ratio is defined."""
        return self.tp + self.fp + self.fn == 0

    @property
    def iou(self) -> float | None:
        """Intersection over union tp / (tp + fp + fn) (Jaccard 1912); None where undefined."""
        return None if self.empty else self.tp / (self.tp + self.fp + self.fn)

    @property
    def dice(self) -> float | None:
        """Overlap 2 tp / (2 tp + fp + fn) (Dice 1945); None where undefined."""
        return None if self.empty else 2 * self.tp / (2 * self.tp + self.fp + self.fn)


def count(mask: NDArray[Any], truth: NDArray[Any]) -> Counts:
    """Count the pixels of two (Y, X) masks, non-zero meaning object."""
    m, t = mask != 0, truth != 0
    tp = int(np.count_nonzero(m & t))
    fp = int(np.count_nonzero(m)) - tp
    fn = int(np.count_nonzero(t)) - tp
    return Counts(tp, fp, fn, m.size - tp - fp - fn)


def summarise(frames: Iterable[Counts]) -> dict[str, Any]:
    """Return ratios over frames, for a manifest.

    ``iou`` and ``dice`` are those of all pixels pooled; ``iou_median`` and
    ``iou_p10`` (tenth percentile) are over the frames with an object in truth.
    Frames without are counted apart: ``empty_frames``, and those of them in
    which the mask is empty too, ``empty_frames_kept_empty``.
    """
    listed = list(frames)
    pooled = sum(listed, Counts())
    with_object = [c.iou for c in listed if c.tp + c.fn and c.iou is not None]
    without = [c for c in listed if c.tp + c.fn == 0]
    return {
        "frames": len(listed),
        "tp": pooled.tp,
        "fp": pooled.fp,
        "fn": pooled.fn,
        "iou": _rounded(pooled.iou),
        "dice": _rounded(pooled.dice),
        "iou_median": _rounded(float(np.median(with_object))) if with_object else None,
        "iou_p10": _rounded(float(np.percentile(with_object, 10))) if with_object else None,
        "empty_frames": len(without),
        "empty_frames_kept_empty": sum(c.empty for c in without),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
