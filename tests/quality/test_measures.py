"""What the measures of a frame promise."""

from __future__ import annotations

from itertools import pairwise

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segbatch.infer.quality import Measures, measure, structure, tears
from tests.quality.frames import CEILING, beads, finish, texture


def test_levels_are_those_of_all_pixels() -> None:
    """Mean and percentiles of a 16-bit frame are exact."""
    frame = beads(1)
    found = measure(frame, CEILING)
    assert found.mean == pytest.approx(frame.mean())
    assert (found.minimum, found.maximum) == (frame.min(), frame.max())
    for percent, value in ((1, found.p01), (50, found.p50), (99.9, found.p999)):
        assert value == np.percentile(frame, percent, method="inverted_cdf")


def test_saturation_counts_the_ceiling_and_not_the_brightest_pixel() -> None:
    """Saturation is the fraction of pixels at the converter's ceiling."""
    frame = beads(1, peak=300)
    assert measure(frame, CEILING).saturated_fraction == 0
    frame[:4] = CEILING
    assert measure(frame, CEILING).saturated_fraction == pytest.approx(4 / 400)


def test_a_ceiling_that_pixels_exceed_is_not_believed() -> None:
    """Pixels above the stated ceiling leave saturation unknown."""
    found = measure(beads(1) * 4, CEILING)
    assert found.ceiling_exceeded
    assert (found.ceiling, found.saturated_fraction) == (None, None)


@pytest.mark.parametrize("sigma", [0.37, 1.0, 5.0, 25.0])
def test_noise_is_found_under_structure(sigma: float) -> None:
    """The noise estimate is within 15 percent of the truth on flat and on crowded frames."""
    rng = np.random.default_rng(3)
    flat = finish(200.3 + rng.normal(0, sigma, (400, 520)))
    # Rounding to whole counts adds its own variance of 1/12.
    true = np.hypot(sigma, 1 / np.sqrt(12))
    for frame in (flat, beads(2, count=300, noise=sigma, background=150, peak=300)):
        assert measure(frame, CEILING).noise_sigma == pytest.approx(true, rel=0.15)


def test_noise_cut_off_at_zero_is_made_good() -> None:
    """Noise of which nearly half is cut off at count 0 keeps its standard deviation."""
    rng = np.random.default_rng(3)
    frame = finish(3 + rng.normal(0, 20, (400, 520)))
    assert measure(frame, CEILING).noise_sigma == pytest.approx(20, rel=0.15)


def test_the_dark_has_a_noise_floor() -> None:
    """A dark frame, of which most pixels are equal, has noise of at least one rounding step."""
    rng = np.random.default_rng(3)
    frame = finish(5 + rng.normal(0, 0.2, (400, 520)))
    assert measure(frame, CEILING).noise_sigma >= 1 / np.sqrt(12) - 1e-3
    assert measure(frame, CEILING).structure_cells == 0


def test_noise_gains_are_those_of_white_noise() -> None:
    """The tabulated energy of white noise in each band is what filtering noise leaves."""
    rng = np.random.default_rng(5)
    noise = rng.normal(0, 1, (1024, 1024)).astype(np.float32)
    maps = structure.map_cells(noise, noise=1e9)
    inner = maps.energy[:, 2:-2, 2:-2].mean(axis=(1, 2))
    np.testing.assert_allclose(inner, structure.NOISE_GAIN, rtol=0.06)
    assert maps.noise.mean() == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize("scale", [0.1, 0.3, 2.0])
def test_brightness_does_not_move_focus(scale: float) -> None:
    """Focus stays within a fifth of an octave when all light changes."""
    reference = measure(beads(4, peak=400), CEILING).focus
    scaled = measure(beads(4, peak=400 * scale, background=20 * scale), CEILING).focus
    assert scaled == pytest.approx(reference, abs=0.2)


@pytest.mark.parametrize("count", [3, 20, 400])
def test_density_does_not_move_focus(count: int) -> None:
    """Focus stays within half an octave from three beads to a crowd."""
    reference = measure(beads(5, count=80), CEILING).focus
    assert measure(beads(6, count=count), CEILING).focus == pytest.approx(reference, abs=0.5)


def test_gain_and_offset_do_not_move_focus() -> None:
    """Focus is the same on an offset of 32768 and at four times the gain."""
    frame = beads(7)
    moved = frame * np.uint16(4) + np.uint16(32768)
    assert measure(moved, 65535).focus == pytest.approx(measure(frame, CEILING).focus, abs=0.05)


