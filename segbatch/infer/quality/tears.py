"""Frames that were not written to the end, or that join two exposures at a row.

A frame in a preallocated file decodes without an error while its last rows are
still zeros; a frame read while the next one overwrites it changes at a row from
one exposure to another. Optics cannot draw either: light spreads over several
rows, so a step from one row to the next is as steep above or below it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCKS = 180
_BLOCK_PX = 8
_ROWS_AT_ONCE_PX = 1 << 22
# Rows on either side whose levels must keep the step, and the least that tells them.
_SIDE_ROWS = 8
_MIN_BLOCKS = 8
# A break is this many times as steep as the rows next to it, and above this much noise.
_STEEPER, _ABOVE_NOISE = 3.0, 5.0


@dataclass(frozen=True, slots=True)
class Tear:
    """The first row of the lower exposure, the step of the level there, the columns that break.

    ``fraction`` of the columns break at the row, ``rival_fraction`` at the next worst one.
    """

    row: int
    step: float
    fraction: float
    rival_fraction: float


def zero_tail_rows(frame: NDArray[Any]) -> int:
    """Count the rows of zeros at the end of ``frame`` (Y, X).

    0 where any other row is all zeros too, or the whole frame: that is a dark
    frame, a mask or a border, not a frame that was not written to its end.
    """
    if frame.size == 0 or frame[-1].any():
        return 0
    filled = np.flatnonzero(frame.any(axis=1))
    if filled.size == 0 or filled.size <= filled[-1]:
        return 0
    return int(frame.shape[0] - filled.size)


def find_tear(frame: NDArray[Any], noise: float) -> Tear | None:
    """Find the row where two exposures are joined, or None.

    Parameters
    ----------
    frame
        (Y, X) counts.
    noise
        Standard deviation of the noise, counts.

    Returns
    -------
    Tear or None
        The row where the most columns break, None where hardly any does; the
        judge decides whether it is a tear.
    """
    height, width = frame.shape
    blocks = min(width // _BLOCK_PX, _BLOCKS)
    if height < 4 * _SIDE_ROWS or blocks < _MIN_BLOCKS:
        return None
    means = _column_blocks(frame, blocks)
    steps = means[1:] - means[:-1]
    steep = np.abs(steps)
    beside = np.maximum(steep[:-2], steep[2:])
    # Steps between block means scatter by sqrt(2) of the mean's own noise.
    scatter = noise * np.sqrt(2 * blocks / width)
    breaks = (steep[1:-1] > _STEEPER * beside) & (steep[1:-1] > _ABOVE_NOISE * scatter)
    fraction = breaks.mean(axis=1)
    low, high = _SIDE_ROWS, height - _SIDE_ROWS - 2
    at = low + int(np.argmax(fraction[low:high]))
    if fraction[at] * blocks < 2:
        return None
    others = np.delete(fraction, slice(at - 1, at + 2))
    row = at + 2
    upper = np.median(means[row - _SIDE_ROWS : row], axis=0)
    lower = np.median(means[row : row + _SIDE_ROWS], axis=0)
    return Tear(row, float(np.median(lower - upper)), float(fraction[at]), float(others.max()))


def _column_blocks(frame: NDArray[Any], blocks: int) -> NDArray[np.float32]:
    """Mean of each row in ``blocks`` equal blocks of columns, (Y, blocks) float32."""
    height, width = frame.shape
    rows = max(_ROWS_AT_ONCE_PX // width, 1)
    means = np.empty((height, blocks), np.float32)
    for top in range(0, height, rows):
        part = np.ascontiguousarray(frame[top : top + rows, : width // blocks * blocks], np.float32)
        part = np.nan_to_num(part, posinf=0.0, neginf=0.0) if frame.dtype.kind == "f" else part
        size = (blocks, part.shape[0])
        means[top : top + rows] = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
    return means
