"""Structure above the noise, octave by octave of spatial frequency, cell by cell.

A Gaussian pyramid (Burt and Adelson, IEEE Trans. Commun. 31, 532, 1983) is
band-passed at each level, and the energy of each band averaged over cells of
16x16 px. White noise of variance 1 leaves a known energy in each band
(``NOISE_GAIN``), so the noise, measured in the same cell at the highest diagonal
frequencies, can be taken away: whatever the light, the gain or the camera.

Sharpness is the slope of what is left: defocus multiplies the spectrum by the
squared transfer function and takes from the fine octaves first, while light and
contrast multiply all octaves alike, and the number of objects changes none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from segbatch.infer.quality.ranks import quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray

CELL_PX = 16
SMALLEST_PX = 64
# Bands of wavelengths 8 to 16, 16 to 32 and 32 to 64 px; finer ones hold little but noise.
BANDS = 3
FINE, COARSE = 0, 2
# Energy that white noise of variance 1 leaves in each band (tests draw it anew).
NOISE_GAIN = np.array([0.004725, 0.001081, 0.0002646], np.float32)
# A cell has structure where some band exceeds its noise this many times. The fewer
# independent values a cell holds in a band, the wider its mean scatters: the largest
# ratios seen in 200,000 cells of white noise were 4.6, 9.4 and 27.
DETECTION = np.array([7.0, 14.0, 36.0], np.float32)
# Objects of less than a tenth of the contrast (a hundredth of the energy) of the strongest
# three in a hundred are taken for texture of the background.
_FAINT, _STRONG_QUANTILE = 0.01, 0.97
# The part of the objects that stands for the depths farthest out of focus.
_LEAST_SHARP = 1 / 3
# The noise is known to a tenth; structure below that is not told from it.
_NOISE_DOUBT = 0.1
_BLUR_PX, _BLUR_SIGMA = (5, 5), 1.0
# What the two blurs reach beyond a pixel.
_MARGIN_PX = 4
# Whole cells high; the margin holds what the median and the pyramid reach, and is even.
_STRIP_PX, _STRIP_MARGIN_PX = 128, 4


@dataclass(frozen=True, slots=True)
class CellMaps:
    """Of cells (Y, X): float32 ``energy`` (band, Y, X), ``noise`` variance, extremes.

    All in squared counts and counts; ``low`` and ``high`` are the extremes of
    the frame at half its size, a hot pixel removed.
    """

    energy: NDArray[np.float32]
    noise: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Found:
    """What stands above the noise; see ``measures.Measures`` for the fields."""

    cells: int | None
    fraction: float | None
    signal: float | None
    saturated_fraction: float | None
    focus: float | None
    focus_least_third: float | None
    fine_snr: float | None


NONE = Found(None, None, None, None, None, None, None)


def map_cells(tile: NDArray[Any], noise: float) -> CellMaps:
    """Measure the cells of one tile.

    Parameters
    ----------
    tile
        (Y, X) uint8, uint16 or float32, contiguous, at least 64 px each way.
    noise
        Standard deviation of the frame's noise, counts.
    """
    height, width = tile.shape
    shape = (height // CELL_PX, width // CELL_PX)
    level, variance, low, high = _halve(tile, noise, shape)
    energy = np.empty((BANDS, *shape), np.float32)
    for band in range(BANDS):
        level = np.asarray(cv2.pyrDown(level), np.float32)
        # Continued by point reflection: a mirror would fold a slope of the light into a ridge.
        wide = np.pad(level, _MARGIN_PX, mode="reflect", reflect_type="odd")
        inner = slice(_MARGIN_PX, -_MARGIN_PX)
        energy[band] = _to_cells(_band_energy(wide)[inner, inner], shape)
    return CellMaps(energy, variance, low, high)


def _halve(
    tile: NDArray[Any], noise: float, shape: tuple[int, int]
) -> tuple[NDArray[np.float32], ...]:
    """Return the tile at half its size without hot pixels; of cells: noise, lowest, highest.

    Strip by strip: what is needed in between then stays in the processor's cache, which
    takes a third of the time of arrays of the whole tile. The values are the same.
    """
    height, width = tile.shape
    half = np.empty(((height + 1) // 2, (width + 1) // 2), np.float32)
    differences = np.empty((height // 4, width // 2 - 1), np.float32)
    for top in range(0, height, _STRIP_PX):
        bottom = min(top + _STRIP_PX, height)
        first, last = max(top - _STRIP_MARGIN_PX, 0), min(bottom + _STRIP_MARGIN_PX, height)
        level = without_hot_pixels(tile[first:last], noise).astype(np.float32)
        shrunk = cv2.pyrDown(level)
        half[top // 2 : (bottom + 1) // 2] = shrunk[(top - first) // 2 :][: (bottom - top + 1) // 2]
        differences[top // 4 : bottom // 4] = diagonal_difference(
            level[top - first : bottom - first]
        )
    variance = _to_cells(np.square(differences, out=differences), shape)
    return half, variance, *_extremes(half, shape)


def _band_energy(level: NDArray[np.float32]) -> NDArray[Any]:
    """Square of the finest octave of a level of the pyramid."""
    # Filtered in place: fresh arrays of this size cost as much as the arithmetic.
    fine = cv2.GaussianBlur(level, _BLUR_PX, _BLUR_SIGMA)
    cv2.subtract(level, fine, dst=fine)
    # Twice, so that slow variation leaks in with the eighth power of its frequency only.
    smooth = cv2.GaussianBlur(fine, _BLUR_PX, _BLUR_SIGMA)
    cv2.subtract(fine, smooth, dst=fine)
    return cv2.multiply(fine, fine, dst=fine)


def without_hot_pixels(tile: NDArray[Any], noise: float) -> NDArray[Any]:
    """Replace pixels that stand far above the median of their 3x3 by that median.

    Everything else, the noise included, stays as it is.
    """
    middle = cv2.medianBlur(tile, 3)
    # Eight times the noise happens by chance once in 10^15 pixels.
    limit = 8.0 * noise if tile.dtype.kind == "f" else int(8.0 * noise)  # integers compare faster
    above = cv2.subtract(tile, middle)
    if not above.max() > limit:  # as nearly always, and found at half the cost of where
        return tile
    spikes = np.flatnonzero(above > limit)
    clean = tile.copy()
    clean.ravel()[spikes] = middle.ravel()[spikes]
    return clean


def diagonal_difference(level: NDArray[np.float32]) -> NDArray[np.float32]:
    """Second difference along both axes, at every fourth row and second column.

    The kernel (1, -2, 1) x (1, -2, 1) / 6 (Immerkaer, CVIU 64, 300, 1996) leaves
    white noise its variance and sees the highest diagonal frequencies alone,
    where optics leave next to nothing.
    """
    height, width = level.shape[0] // 4 * 4, level.shape[1] // 2 * 2
    middle = level[1:height:4]
    rows = level[0:height:4] + level[2:height:4]
    rows -= middle
    rows -= middle
    even, odd = np.ascontiguousarray(rows[:, 0:width:2]), rows[:, 1 : width - 1 : 2]
    both = even[:, :-1] + even[:, 1:]
    both -= odd
    both -= odd
    both *= np.float32(1 / 6)
    return both


def join(rows: list[list[CellMaps]]) -> CellMaps:
    """Put the maps of a frame's tiles together: rows of tiles, each from left to right."""
    lines = [
        CellMaps(
            np.concatenate([m.energy for m in row], axis=2),
            *(np.concatenate([getattr(m, name) for m in row], axis=1) for name in _FLAT),
        )
        for row in rows
    ]
    return CellMaps(
        np.concatenate([m.energy for m in lines], axis=1),
        *(np.concatenate([getattr(m, name) for m in lines], axis=0) for name in _FLAT),
    )


