"""Half precision is single precision, rounded once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segbatch.infer.engine.half import LARGEST, to_half
from segbatch.infer.normalise import apply, fill
from segbatch.infer.tiles import Span

DTYPES = ["uint8", "uint16", "int16", "uint32", "float32", "float64"]


def single(pixels: Any, offset: float, scale: float, channels: int = 1) -> Any:
    """Return the same in single precision."""
    out = np.empty((channels, *pixels.shape[:2]), np.float32)
    apply(pixels, offset, scale, out)
    return out


@given(
    st.sampled_from(DTYPES),
    st.floats(-1e4, 1e4),
    st.floats(1e-6, 1.0),
    st.integers(0, 2**32 - 1),
)
def test_half_is_single_rounded(dtype: str, offset: float, scale: float, seed: int) -> None:
    """For every kind of counts, half is what single precision gives, rounded to the nearest."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 200 if dtype == "uint8" else 30_000, (21, 17)).astype(dtype)
    out = np.empty((1, 21, 17), np.float16)

    apply(pixels, offset, scale, out)

    wanted = np.clip(single(pixels, offset, scale), -LARGEST, LARGEST).astype(np.float16)
    np.testing.assert_array_equal(out, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_too_large_saturates(dtype: str) -> None:
    """Counts that half precision cannot hold become its largest number, not infinity."""
    pixels = np.full((4, 4), 250, dtype)
    out = np.empty((1, 4, 4), np.float16)

    to_half(pixels, 0.0, 1000.0, out)
    assert (out == LARGEST).all()
    to_half(pixels, 500.0, 1000.0, out)
    assert (out == -LARGEST).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_channels(dtype: str) -> None:
    """Colour samples go to their channels, and a grey frame to all of them."""
    rng = np.random.default_rng(1)
    colour = rng.integers(0, 255, (9, 7, 3)).astype(dtype)
    for pixels in (colour, colour[..., 0]):
        out = np.empty((3, 9, 7), np.float16)
        to_half(pixels, 3.0, 0.01, out)
        np.testing.assert_array_equal(out, single(pixels, 3.0, 0.01, channels=3).astype(np.float16))


def test_tiles_are_filled_in_half() -> None:
    """A tile that reaches past the frame is mirrored out in half as in single precision."""
    pixels = np.random.default_rng(2).integers(0, 4000, (13, 18)).astype(np.uint16)
    y, x = Span(4, 20, 4, 13), Span(8, 24, 8, 18)
    half, whole = np.empty((1, 16, 16), np.float16), np.empty((1, 16, 16), np.float32)

    fill(pixels, y, x, 10.0, 1 / 4095, half)
    fill(pixels, y, x, 10.0, 1 / 4095, whole)

    np.testing.assert_array_equal(half, whole.astype(np.float16))