def test_focus_falls_with_blur() -> None:
    """Each step of blur lowers focus, of beads and of dense texture."""
    sharp = texture(8, noise=0).astype(np.float32)
    rng = np.random.default_rng(8)
    dense = [
        finish(cv2.GaussianBlur(sharp, (0, 0), s) + rng.normal(0, 3, sharp.shape))
        for s in (0.5, 2, 4, 8)
    ]
    sparse = [beads(8, blur_px=s) for s in (0, 2, 4, 8)]
    for frames in (dense, sparse):
        found = [measure(frame, CEILING).focus for frame in frames]
        assert all(a is not None and b is not None and a > b + 0.4 for a, b in pairwise(found))


def test_the_least_sharp_third_is_no_sharper_than_the_median() -> None:
    """Where all objects are alike both agree; where a third is blurred only its own value falls."""
    alike = measure(beads(8, count=120, noise=1), CEILING)
    part = beads(8, count=120, noise=1)
    part[:150] = beads(9, count=45, blur_px=3, noise=1, shape=(150, 520))
    mixed = measure(part, CEILING)
    assert alike.focus is not None
    assert alike.focus_least_third is not None
    assert alike.focus - 1.5 < alike.focus_least_third <= alike.focus
    assert mixed.focus == pytest.approx(alike.focus, abs=0.4)
    assert mixed.focus_least_third is not None
    assert mixed.focus_least_third < alike.focus_least_third - 1


def test_a_dense_texture_has_structure_everywhere() -> None:
    """A frame without background has structure in nearly every cell."""
    fraction = measure(texture(9), CEILING).structure_fraction
    assert fraction is not None
    assert fraction > 0.95


def test_few_beads_are_structure_and_hot_pixels_are_not() -> None:
    """Three beads in a full frame of the camera stand out; fifty hot pixels do not."""
    shape = (1080, 1440)
    some = measure(beads(10, count=3, peak=60, shape=shape), CEILING)
    none = measure(beads(10, count=0, hot_pixels=50, shape=shape), CEILING)
    assert some.structure_cells is not None
    assert some.structure_cells >= 3
    assert none.structure_cells == 0


def test_an_illumination_gradient_is_no_structure() -> None:
    """A smooth background, however uneven, is empty."""
    rng = np.random.default_rng(11)
    light = np.linspace(40, 400, 520)[None] * np.linspace(0.6, 1, 400)[:, None]
    frame = finish(light + rng.normal(0, 1, light.shape) * np.sqrt(light))
    assert measure(frame, CEILING).structure_cells == 0


def test_rows_of_zeros_at_the_end_are_counted() -> None:
    """Rows that were never written are counted, a black border is not."""
    frame = beads(12)
    frame[300:] = 0
    assert measure(frame, CEILING).zero_tail_rows == 100
    frame[:2] = 0
    assert measure(frame, CEILING).zero_tail_rows == 0
    assert tears.zero_tail_rows(np.zeros((9, 9), np.uint16)) == 0


@pytest.mark.parametrize("row", [37, 200, 371])
def test_the_row_that_joins_two_exposures_is_found(row: int) -> None:
    """The first row of the lower exposure is named, and its step has the right sign."""
    frame = beads(13)
    frame[row:] = beads(14, background=32)[row:]
    found = measure(frame, CEILING)
    assert found.tear_row == row
    assert found.tear_step == pytest.approx(12, abs=1)
    assert found.tear_fraction is not None
    assert found.tear_fraction > 0.8


def test_a_step_no_larger_than_the_noise_of_a_pixel_is_found() -> None:
    """Exposures whose levels differ by little more than the noise are told apart."""
    frame = beads(13, noise=4)
    whole = measure(frame, CEILING).tear_step_z
    frame[150:] = beads(14, noise=4, background=25)[150:]
    found = measure(frame, CEILING)
    assert found.tear_step_row == 150
    assert found.tear_step_z is not None
    assert found.tear_step_z > 8
    assert whole is None or whole < 6


@pytest.mark.parametrize("row", [9, 150, 391])
def test_a_step_far_below_the_noise_of_a_pixel_is_found(row: int) -> None:
    """In a frame with few objects a level that changes by a third of the noise is a tear."""
    frame = beads(13, noise=8, count=4).astype(np.float64)
    whole = measure(finish(frame), CEILING).tear_step_z
    frame[row:] += 8 / 3
    found = measure(finish(frame), CEILING)
    assert found.tear_step_row is not None
    assert abs(found.tear_step_row - row) <= 1
    assert found.tear_step_z is not None
    assert found.tear_step_z > 7
    assert whole is None or whole < 6