def find(maps: CellMaps, noise: float, ceiling: float | None) -> Found:
    """Tell structure from noise and measure it.

    Parameters
    ----------
    maps
        Of the whole frame.
    noise
        Standard deviation of the frame's noise, counts; the least that is
        assumed in any cell.
    ceiling
        Highest count of the converter in the units of ``maps``, or None.
    """
    # Neighbouring cells share their noise estimate, which scatters by a seventh in one.
    local = np.maximum(_box(maps.noise), np.float32(noise**2))
    expected = NOISE_GAIN[:, None, None] * local
    stands_out = np.any(maps.energy > DETECTION[:, None, None] * expected, axis=0)
    cells = int(np.count_nonzero(stands_out))
    if cells == 0:
        return replace(NONE, cells=0, fraction=0.0)
    # Summed over 3x3 cells, so that an object counts with all that defocus spread.
    above = np.stack([_box(band) for band in maps.energy - expected])
    floors = np.stack([_box(band) for band in expected])
    strength = above.sum(axis=0)
    # At objects and not in their halos: at least half of the highest nearby.
    objects = stands_out & (strength >= 0.5 * _highest(strength)) & (strength > 0)
    if not objects.any():
        return replace(NONE, cells=0, fraction=0.0)
    # Not in the faint texture between them, if they are more than a few.
    objects &= strength >= _FAINT * quantile(strength[objects], _STRONG_QUANTILE)
    top = _highest(maps.high)[objects]
    saturated = None
    if ceiling is not None:
        # Of the half-size frame, so a group of pixels and not a single one is meant.
        saturated = float(np.mean(top >= 0.98 * ceiling))
    seen = maps.energy[FINE, stands_out].mean()
    floor = expected[FINE, stands_out].mean()
    focus, least = _focus(above[:, objects], floors[:, objects], strength[objects])
    return Found(
        cells=cells,
        fraction=cells / stands_out.size,
        signal=quantile(top + _highest(-maps.low)[objects], 0.75),
        saturated_fraction=saturated,
        focus=focus,
        focus_least_third=least,
        fine_snr=float((seen - floor) / floor) if floor > 0 else None,
    )


