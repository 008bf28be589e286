"""Blending, for networks whose tiles cannot equal the whole frame.

Each tile's logits are weighted by a Gaussian around its centre and the weights
are divided by their sum, so that they add up to one at every pixel. A grid's
weights are the product of its axes' weights, and so are their sums: each axis
is normalised by itself and no map of weights is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from segbatch.infer.tiles import Axis, Grid

# Standard deviation in tile lengths, as is usual for blended windows.
SIGMA = 0.125


def axis_weights(axis: Axis) -> list[NDArray[np.float32]]:
    """Return one weight per pixel of each tile; over the padded axis they add up to one."""
    at = np.arange(axis.tile) - (axis.tile - 1) / 2
    bell = np.exp(-0.5 * (at / (SIGMA * axis.tile)) ** 2)
    total = np.zeros(axis.padded)
    for span in axis.spans():
        total[span.start : span.stop] += bell
    return [(bell / total[span.start : span.stop]).astype(np.float32) for span in axis.spans()]


class Blend:
    """Sums one row of tiles after another and hands out rows that no further tile touches.

    Parameters
    ----------
    grid
        The tiles.
    outputs
        Channels of the logits.
    """

    def __init__(self, grid: Grid, outputs: int) -> None:
        self._grid = grid
        self._across = axis_weights(grid.x)
        self._down = axis_weights(grid.y)
        self._sum = np.zeros((outputs, grid.y.tile, grid.x.padded), np.float32)

    def add(self, row: int, column: int, logits: NDArray[np.float32]) -> None:
        """Add the (K, Y, X) logits of one tile of the row that is being summed."""
        span = self._grid.x.span(column)
        weighted = logits * self._across[column]
        weighted *= self._down[row][:, None]
        self._sum[:, :, span.start : span.stop] += weighted

    def finish(self, row: int) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield the finished rows of the frame and their logits, and move on to the next row."""
        span, axis = self._grid.y.span(row), self._grid.y
        stop = axis.length if row + 1 == axis.count else axis.span(row + 1).start
        yield slice(span.start, stop), self._sum[:, : stop - span.start, : self._grid.x.length]
        if row + 1 < axis.count:
            rest = span.stop - stop
            self._sum[:, :rest] = self._sum[:, axis.tile - rest :].copy()
            self._sum[:, rest:] = 0.0
