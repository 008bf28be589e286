"""What is measured on a frame before it is judged: one pass, no full-frame float copy.

Levels come from the histogram, noise from a second difference that structure
hardly touches, structure from the energy of the frame in octaves of spatial
frequency, cell by cell (``structure``), tears from the steps between rows
(``tears``). docs/quality.md says what each measure costs and why it was chosen.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import cv2
import msgspec
import numpy as np

from segbatch.infer.quality import structure, tears
from segbatch.infer.quality.ranks import median

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Quantisation alone has a standard deviation of 1/sqrt(12) counts.
QUANTISATION_SIGMA = 0.2887
# Larger values are no counts, and their squares no float32.
_LARGEST = 1e30
_TILE_PX = 1 << 22
_TILE_WIDTH_PX = 1 << 13
_SAMPLE_PX = 1 << 20
_NOISE_PX = 1 << 15
# Standard deviation of a normal variable truncated at +-2.5 of its own.
_TRIM, _TRIMMED_SIGMA = 2.5, 0.9546


class Measures(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The measures of one frame, in counts of its file; None where one does not apply.

    Attributes
    ----------
    mean, minimum, maximum, p01, p50, p999
        Of all finite pixels.
    ceiling
        Highest count of the converter as given; None for floating point, or
        where pixels exceed it and the stated depth is therefore wrong.
    ceiling_exceeded
        Pixels stand above the stated ceiling.
    saturated_fraction
        Pixels at the ceiling, of all.
    saturated_bright_fraction
        Pixels at the ceiling, of those above half-way from background to ceiling.
    saturated_object_fraction
        Objects that reach the ceiling, of all objects (cells where structure is strongest).
    background
        Median after clipping what stands out.
    noise_sigma
        Standard deviation of the pixel noise.
    structure_cells, structure_fraction
        Cells of 16x16 px with structure above the noise, and of all cells.
    signal
        Contrast of typical structure: upper quartile over the objects of the
        range of the frame at half its size within 48 px.
    snr
        ``signal`` over ``noise_sigma``.
    focus
        Base-2 logarithm of the energy at wavelengths of 8 to 16 px over that at
        32 to 64 px, noise subtracted, of the median object: higher is sharper.
    focus_least_third
        Mean of the same over the least sharp third of the objects.
    fine_snr
        Energy at 8 to 16 px over the noise's own there: whether there is fine structure at all.
    zero_tail_rows
        Whole rows of zeros down to the last, where the frame is not zero elsewhere.
    tear_row, tear_fraction, tear_rival_fraction
        The row where most columns break (the first of the lower part), the fraction
        of columns that break there, and the highest such fraction at any other row.
    tear_step_row, tear_step, tear_step_z
        The row where the level of most columns steps and stays (the first of the
        lower part), the step, and its size in robust standard deviations of all rows.
    """

    mean: float | None
    minimum: float | None
    maximum: float | None
    p01: float | None
    p50: float | None
    p999: float | None
    ceiling: int | None
    ceiling_exceeded: bool
    saturated_fraction: float | None
    saturated_bright_fraction: float | None
    saturated_object_fraction: float | None
    background: float | None
    noise_sigma: float | None
    structure_cells: int | None
    structure_fraction: float | None
    signal: float | None
    snr: float | None
    focus: float | None
    focus_least_third: float | None
    fine_snr: float | None
    zero_tail_rows: int
    tear_row: int | None
    tear_fraction: float | None
    tear_rival_fraction: float | None
    tear_step_row: int | None
    tear_step: float | None
    tear_step_z: float | None


def measure(pixels: NDArray[Any], ceiling: int | None) -> Measures:
    """Measure one frame.

    Parameters
    ----------
    pixels
        (Y, X), any real dtype, counts as stored; not written to. Pixels that
        are not finite are left out of the levels and taken as background elsewhere.
    ceiling
        Highest count of the converter, ``2**bit_depth - 1``; None where there is none.

    Returns
    -------
    Measures
        The extra memory is bounded by a tile of 4 megapixels, whatever the frame's size.

    Raises
    ------
    ValueError
        ``pixels`` is not two-dimensional.
    """
    if pixels.ndim != 2:
        raise ValueError(f"pixels of shape {pixels.shape}; wanted (Y, X)")
    frame = pixels.view(np.uint8) if pixels.dtype == np.bool_ else pixels
    levels = count_levels(frame)
    if levels is None:
        return _nothing(ceiling)
    exceeded = ceiling is not None and levels.maximum > ceiling
    known = None if exceeded else ceiling
    whole = frame.dtype.kind != "f"
    floor = QUANTISATION_SIGMA if whole else 1e-6 * (levels.maximum - levels.minimum)
    noise = max(estimate_noise(frame, floor) / _kept_of_noise(levels.at_zero()), floor)
    found = _structure(frame, levels, noise, known)
    zero_rows = tears.zero_tail_rows(frame) if whole else 0
    tear = tears.find_tear(frame[: frame.shape[0] - zero_rows], noise)
    clipped, bright = levels.clipped(known)
    return Measures(
        mean=levels.mean,
        minimum=levels.minimum,
        maximum=levels.maximum,
        p01=levels.percentile(1),
        p50=levels.percentile(50),
        p999=levels.percentile(99.9),
        ceiling=known,
        ceiling_exceeded=exceeded,
        saturated_fraction=clipped,
        saturated_bright_fraction=bright,
        saturated_object_fraction=None if known is None else found.saturated_fraction,
        background=levels.background,
        noise_sigma=noise,
        structure_cells=found.cells,
        structure_fraction=found.fraction,
        signal=found.signal,
        snr=None if found.signal is None or not noise else found.signal / noise,
        focus=found.focus,
        focus_least_third=found.focus_least_third,
        fine_snr=found.fine_snr,
        zero_tail_rows=zero_rows,
        tear_row=tear.row,
        tear_fraction=tear.fraction,
        tear_rival_fraction=tear.rival_fraction,
        tear_step_row=tear.step_row,
        tear_step=tear.step,
        tear_step_z=tear.step_z,
    )


