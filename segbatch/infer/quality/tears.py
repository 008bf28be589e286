"""Frames that were not written to the end, or that join two exposures at a row.

A frame in a preallocated file decodes without an error while its last rows are
still zeros; a frame read while the next one overwrites it changes at a row from
one exposure to another. Optics cannot draw either: light spreads over several
rows, so a step from one row to the next is as steep above or below it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCKS = 180
_BLOCK_PX = 8
_ROWS_AT_ONCE_PX = 1 << 17
# Rows on either side whose levels must keep the step, and the least that tells them.
_SIDE_ROWS = 8
_MIN_BLOCKS = 8
# A break is this many times as steep as the rows next to it, and above this much noise.
_STEEPER, _ABOVE_NOISE = 3.0, 5.0
# A step lasts where the rows beyond differ by at least this share of it.
_LASTING = 0.6
_MAD_TO_SIGMA = 1.4826
# Larger values are no counts; their sums over a block are no float32.
_LARGEST = np.float32(1e30)


@dataclass(frozen=True, slots=True)
class Tear:
    """Rows where two exposures may be joined; see ``measures.Measures``."""

    row: int | None = None
    fraction: float | None = None
    rival_fraction: float | None = None
    step_row: int | None = None
    step: float | None = None
    step_z: float | None = None


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


def find_tear(frame: NDArray[Any], noise: float) -> Tear:
    """Look for a row where two exposures are joined.

    Two signs are measured, and judged elsewhere: columns that break at one row,
    as objects do that another exposure cuts off, and a step of the level that is
    the same in most columns, however small, and lasts.

    Parameters
    ----------
    frame
        (Y, X) counts.
    noise
        Standard deviation of the noise, counts.
    """
    height, width = frame.shape
    blocks = min(width // _BLOCK_PX, _BLOCKS)
    if height < 4 * _SIDE_ROWS or blocks < _MIN_BLOCKS:
        return Tear()
    means = _column_blocks(frame, blocks)
    steps = means[1:] - means[:-1]
    # Steps between block means scatter by sqrt(2) of the mean's own noise.
    scatter = noise * float(np.sqrt(2 * blocks / width))
    return replace(_breaks(steps, scatter), **_level_step(means, steps, scatter))


def _breaks(steps: NDArray[np.float32], scatter: float) -> Tear:
    """Find the row at which most columns step more steeply than right above and below it."""
    steep = np.abs(steps)
    beside = np.maximum(steep[:-2], steep[2:])
    broken = (steep[1:-1] > _STEEPER * beside) & (steep[1:-1] > _ABOVE_NOISE * scatter)
    fraction = broken.mean(axis=1)
    at = _SIDE_ROWS + int(np.argmax(fraction[_SIDE_ROWS:-_SIDE_ROWS]))
    if fraction[at] * steps.shape[1] < 2:
        return Tear()
    others = np.delete(fraction, slice(at - 1, at + 2))
    return Tear(row=at + 2, fraction=float(fraction[at]), rival_fraction=float(others.max()))


def _level_step(
    means: NDArray[np.float32], steps: NDArray[np.float32], scatter: float
) -> dict[str, Any]:
    """Find the row at which the level of most columns steps and stays."""
    # Clipped, so that objects which begin or end at a row count little.
    level = np.clip(steps, -3 * scatter, 3 * scatter).mean(axis=1)
    level -= np.median(level)
    at = _SIDE_ROWS + int(np.argmax(np.abs(level[_SIDE_ROWS:-_SIDE_ROWS])))
    row = at + 1
    upper = np.median(means[row - _SIDE_ROWS : row], axis=0)
    lower = np.median(means[row : row + _SIDE_ROWS], axis=0)
    lasting = float(np.clip(lower - upper, -3 * scatter, 3 * scatter).mean())
    step = float(level[at])
    if (step > 0) != (lasting > 0) or abs(lasting) < _LASTING * abs(step):
        return {}
    spread = _MAD_TO_SIGMA * float(np.median(np.abs(level)))
    least = scatter / float(np.sqrt(means.shape[1]))
    return {
        "step_row": row,
        "step": float(np.median(lower - upper)),
        "step_z": abs(step) / max(spread, least) if least > 0 else None,
    }


def _column_blocks(frame: NDArray[Any], blocks: int) -> NDArray[np.float32]:
    """Mean of each row in ``blocks`` equal blocks of columns, (Y, blocks) float32."""
    height, width = frame.shape
    rows = max(_ROWS_AT_ONCE_PX // width, 1)
    means = np.empty((height, blocks), np.float32)
    for top in range(0, height, rows):
        with np.errstate(over="ignore"):
            part = np.asarray(frame[top : top + rows, : width // blocks * blocks], np.float32)
        if frame.dtype.kind == "f":
            part = np.where(np.abs(part) < _LARGEST, part, np.float32(0))
        size = (blocks, part.shape[0])
        means[top : top + rows] = cv2.resize(
            np.ascontiguousarray(part), size, interpolation=cv2.INTER_AREA
        )
    return means