def _focus(
    above: NDArray[np.float32], noise: NDArray[np.float32], strength: NDArray[np.float32]
) -> tuple[float, float]:
    """Median over objects of log2 of fine over coarse energy, and mean of its least third.

    Parameters
    ----------
    above, noise
        Of the objects (band, n): energy beyond the noise, and the noise's own.
    strength
        (n,) energy of all bands. Weights grow with its square root, the contrast,
        so that neither a few bright objects at another depth nor many faint specks
        decide.

    Returns
    -------
    tuple of float
        Octaves. The mean of a third scatters less from frame to frame than a quantile in it.
    """
    values = 9 * (CELL_PX / 2 ** np.arange(2, BANDS + 2)) ** 2
    doubt = noise * (_NOISE_DOUBT + 2 * np.sqrt(2 / values)).astype(np.float32)[:, None]
    least = np.finfo(np.float32).tiny
    fine, coarse = (
        np.maximum(np.maximum(above[band], doubt[band]), least) for band in (FINE, COARSE)
    )
    ratio = np.log2(fine) - np.log2(coarse)
    order = np.argsort(ratio, kind="stable")
    ratio = ratio[order].astype(np.float64)
    weight = np.sqrt(strength[order].astype(np.float64))
    reached = np.cumsum(weight)
    median = ratio[np.searchsorted(reached, reached[-1] / 2)]
    # Up to a third of all weight: the object on the border counts with what it has below.
    inside = np.clip(_LEAST_SHARP * reached[-1] - (reached - weight), 0, weight)
    return float(median), float((inside * ratio).sum() / inside.sum())


def _box(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(cv2.blur(values, (3, 3)), np.float32)


def _highest(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Highest of each 3x3 cells."""
    return np.asarray(cv2.dilate(values, np.ones((3, 3), np.uint8)), np.float32)


_FLAT = ("noise", "low", "high")


def _to_cells(values: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.float32]:
    return np.asarray(cv2.resize(values, shape[::-1], interpolation=cv2.INTER_AREA), np.float32)


def _extremes(
    half: NDArray[np.float32], shape: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Lowest and highest value of each cell of a frame at half its size."""
    block = CELL_PX // 2
    low = high = half[: shape[0] * block, : shape[1] * block]
    while block > 1:
        low = np.minimum(low[::2], low[1::2])
        high = np.maximum(high[::2], high[1::2])
        block //= 2
    while low.shape[1] > shape[1]:
        low = np.minimum(low[:, ::2], low[:, 1::2])
        high = np.maximum(high[:, ::2], high[:, 1::2])
    return low, high