class _Levels:
    """Values that occur (ascending, float64) and how often each does."""

    def __init__(self, values: NDArray[Any], counts: NDArray[Any], mean: float) -> None:
        self.values, self.counts, self.mean = values, counts, mean
        self.below = np.cumsum(counts)
        self.total = int(self.below[-1])
        self.minimum, self.maximum = float(values[0]), float(values[-1])
        self.background = self._background()

    def percentile(self, percent: float) -> float:
        """Smallest value that at least ``percent`` of the pixels do not exceed."""
        at = np.searchsorted(self.below, percent / 100 * self.total, side="left")
        return float(self.values[min(int(at), len(self.values) - 1)])

    def at_zero(self) -> float:
        """Fraction of pixels at the count 0, if no count is lower."""
        return float(self.counts[0] / self.total) if self.minimum == 0 else 0.0

    def clipped(self, ceiling: int | None) -> tuple[float | None, float | None]:
        """Pixels at ``ceiling``: of all, and of those above half-way to it."""
        if ceiling is None:
            return None, None
        at = float(self.counts[self.values >= ceiling].sum())
        half = (self.background + ceiling) / 2
        bright = float(self.counts[self.values >= half].sum())
        return at / self.total, at / bright if bright else 0.0

    def _background(self) -> float:
        """Median within three robust standard deviations, repeated until it stands."""
        low, high = 0, len(self.values)
        middle = self.values[0]
        for _ in range(6):
            start = self.below[low - 1] if low else 0
            inside = self.below[high - 1] - start
            ranks = start + np.array([0.16, 0.5]) * inside
            lower, middle = self.values[np.searchsorted(self.below, ranks)]
            # Only the lower side is free of objects, so it alone gives the spread.
            reach = 3 * max(middle - lower, 0.5 * (middle > lower) + 0.5)
            new_low = int(np.searchsorted(self.values, middle - reach, side="left"))
            new_high = int(np.searchsorted(self.values, middle + reach, side="right"))
            if (new_low, new_high) == (low, high):
                break
            low, high = new_low, new_high
        return float(middle)


def _is_counted(frame: NDArray[Any]) -> bool:
    """Whether a frame has so few possible values that all pixels can be counted, and filtered."""
    return frame.dtype.kind == "u" and frame.dtype.itemsize <= 2


