"""Counting connected objects strip by strip."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from segbatch.infer.objects import areas_of, labels_of


@st.composite
def masks(draw: st.DrawFn) -> NDArray[np.uint8]:
    """Draw a mask of any density, plain or of thick structures."""
    height, width = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.random((height, width)).astype(np.float32)
    if draw(st.booleans()):
        values = cv2.GaussianBlur(values, (0, 0), 1.0)
    level = np.quantile(values, draw(st.floats(0.02, 0.98)))
    return np.asarray(values > level, np.uint8)


def comb(rows: int = 41, columns: int = 41) -> NDArray[np.uint8]:
    """Return one object whose teeth meet only in the last row."""
    mask = np.zeros((rows, columns), np.uint8)
    mask[:, ::2] = 1
    mask[-1] = 1
    return mask


@given(masks(), st.integers(1, 400))
def test_strips_give_what_the_whole_mask_gives(mask: NDArray[np.uint8], strip_px: int) -> None:
    """Count and areas do not depend on where the mask was cut into strips."""
    areas = areas_of(mask, strip_px=strip_px)
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    expected = np.sort(stats[1:, cv2.CC_STAT_AREA])

    assert areas.objects == count - 1
    assert np.repeat(areas.values, areas.counts).tolist() == expected.tolist()
    assert areas.median == (float(np.median(expected)) if count > 1 else None)


@pytest.mark.parametrize("flip", [False, True])
def test_objects_joined_far_below_are_one(flip: bool) -> None:
    """A comb is one object in strips of one row, teeth up or down."""
    mask = comb()[::-1].copy() if flip else comb()
    areas = areas_of(mask, strip_px=41)

    assert areas.objects == 1
    assert areas.median == float(mask.sum())


@given(masks(), st.integers(1, 400))
def test_objects_of_different_classes_are_apart(mask: NDArray[np.uint8], strip_px: int) -> None:
    """With several classes an object has one class, and touching classes do not join."""
    rng = np.random.default_rng(1)
    classed = mask * rng.integers(1, 4, mask.shape).astype(np.uint8)
    areas = areas_of(classed, classes=3, strip_px=strip_px)
    counts = [
        cv2.connectedComponents((classed == index).astype(np.uint8))[0] - 1 for index in (1, 2, 3)
    ]

    assert areas.objects == sum(counts)
    assert int(areas.values @ areas.counts) == int((classed > 0).sum())


@given(masks())
def test_labels_number_the_objects_in_reading_order(mask: NDArray[np.uint8]) -> None:
    """Labels are 1 to the count, new ones appear in rising order, and each is one object."""
    labels = labels_of(mask)
    _, first = np.unique(labels[labels > 0], return_index=True)

    assert labels.dtype == np.uint16
    assert np.array_equal(labels > 0, mask > 0)
    assert labels.max() == len(first) == areas_of(mask).objects
    assert (np.diff(first) > 0).all()


def test_labels_widen_where_there_are_many_objects() -> None:
    """More than 65535 objects are numbered in 32 bits."""
    mask = np.zeros((520, 520), np.uint8)
    mask[::2, ::2] = 1
    labels = labels_of(mask)

    assert labels.dtype == np.uint32
    assert labels.max() == 260 * 260
