"""From counts to network input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from segbatch.errors import UnsupportedFrameError
from segbatch.frame import gray
from segbatch.infer import normalise
from segbatch.infer.engine.manifest import (
    BitDepth,
    DatasetMax,
    Fixed,
    Percentile,
    ScaleRange,
    ZScore,
)
from segbatch.infer.normalise import apply, fill, scale_of, seen_by
from segbatch.infer.tiles import forced


def whole(pixels: NDArray[Any], scale: tuple[float, float], channels: int = 1) -> NDArray[Any]:
    """Normalise a frame in one piece."""
    out = np.empty((channels, *pixels.shape[:2]), np.float32)
    apply(pixels, *scale, out)
    return out


def test_dataset_maximum_divides_by_the_training_sets_maximum(frame: NDArray[Any]) -> None:
    """Counts are divided by the maximum that the manifest states."""
    scale = scale_of(frame, DatasetMax(maximum=800.0), 10)

    assert np.allclose(whole(frame, scale)[0], frame / 800.0, rtol=1e-6)


def test_fixed_numbers_are_those_of_the_manifest(frame: NDArray[Any]) -> None:
    """Counts less the offset are multiplied by the scale, whatever the frame."""
    scale = scale_of(frame, Fixed(offset=100.0, scale=0.5), 10)

    assert np.allclose(whole(frame, scale)[0], (frame - 100.0) * 0.5, rtol=1e-6)


def test_a_range_is_scaled_as_packages_state_it(frame: NDArray[Any]) -> None:
    """Two percentiles become 0 and almost 1: epsilon is added to their distance."""
    scale = scale_of(frame, ScaleRange(2.0, 98.0, epsilon=0.1), 10)
    low, high = np.percentile(frame, (2.0, 98.0))

    assert np.allclose(whole(frame, scale)[0], (frame - low) / (high - low + 0.1), atol=1e-5)


def test_a_flat_frame_has_a_range(frame: NDArray[Any]) -> None:
    """A frame of one value is scaled to zeros, not to values that are not finite."""
    flat = np.full_like(frame, 7)

    assert (whole(flat, scale_of(flat, ScaleRange(0.0, 100.0), 10)) == 0).all()


@pytest.mark.parametrize(("bits", "ceiling"), [(8, 255), (10, 1023), (16, 65535)])
def test_bit_depth_maps_the_ceiling_to_one(bits: int, ceiling: int) -> None:
    """The converter's highest count becomes 1."""
    pixels = np.array([[0, ceiling]], np.uint16)

    assert whole(pixels, scale_of(pixels, BitDepth(), bits))[0].tolist() == [[0.0, 1.0]]


def test_bit_depth_needs_a_converter() -> None:
    """A floating-point frame is refused by a model that divides by the ceiling."""
    with pytest.raises(UnsupportedFrameError, match="without a bit depth"):
        scale_of(np.zeros((4, 4), np.float32), BitDepth(), 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32, np.float32])
@given(seed=st.integers(0, 1000), low=st.floats(0, 40), high=st.floats(60, 100))
def test_percentiles_agree_with_numpy(dtype: Any, seed: int, low: float, high: float) -> None:
    """The two percentiles, interpolated as numpy does, become 0 and 1."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 120, rng.integers(1, 30, 2)).astype(dtype)
    offset, scale = scale_of(pixels, Percentile(low, high, min_range=1.0), 8)
    expected_low, expected_high = np.percentile(pixels.astype(np.float64), (low, high))

    assert offset == pytest.approx(expected_low, abs=1e-4)
    assert 1.0 / scale == pytest.approx(max(expected_high - expected_low, 1.0), abs=1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_zscore_gives_mean_zero_and_deviation_one(dtype: Any, frame: NDArray[Any]) -> None:
    """The normalised frame has mean 0 and standard deviation 1."""
    pixels = (frame // 5).astype(dtype)
    out = whole(pixels, scale_of(pixels, ZScore(), 8))

    assert float(out.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(out.std()) == pytest.approx(1.0, abs=1e-4)


def test_statistics_do_not_depend_on_strips(
    frame: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame counted in strips has the scale of the frame counted at once."""
    at_once = [scale_of(frame, kind, 10) for kind in (ZScore(), Percentile(1.0, 99.0))]
    monkeypatch.setattr(normalise, "STRIP_PX", 1000)

    assert [scale_of(frame, kind, 10) for kind in (ZScore(), Percentile(1.0, 99.0))] == at_once


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_intensities_that_are_not_finite_are_refused(value: float) -> None:
    """One such pixel makes the frame unsupported, whatever the normalisation."""
    pixels = np.ones((5, 5), np.float32)
    pixels[2, 3] = value

    with pytest.raises(UnsupportedFrameError, match="not finite"):
        scale_of(pixels, DatasetMax(maximum=1.0), 0)


def test_grey_fills_three_channels_and_colour_becomes_grey() -> None:
    """A network of three channels sees grey thrice; one of one channel sees luminance."""
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (9, 7, 3)).astype(np.uint8)
    grey = whole(colour[..., 0], (0.0, 0.5), channels=3)
    luminance = whole(seen_by(colour, 1), (0.0, 1.0))
    samples = whole(colour, (0.0, 1.0), channels=3)

    assert (grey == grey[0]).all()
    assert np.array_equal(luminance[0], gray(colour))
    assert np.array_equal(np.moveaxis(samples, 0, 2), colour)


@given(
    st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 4, 16]), st.integers(0, 9),
    st.integers(0, 3), st.booleans(),
)  # fmt: skip
def test_tiles_are_cut_from_one_mirrored_frame(
    height: int, width: int, stride: int, halo: int, more: int, colour: bool
) -> None:
    """Each tile holds what stands there in the normalised frame, mirrored out once."""
    pixels = np.random.default_rng(0).integers(0, 999, (height, width, 3)).astype(np.uint16)
    pixels = pixels if colour else pixels[..., 0]
    tile = (2 * halo // stride + 3 + more) * stride
    grid = forced((height, width), stride, halo, tile)
    channels = 3 if colour else 1
    normal = whole(pixels, (20.0, 0.25), channels)
    padded = normal
    for axis, laid in ((1, grid.y), (2, grid.x)):
        room = [(0, 0)] * 3
        room[axis] = (0, laid.padded - laid.length)
        padded = np.pad(padded, room, mode="reflect" if laid.length > 1 else "edge")

    for y, x in grid.tiles():
        out = np.full((channels, *grid.tile_shape), np.nan, np.float32)
        fill(pixels, y, x, 20.0, 0.25, out)
        assert np.array_equal(out, padded[:, y.start : y.stop, x.start : x.stop])
