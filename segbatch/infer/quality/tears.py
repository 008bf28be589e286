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

from segbatch.infer.quality.ranks import median, median_of_rows

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
# One or two blocks of columns may break by chance.
_LEAST_BROKEN = 3
# The level is averaged over up to this many rows on either side. A step lasts where the rows
# beyond differ by at least a share of it, is one where a share of that is at one row, and is
# of most columns where the median column has at least a share of it.
_FEW_ROWS = 4
_LASTING, _AT_ONCE, _IN_MOST = 0.6, 0.5, 0.6
_MAD_TO_SIGMA = 1.4826
# A normal variable stays within so many standard deviations so often.
_TAIL, _TAIL_SIGMAS = 0.95, 1.96
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
    # One row on either side tells best among many objects, a few where there is little but noise.
    found = [_level_step(means, steps, scatter, rows) for rows in (1, _FEW_ROWS)]
    level_step = max(found, key=lambda step: step.get("step_z") or 0.0)
    return replace(_breaks(steps, scatter), **level_step)


def _breaks(steps: NDArray[np.float32], scatter: float) -> Tear:
    """Find the row at which most columns step more steeply than right above and below it."""
    steep = np.abs(steps)
    beside = np.maximum(steep[:-2], steep[2:])
    broken = (steep[1:-1] > _STEEPER * beside) & (steep[1:-1] > _ABOVE_NOISE * scatter)
    count = np.count_nonzero(broken, axis=1)
    at = _SIDE_ROWS + int(np.argmax(count[_SIDE_ROWS:-_SIDE_ROWS]))
    if count[at] < _LEAST_BROKEN:
        return Tear()
    others = np.delete(count, slice(at - 1, at + 2))
    blocks = steps.shape[1]
    return Tear(at + 2, int(count[at]) / blocks, int(others.max()) / blocks)


def _level_step(
    means: NDArray[np.float32], steps: NDArray[np.float32], scatter: float, rows: int
) -> dict[str, Any]:
    """Find the row at which the level of most columns, over ``rows`` on either side, steps."""
    few = means
    if rows > 1:
        few = np.asarray(cv2.blur(means, (1, rows)), np.float32)
        few = few[rows // 2 : len(means) - (rows - 1) // 2]
    # Clipped, so that objects which begin or end at a row count little.
    level = _clipped_mean(few[rows:] - few[:-rows], 3 * scatter / float(np.sqrt(rows)))
    drift = median(level)
    level -= drift
    side = _SIDE_ROWS - rows + 1
    middle = side + int(np.argmax(np.abs(level[side:-side])))
    size = float(level[middle])
    # A step that is clipped is as high a few rows beside where it is.
    beside = steps[middle : middle + 2 * rows - 1]
    single = _clipped_mean(beside, 3 * scatter) - drift / rows
    at = int(np.argmax(single * np.sign(size)))
    step, row = float(single[at]), middle + at + 1
    upper = median_of_rows(means[max(row - _SIDE_ROWS, 0) : row])
    beyond = median_of_rows(means[row : row + _SIDE_ROWS]) - upper
    lasting = float(_clipped_mean(beyond[None], 3 * scatter)[0])
    whole = median(beyond)
    if step * size <= 0 or step * lasting <= 0 or abs(lasting) < _LASTING * abs(step):
        return {}
    at_once = median(steps[row - 1]) * np.sign(whole)
    if at_once < _AT_ONCE * abs(whole) or abs(whole) < _IN_MOST * abs(size):
        return {}
    spread = _scatter_of(np.delete(level, slice(max(middle - 2 * rows, 0), middle + 2 * rows)))
    least = scatter / float(np.sqrt(rows * means.shape[1]))
    return {
        "step_row": row,
        "step": whole,
        "step_z": abs(size) / max(spread, least) if least > 0 else None,
    }


def _scatter_of(level: NDArray[np.float32]) -> float:
    """Return the standard deviation of steps: of most rows, or of those that step most.

    Where few rows hold something that runs along them, these tell how much it steps.
    """
    size = np.sort(np.abs(level))
    most = size[int(_TAIL * len(size))] / _TAIL_SIGMAS
    return max(_MAD_TO_SIGMA * median(size), float(most))


def _clipped_mean(values: NDArray[np.float32], reach: float) -> NDArray[np.float32]:
    """Mean of each row (Y, blocks) of values held within ``reach`` of 0, (Y,)."""
    held = np.clip(values, -reach, reach)
    return np.asarray(cv2.reduce(held, 1, cv2.REDUCE_AVG), np.float32).ravel()


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
