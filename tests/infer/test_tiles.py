"""The geometry of tiles, without pixels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segbatch.errors import SettingsError
from segbatch.infer.tiles import Axis, axis, forced, mirrored, plan, up

lengths = st.integers(1, 3000)
strides = st.sampled_from([1, 2, 3, 8, 16, 32])


@st.composite
def axes(draw: st.DrawFn) -> tuple[Axis, int]:
    """Draw an axis and its stride."""
    stride = draw(strides)
    halo = draw(st.integers(0, 130))
    smallest = 2 * up(halo, stride) + stride
    tile, margin = draw(st.integers(smallest, 4000)), draw(st.integers(0, halo))
    return axis(draw(lengths), stride, halo, tile, margin), stride


@given(lengths, strides, st.integers(0, 130))
def test_a_margin_lies_beyond_the_frame(length: int, stride: int, margin: int) -> None:
    """The padded frame ends on the stride, at least the margin and less than a stride more away."""
    laid = axis(length, stride, margin, 1 << 20, margin)

    assert laid.padded % stride == 0
    assert margin <= laid.padded - length < margin + stride


@given(axes())
def test_every_pixel_is_owned_once(drawn: tuple[Axis, int]) -> None:
    """The kept parts follow one another from the first pixel to the last, none of them empty."""
    spans = drawn[0].spans()

    assert spans[0].own_start == 0
    assert spans[-1].own_stop == drawn[0].length
    assert all(span.own_start < span.own_stop for span in spans)
    assert all(a.own_stop == b.own_start for a, b in itertools.pairwise(spans))


@given(axes())
def test_tiles_are_equal_aligned_and_inside_the_padded_frame(drawn: tuple[Axis, int]) -> None:
    """Tiles have one length, start on multiples of the stride, and never leave the padded frame."""
    laid, stride = drawn

    for span in laid.spans():
        assert span.stop - span.start == laid.tile
        assert span.start % stride == laid.tile % stride == 0
        assert span.start >= 0
        assert span.stop <= laid.padded


@given(axes())
def test_halo_surrounds_what_is_kept(drawn: tuple[Axis, int]) -> None:
    """What is kept lies at least a halo from every cut, and only cuts need one."""
    laid, _ = drawn

    for span in laid.spans():
        assert span.start == 0 or span.own_start - span.start >= laid.halo
        assert span.stop == laid.padded or span.stop - span.own_stop >= laid.halo


@given(axes())
def test_no_tile_is_superfluous(drawn: tuple[Axis, int]) -> None:
    """One tile less of the same length would not reach the end."""
    laid, _ = drawn

    reach = (laid.count - 1) * (laid.tile - 2 * laid.halo) + 2 * laid.halo
    assert laid.count == 1 or reach < laid.padded


@given(lengths, lengths, strides, st.integers(0, 100), st.integers(1, 4_000_000))
def test_plan_stays_within_the_area(
    height: int, width: int, stride: int, halo: int, area: int
) -> None:
    """A planned tile has at most the area allowed, and the whole frame is taken where it fits."""
    grid = plan((height, width), stride, halo, area)
    whole = up(height, stride) * up(width, stride)

    if grid is None:
        side = 2 * up(halo, stride) + stride
        assert area < min(side, up(height, stride)) * min(side, up(width, stride))
    else:
        assert grid.y.tile * grid.x.tile <= area
        assert (grid.count == 1) == (whole <= area)


@given(
    st.integers(1, 400), st.integers(1, 400), st.sampled_from([1, 4, 16]), st.integers(0, 40),
    st.integers(1, 60_000),
)  # fmt: skip
def test_plan_finds_the_fewest_pixels(
    height: int, width: int, stride: int, halo: int, area: int
) -> None:
    """No grid of equal tiles within the area sends fewer pixels through the network."""
    grid = plan((height, width), stride, halo, area)
    smallest = 2 * up(halo, stride) + stride
    options = [
        [
            axis(length, stride, halo, tile)
            for tile in range(smallest, up(length, stride) + 1, stride)
        ]
        or [axis(length, stride, halo, up(length, stride))]
        for length in (height, width)
    ]
    fits = [
        y.count * y.tile * x.count * x.tile
        for y in options[0]
        for x in options[1]
        if y.tile * x.tile <= area
    ]

    assert (grid.pixels if grid else None) == (min(fits) if fits else None)


def test_camera_frame_grids_match_the_hand_count() -> None:
    """A 1080 x 1440 frame with stride 16 and halo 96 needs 1.14 frames of pixels in two tiles."""
    grid = plan((1080, 1440), 16, 96, 900_000)

    assert grid is not None
    assert (grid.y.count, grid.x.count, grid.tile_shape) == (1, 2, (1088, 816))
    assert grid.pixels / (1080 * 1440) == pytest.approx(1.14, abs=0.005)


def test_forced_tiles_are_squares_of_the_given_outer_size() -> None:
    """A forced size counts halos in and is rounded down to the stride."""
    grid = forced((1080, 1440), 16, 96, 520)

    assert grid.tile_shape == (512, 512)
    assert (grid.y.count, grid.x.count) == (3, 4)


def test_tile_too_small_for_its_halos_is_refused_with_the_smallest_that_is_not() -> None:
    """The error names what was asked, what is needed and the setting to change."""
    with pytest.raises(SettingsError, match=r"tiles of 192 px.*tile_px of at least 208"):
        forced((1080, 1440), 16, 96, 200)


@given(st.integers(1, 40), st.integers(0, 200))
def test_mirroring_agrees_with_numpy(length: int, position: int) -> None:
    """Pixels beyond the edge are those that numpy's reflecting pad puts there."""
    padded = np.pad(np.arange(length), (0, 201), mode="reflect" if length > 1 else "edge")

    assert mirrored(position, length) == padded[position]