def test_light_that_changes_over_a_few_rows_is_no_tear() -> None:
    """A level that changes within eight rows, as the sharpest edge of a shadow may, is no step."""
    frame = beads(13, noise=4, count=4).astype(np.float64)
    frame += np.clip((np.arange(400) - 200) / 8, 0, 1)[:, None] * 30
    step = measure(finish(frame), CEILING).tear_step_z
    assert step is None or step < 6


@pytest.mark.parametrize("seed", range(6))
def test_filaments_that_run_along_rows_are_no_tear(seed: int) -> None:
    """A few long objects that begin at a row are in some columns, not in most."""
    rng = np.random.default_rng(seed)
    image = np.full((400, 520), 30, np.float32)
    for _ in range(5):
        left, row = (int(value) for value in rng.integers((20, 20), (250, 380)))
        cv2.line(image, (left, row), (left + 240, row + int(rng.integers(-2, 3))), 250, 2)
    frame = finish(cv2.GaussianBlur(image, (0, 0), 1.3) + rng.normal(0, 3, image.shape))
    step = measure(frame, CEILING).tear_step_z
    assert step is None or step < 6


def test_two_fields_of_equal_light_are_told_apart() -> None:
    """A crowd of beads that is cut at a row breaks there in many more columns than elsewhere."""
    frame = beads(15, count=400)
    frame[210:] = beads(16, count=400)[210:]
    found = measure(frame, CEILING)
    assert found.tear_row == 210
    assert found.tear_fraction is not None
    assert found.tear_rival_fraction is not None
    assert found.tear_fraction > 4 * found.tear_rival_fraction


@pytest.mark.parametrize("dtype", ["u1", "i1", ">u2", "i2", "u4", "i8", "f2", "f4", ">f8", "?"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 90), (64, 64), (70, 131), (0, 4)])
def test_any_frame_can_be_measured(dtype: str, shape: tuple[int, int]) -> None:
    """Every real dtype and the smallest sizes give measures that survive JSON."""
    rng = np.random.default_rng(17)
    frame = (rng.random(shape) * 90).astype(dtype)
    before = frame.copy()
    found = measure(frame, None if np.dtype(dtype).kind == "f" else 255)
    np.testing.assert_array_equal(frame, before)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Measures) == found


@settings(max_examples=40, deadline=None)
@given(
    arrays(
        np.float64,
        st.tuples(st.integers(1, 90), st.integers(1, 90)),
        elements=st.sampled_from([0.0, 1.0, -5.5, 1e300, -1e300, np.nan, np.inf, -np.inf]),
    )
)
def test_floats_of_any_kind_are_measured(frame: np.ndarray) -> None:
    """No value of a floating-point frame makes a measure infinite or raises a warning."""
    found = measure(frame, None)
    for name in Measures.__struct_fields__:
        value = getattr(found, name)
        assert value is None or np.isfinite(value)


def test_values_of_32_bits_keep_their_small_differences() -> None:
    """A bead frame on an offset of four thousand million is measured as it is without."""
    frame = beads(18)
    plain, moved = (
        measure(frame, None),
        measure(frame.astype(np.uint32) + np.uint32(4 * 10**9), None),
    )
    assert moved.noise_sigma == pytest.approx(plain.noise_sigma, rel=0.05)
    assert moved.focus == pytest.approx(plain.focus, abs=0.1)
    assert moved.signal == pytest.approx(plain.signal, rel=0.05)


def test_a_large_frame_is_measured_in_tiles() -> None:
    """Tiling changes neither the count of cells nor focus."""
    frame = np.tile(beads(19, shape=(512, 512)), (5, 5))
    whole = structure.find(structure.map_cells(frame, 2.0), 2.0, CEILING)
    tiled = measure(frame, CEILING)
    assert frame.size > 1 << 22
    assert tiled.structure_cells == pytest.approx(whole.cells, rel=0.02)
    assert tiled.focus == pytest.approx(whole.focus, abs=0.05)


def test_colour_is_refused() -> None:
    """Only (Y, X) is measured."""
    with pytest.raises(ValueError, match="wanted"):
        measure(np.zeros((4, 4, 3), np.uint8), 255)