def _tiles(frame: NDArray[Any]) -> list[list[NDArray[Any]]]:
    """Cut into views of about 4 megapixels, in rows of tiles that start on whole cells."""
    height, width = frame.shape
    columns = _even_parts(width, _TILE_WIDTH_PX)
    rows = _even_parts(height, max(_TILE_PX // columns, structure.SMALLEST_PX))
    return [
        [frame[top : top + rows, left : left + columns] for left in range(0, width, columns)]
        for top in range(0, height, rows)
    ]


def _even_parts(length: int, most: int) -> int:
    """Length of equal parts of at most about ``most``, a multiple of the cell."""
    parts = -(-length // most)
    return -(-length // (parts * structure.CELL_PX)) * structure.CELL_PX


def _sample(frame: NDArray[Any], most_px: int) -> NDArray[Any]:
    """Every n-th row and column, so that at most about ``most_px`` are left."""
    step = max(int(np.ceil((frame.size / most_px) ** 0.5)), 1)
    return frame[:: min(step, frame.shape[0]), :: min(step, frame.shape[1])]


def count_levels(frame: NDArray[Any]) -> _Levels | None:
    """Count the values of a frame: all of 8 and 16 bits, else of about a million pixels."""
    if frame.size == 0:
        return None
    if _is_counted(frame):
        return _count_by_histogram(frame)
    sample = _sample(frame, _SAMPLE_PX).astype(np.float64).ravel()
    sample = sample[np.abs(sample) < _LARGEST]
    if sample.size == 0:
        return None
    values, counts = np.unique(sample, return_counts=True)
    return _Levels(values, counts, float(sample.mean()))


def _count_by_histogram(frame: NDArray[Any]) -> _Levels:
    top = int(frame.max())
    counts = np.zeros(top + 1, np.int64)
    for tile in (tile for row in _tiles(frame) for tile in row):
        part = cv2.calcHist([_contiguous(tile)], [0], None, [top + 1], [0, top + 1])
        counts += part.ravel().astype(np.int64)
    bottom = int(np.flatnonzero(counts)[0])
    counts = counts[bottom:]
    values = np.arange(bottom, top + 1, dtype=np.float64)
    # A sum, not a dot product: that would wake a thread of the linear algebra for each core.
    return _Levels(values, counts, float((values * counts).sum() / frame.size))


def estimate_noise(frame: NDArray[Any], floor: float) -> float:
    """Estimate the standard deviation of the noise, counts.

    Triples of rows are convolved with (1, -2, 1) along both axes, which leaves 36
    times the variance of white noise and nothing of flat and tilted patches (kernel:
    Immerkaer, CVIU 64, 300, 1996). The median of absolute values starts a trimmed
    root mean square, so that structure does not inflate it, nor does it collapse
    to 0 as the median alone does on frames whose noise is below one count.
    """
    height, width = frame.shape
    if height < 3 or width < 3:
        return 0.0
    step = max(-(-frame.size // _NOISE_PX), 1)
    # float32 holds every difference of 16-bit counts, but not of wider values.
    exact = np.dtype(np.float64 if frame.dtype.itemsize > 2 else np.float32)
    upper, middle, lower = (frame[i : height - 2 + i : step].astype(exact) for i in range(3))
    with np.errstate(invalid="ignore", over="ignore"):  # infinite values are left out below
        bent = upper - 2 * middle + lower
        both = np.abs(bent[:, :-2] - 2 * bent[:, 1:-1] + bent[:, 2:])
    # Narrow frames have few rows and wide ones few triples: either way about as many values.
    values = both.ravel()[:: max(both.size // _NOISE_PX, 1)] / 6
    values = values[values < _LARGEST]
    if values.size == 0:
        return 0.0
    sigma = max(median(values) / 0.6745, floor)
    for _ in range(2):
        kept = values[values <= _TRIM * max(sigma, floor)]
        sigma = float(np.sqrt(np.mean(kept * kept))) / _TRIMMED_SIGMA if kept.size else 0.0
    return sigma


def _kept_of_noise(at_zero: float) -> float:
    """Return the fraction of its standard deviation that noise keeps when cut off at 0.

    For normal noise of which the fraction ``at_zero`` falls below the converter's
    lowest count: with a the quantile, y = max(z, a) has E[y] = a P + phi(a) and
    E[y^2] = a^2 P + 1 - P + a phi(a). Where most pixels are 0 the frame had its
    background taken away, and nothing is known of its noise: 1.
    """
    if not 0.01 < at_zero < 0.5:
        return 1.0
    normal = NormalDist()
    a = normal.inv_cdf(at_zero)
    mean = a * at_zero + normal.pdf(a)
    square = a * a * at_zero + 1 - at_zero + a * normal.pdf(a)
    return float(np.sqrt(square - mean * mean))


def _structure(
    frame: NDArray[Any], levels: _Levels, noise: float, ceiling: int | None
) -> structure.Found:
    if min(frame.shape) < structure.SMALLEST_PX:
        return structure.NONE
    if _is_counted(frame):
        offset, unit = 0.0, 1.0
    else:
        # Wider values are brought to where float32 holds small differences and squares.
        offset, unit = levels.background, (levels.maximum - levels.minimum) or 1.0
    maps = [
        [
            structure.map_cells(_filterable(tile, offset, unit), noise / unit)
            for tile in row
            if min(tile.shape) >= structure.CELL_PX
        ]
        for row in _tiles(frame)
        if len(row[0]) >= structure.CELL_PX
    ]
    top = None if ceiling is None else (ceiling - offset) / unit
    found = structure.find(structure.join(maps), noise / unit, top)
    return replace(found, signal=None if found.signal is None else found.signal * unit)


def _filterable(tile: NDArray[Any], offset: float, unit: float) -> NDArray[Any]:
    """Return a contiguous tile that OpenCV can filter: uint8, uint16 or finite float32."""
    if _is_counted(tile):
        return _contiguous(tile)
    values = tile.astype(np.float64)
    values[~(np.abs(values) < _LARGEST)] = offset
    values -= offset
    values /= unit
    return values.astype(np.float32)


def _contiguous(tile: NDArray[Any]) -> NDArray[Any]:
    """Return a tile without gaps, in the machine's byte order; a copy only where it has to be."""
    return np.ascontiguousarray(tile, tile.dtype.newbyteorder("="))


def _nothing(ceiling: int | None) -> Measures:
    """Measures of a frame without a finite pixel."""
    empty: dict[str, Any] = dict.fromkeys(Measures.__struct_fields__)
    empty |= {"ceiling": ceiling, "ceiling_exceeded": False, "zero_tail_rows": 0}
    return Measures(**empty)
