"""Tiles: how a frame too large for memory is cut so that the mask does not notice.

Pure integer geometry, one axis at a time; no pixels, no network::

    one axis, three tiles          length        padded
    frame     |<------------------------>|.......|
    tile 0    [==========+---]
    tile 1             [---+======+---]
    tile 2                      [---+===========]
                          ^ cut    ^ cut         = kept   - halo, thrown away

Every tile has the same outer length and starts on a multiple of the network's
stride, so that each pixel falls on the same phase of every pooling step as in
the whole frame. Next to a cut a tile reaches ``halo`` pixels beyond what it
keeps; at the frame's own edge it reaches nowhere, because there the network
must see what it sees in the whole frame: the padding of its own convolutions.
The frame is mirrored out once, at its right and lower edge, to a multiple of
the stride; by ``margin`` pixels more for networks that need it.

Two dimensions are the product of two axes.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from segbatch.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Span:
    """One tile along one axis, in pixels of the padded frame.

    ``start`` to ``stop`` goes through the network; ``own_start`` to
    ``own_stop`` is kept and lies inside the frame.
    """

    start: int
    stop: int
    own_start: int
    own_stop: int

    @property
    def kept(self) -> slice:
        """What is kept, counted from the tile's own start."""
        return slice(self.own_start - self.start, self.own_stop - self.start)

    @property
    def target(self) -> slice:
        """What is kept, counted from the frame's start."""
        return slice(self.own_start, self.own_stop)


@dataclass(frozen=True, slots=True)
class Axis:
    """The tiles along one axis of a frame.

    Attributes
    ----------
    length
        Pixels of the frame.
    padded
        ``length`` and the margin, rounded up to a multiple of the stride.
    tile
        Outer pixels of every tile; a multiple of the stride.
    halo
        Pixels thrown away on each side of a cut; a multiple of the stride.
    count
        Tiles; never more than their length and halo require.
    """

    length: int
    padded: int
    tile: int
    halo: int
    count: int

    def span(self, index: int) -> Span:
        """Return tile ``index``; the last one is moved back to end with the padded frame."""
        step = self.tile - 2 * self.halo
        last = index == self.count - 1
        start = self.padded - self.tile if last else index * step
        return Span(
            start=start,
            stop=start + self.tile,
            own_start=index * step + self.halo if index else 0,
            own_stop=self.length if last else (index + 1) * step + self.halo,
        )

    @property
    def pixels(self) -> int:
        """Outer pixels of all tiles together."""
        return self.count * self.tile

    def spans(self) -> list[Span]:
        """Every tile, from the frame's start."""
        return [self.span(index) for index in range(self.count)]


@dataclass(frozen=True, slots=True)
class Grid:
    """The tiles of a frame: rows times columns, all of one size."""

    y: Axis
    x: Axis

    @property
    def count(self) -> int:
        """Tiles."""
        return self.y.count * self.x.count

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Outer (Y, X) of every tile, pixels."""
        return self.y.tile, self.x.tile

    @property
    def pixels(self) -> int:
        """Pixels that go through the network for one frame."""
        return self.y.pixels * self.x.pixels

    def tiles(self) -> Iterator[tuple[Span, Span]]:
        """Yield (y, x) of each tile, row by row."""
        yield from product(self.y.spans(), self.x.spans())


def up(value: int, multiple: int) -> int:
    """Return ``value`` rounded up to a multiple of ``multiple``."""
    return -(-value // multiple) * multiple


def axis(length: int, stride: int, halo: int, tile: int, margin: int = 0) -> Axis:
    """Lay the fewest tiles of outer length ``tile`` over ``length`` pixels.

    Parameters
    ----------
    length
        Pixels of the frame along this axis, at least 1.
    stride
        Pixels after which the network's response repeats; tiles start on its
        multiples.
    halo
        Pixels of surroundings that the network needs; rounded up to the stride.
    tile
        Outer length wished, pixels; rounded down to the stride, and cut to the
        padded frame, where one tile needs no halo.
    margin
        Pixels that the frame is mirrored out past its end at least; no more than the halo.

    Raises
    ------
    SettingsError
        The tile leaves nothing between its two halos.
    """
    wished, tile = tile, tile // stride * stride
    padded, halo = up(length + margin, stride), up(halo, stride)
    if tile >= padded:
        return Axis(length, padded, padded, halo, 1)
    if tile - 2 * halo < stride:
        raise SettingsError(
            f"tile_px = {wished}: tiles of {tile} px, whole strides of {stride} px, with a halo of "
            f"{halo} px on each side",
            f"tile_px of at least {2 * halo + stride}: two halos and one stride of the network",
            f"set tile_px to {2 * halo + stride} or more, or to auto",
        )
    # n tiles of length t that overlap by two halos h reach n*(t - 2h) + 2h pixels.
    return Axis(length, padded, tile, halo, -(-(padded - 2 * halo) // (tile - 2 * halo)))


def forced(shape: tuple[int, int], stride: int, halo: int, tile: int, margin: int = 0) -> Grid:
    """Return the grid of square tiles of outer length ``tile`` (see ``axis``)."""
    return Grid(*(axis(length, stride, halo, tile, margin) for length in shape))


def plan(
    shape: tuple[int, int], stride: int, halo: int, tile_area: int, margin: int = 0
) -> Grid | None:
    """Return the grid of equal tiles that sends the fewest pixels through the network.

    Parameters
    ----------
    shape
        (Y, X) of the frame, pixels.
    stride, halo, margin
        As in ``axis``.
    tile_area
        Pixels that one tile may have at most.

    Returns
    -------
    grid
        The whole frame as one tile where ``tile_area`` allows; None where not
        even the smallest tile does. Among equals, the one with fewer tiles.
    """
    choices_y, choices_x = (_choices(length, stride, halo, margin) for length in shape)
    widths = [x.tile for x in choices_x]
    best: Grid | None = None
    for y in choices_y:
        fitting = bisect_right(widths, tile_area // y.tile)
        if not fitting:
            continue
        grid = Grid(y, choices_x[fitting - 1])
        if best is None or (grid.pixels, grid.count) < (best.pixels, best.count):
            best = grid
    return best


def _choices(length: int, stride: int, halo: int, margin: int) -> list[Axis]:
    """Return the axes worth having, shortest tiles first, each of no more pixels than the last."""
    halo, padded = up(halo, stride), up(length + margin, stride)
    choices: list[Axis] = []
    for tile in [*range(2 * halo + stride, padded, stride), padded]:
        choice = axis(length, stride, halo, tile, margin)
        if not choices or choice.pixels <= choices[-1].pixels:
            choices.append(choice)
    return choices


def mirrored(position: int, length: int) -> int:
    """Return the pixel that stands at ``position`` when ``length`` pixels are mirrored out.

    The edge pixel is not repeated (``... 2 1 [0 1 2] 1 0 ...``); a frame of one
    pixel is repeated.
    """
    if length == 1:
        return 0
    position %= 2 * (length - 1)
    return min(position, 2 * (length - 1) - position)
