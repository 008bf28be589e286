"""Counts to network input, as the model's manifest says.

The scale is found once, from the whole frame, and applied to each tile: a scale
per tile would make a tile's mask depend on where the frame was cut. No
floating-point copy of the whole frame is ever made.

Conventions: ``pixels`` is (Y, X) or (Y, X, 3) of any real dtype, in counts;
network input is float32 (C, Y, X), ``(counts - offset) * scale``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from segbatch.errors import UnsupportedFrameError
from segbatch.frame import gray
from segbatch.infer.engine.half import to_half
from segbatch.infer.engine.manifest import (
    BitDepth,
    DatasetMax,
    Fixed,
    Percentile,
    ScaleRange,
)
from segbatch.infer.tiles import mirrored

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from segbatch.infer.engine.manifest import Normalisation
    from segbatch.infer.tiles import Span

STRIP_PX = 1 << 22
SAMPLED_PX = 1 << 24


def scale_of(
    pixels: NDArray[Any], normalisation: Normalisation, bit_depth: int
) -> tuple[float, float]:
    """Return (offset, scale) of one frame: input = (counts - offset) * scale.

    Parameters
    ----------
    pixels
        The whole frame as ``seen_by`` the network, counts.
    normalisation
        From the model's manifest.
    bit_depth
        Of the converter, bits; 0 for floating-point images.

    Raises
    ------
    UnsupportedFrameError
        The frame has no converter ceiling and the model is normalised by it,
        or it holds values that are not finite.
    """
    if np.issubdtype(pixels.dtype, np.floating):
        _finite(*(float(strip.sum(dtype=np.float64)) for strip in _strips(pixels)))
    if isinstance(normalisation, DatasetMax):
        return 0.0, 1.0 / normalisation.maximum
    if isinstance(normalisation, BitDepth):
        if bit_depth == 0:
            raise UnsupportedFrameError(
                f"a frame of {pixels.dtype} without a bit depth",
                "integer counts: the model divides by the converter's ceiling",
                "use a model that is normalised by percentile, z-score or dataset maximum",
            )
        return 0.0, 1.0 / float((1 << bit_depth) - 1)
    if isinstance(normalisation, Percentile):
        low, high = _percentiles(pixels, (normalisation.low_percent, normalisation.high_percent))
        return low, 1.0 / max(high - low, normalisation.min_range)
    if isinstance(normalisation, ScaleRange):
        low, high = _percentiles(pixels, (normalisation.low_percent, normalisation.high_percent))
        return low, 1.0 / (high - low + normalisation.epsilon)
    if isinstance(normalisation, Fixed):
        return normalisation.offset, normalisation.scale
    mean, deviation = _moments(pixels)
    return mean, 1.0 / (deviation + normalisation.epsilon)


def seen_by(pixels: NDArray[Any], channels: int) -> NDArray[Any]:
    """Return the frame as a network of ``channels`` inputs sees it.

    A colour frame becomes grey (``frame.gray``, strip by strip) for a network
    of one channel; any other frame is returned as it is.
    """
    if channels != 1 or pixels.ndim == 2:
        return pixels
    grey = np.empty(pixels.shape[:2], pixels.dtype)
    top = 0
    for strip in _strips(pixels):
        grey[top : top + len(strip)] = gray(strip)
        top += len(strip)
    return grey


def apply(pixels: NDArray[Any], offset: float, scale: float, out: NDArray[np.float32]) -> None:
    """Write ``(pixels - offset) * scale`` into ``out``.

    Parameters
    ----------
    pixels
        (Y, X) or (Y, X, 3), counts.
    offset, scale
        From ``scale_of``.
    out
        float32 (C, Y, X), or float16 for engines that compute in it (``to_half``); a grey frame
        is repeated for C of 3.
    """
    if out.dtype.itemsize == 2:
        to_half(pixels, offset, scale, out)
        return
    if pixels.ndim == 3:
        np.copyto(out, np.moveaxis(pixels, 2, 0), casting="unsafe")
    else:
        np.copyto(out, pixels, casting="unsafe")
    np.multiply(out, np.float32(scale), out=out)
    if offset:
        np.subtract(out, np.float32(offset * scale), out=out)


def fill(
    pixels: NDArray[Any],
    y: Span,
    x: Span,
    offset: float,
    scale: float,
    out: NDArray[np.float32],
) -> None:
    """Write one normalised tile into ``out``, mirroring the frame out past its edges.

    Parameters
    ----------
    pixels
        The whole frame as ``seen_by`` the network.
    y, x
        The tile; what lies outside the frame is right of or below it.
    offset, scale
        From ``scale_of``.
    out
        float32 (C, Y, X) of the tile's outer size.
    """
    height, width = pixels.shape[:2]
    rows, columns = min(y.stop, height), min(x.stop, width)
    tall, wide = rows - y.start, columns - x.start
    apply(pixels[y.start : rows, x.start : columns], offset, scale, out[:, :tall, :wide])
    if x.stop > width:
        source = [mirrored(at, width) for at in range(width, x.stop)]
        apply(pixels[y.start : rows, source], offset, scale, out[:, :tall, wide:])
    if y.stop > height:
        source = [mirrored(at, height) for at in range(height, y.stop)]
        across = [mirrored(at, width) for at in range(x.start, x.stop)]
        apply(pixels[np.ix_(source, across)], offset, scale, out[:, tall:, :])


def _strips(pixels: NDArray[Any]) -> Iterator[NDArray[Any]]:
    rows = max(1, STRIP_PX // max(1, pixels[0].size))
    for top in range(0, len(pixels), rows):
        yield pixels[top : top + rows]


def histogram(pixels: NDArray[Any]) -> NDArray[np.int64]:
    """Return how often each count occurs in uint8 or uint16 ``pixels``."""
    bins = 256 if pixels.dtype == np.uint8 else 65536
    total = np.zeros(bins, np.int64)
    for strip in _strips(pixels):
        flat = np.ascontiguousarray(strip).reshape(1, -1)
        found = cv2.calcHist([flat], [0], None, [bins], [0, bins])
        total += found.reshape(-1).astype(np.int64)
    return total


def _counted(pixels: NDArray[Any]) -> bool:
    return pixels.dtype in (np.dtype(np.uint8), np.dtype(np.uint16))


def _percentiles(pixels: NDArray[Any], percents: tuple[float, float]) -> tuple[float, float]:
    """Return percentiles, interpolated linearly between the neighbouring ranks.

    Exact for 8- and 16-bit counts; other dtypes are ranked on every n-th row
    where the frame has more than ``SAMPLED_PX`` values.
    """
    if not _counted(pixels):
        rows = pixels[:: -(-pixels.size // SAMPLED_PX)]
        low, high = (float(value) for value in np.percentile(rows, percents))
        return low, high
    cumulative = np.cumsum(histogram(pixels))
    values = []
    for percent in percents:
        rank = percent / 100.0 * (int(cumulative[-1]) - 1)
        below = int(rank)
        first = int(np.searchsorted(cumulative, below, side="right"))
        second = int(np.searchsorted(cumulative, min(below + 1, int(cumulative[-1]) - 1), "right"))
        values.append(first + (rank - below) * (second - first))
    return values[0], values[1]


def _moments(pixels: NDArray[Any]) -> tuple[float, float]:
    """Return mean and population standard deviation, counts."""
    total = squares = 0.0
    if _counted(pixels):
        # In double precision the mean of 16-bit squares keeps the variance to 1e-6.
        for strip in _strips(pixels):
            flat = np.ascontiguousarray(strip).reshape(len(strip), -1)
            total += cv2.sumElems(flat)[0]
            squares += cv2.norm(flat, cv2.NORM_L2SQR)
        mean = total / pixels.size
        return mean, max(0.0, squares / pixels.size - mean**2) ** 0.5
    for strip in _strips(pixels):
        total += float(strip.sum(dtype=np.float64))
    mean = total / pixels.size
    for strip in _strips(pixels):
        squares += float(np.square(strip.astype(np.float64) - mean).sum())
    return mean, (squares / pixels.size) ** 0.5


def _finite(*values: float) -> None:
    if not all(np.isfinite(values)):
        raise UnsupportedFrameError(
            "a frame with values that are not finite", "finite intensities everywhere"
        )
