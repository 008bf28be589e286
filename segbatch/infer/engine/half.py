"""Counts to normalised half precision, the input of engines that compute in it.

A camera's counts are few numbers, so each is normalised once and looked up: half the memory
traffic of the way over single precision, and the same two bytes a pixel that the counts had.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST: Final = float(np.finfo(np.float16).max)
LOOKED_UP: Final = (np.dtype(np.uint8), np.dtype(np.uint16))
# Frames of one run often share one scale; those normalised by percentiles do not.
KEPT_TABLES: Final = 16
# Rows that stay in the processor's cache between two steps.
BLOCK_ROWS: Final = 16


def to_half(pixels: NDArray[Any], offset: float, scale: float, out: NDArray[Any]) -> None:
    """Write ``(pixels - offset) * scale`` into ``out``, rounded once, to the nearest half.

    What half precision cannot hold becomes its largest number, 65504, of the same sign.

    Parameters
    ----------
    pixels
        (Y, X) or (Y, X, 3), counts of any real dtype.
    offset, scale
        From ``normalise.scale_of``.
    out
        float16 (C, Y, X); a grey frame is repeated for C of 3.
    """
    planes = np.moveaxis(pixels, 2, 0) if pixels.ndim == 3 else pixels[None]
    for index, plane in enumerate(out):
        # Channels of a grey frame are the first one again.
        if index >= len(planes):
            plane[...] = out[0]
        elif planes.dtype in LOOKED_UP:
            # Looked up as the bits that they are: OpenCV has tables of 16 bits, not of halves.
            cv2.LUT(planes[index], _table(planes.dtype, offset, scale), plane.view(np.uint16))
        else:
            for top in range(0, len(plane), BLOCK_ROWS):
                rows = slice(top, top + BLOCK_ROWS)
                plane[rows] = _computed(planes[index, rows], offset, scale)


@lru_cache(KEPT_TABLES)
def _table(dtype: np.dtype[Any], offset: float, scale: float) -> NDArray[np.uint16]:
    """Return the bits of what each count of an unsigned dtype becomes, (1, counts)."""
    counts = np.arange(np.iinfo(dtype).max + 1)
    return _computed(counts, offset, scale).view(np.uint16)[None]


def _computed(counts: NDArray[Any], offset: float, scale: float) -> NDArray[np.float16]:
    # As normalise.apply does it, so that half differs from single precision by one rounding.
    values = counts.astype(np.float32)
    values *= np.float32(scale)
    values -= np.float32(offset * scale)
    np.clip(values, -LARGEST, LARGEST, out=values)
    return values.astype(np.float16)
