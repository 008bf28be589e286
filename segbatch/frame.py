"""A frame: the pixels of one exposure and what is known of where they came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class FrameId:
    """Which frame: the file it stands in and its index among that file's frames (from 0)."""

    file: Path
    page: int


@dataclass(frozen=True, slots=True)
class Acquisition:
    """What the writer of a file said about how a frame was taken; None where it said nothing.

    ``position`` holds the frame's index along each further axis, as in
    ``{"t": 3, "z": 0, "c": 1}``.
    """

    bit_depth: int | None = None
    channel: str | None = None
    exposure_ms: float | None = None
    gain_db: float | None = None
    acquired_at: str | None = None
    pixel_size_um: float | None = None
    position: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame in memory.

    Attributes
    ----------
    id
        File and page.
    pixels
        (Y, X) or, with colour samples, (Y, X, S) with S of 3; any real dtype,
        counts as the file stores them. Never written to.
    bit_depth
        Bits of the analogue-to-digital converter, 0 where there is no such
        thing (floating-point images).
    size_bytes, mtime_ns
        Of the file, taken from the descriptor the pixels were read through.
    acquisition
        What the writer recorded.
    """

    id: FrameId
    pixels: NDArray[Any]
    bit_depth: int
    size_bytes: int
    mtime_ns: int
    acquisition: Acquisition = field(default_factory=Acquisition)

    @property
    def axes(self) -> str:
        """Axes of ``pixels``: ``YX`` or ``YXS``."""
        return "YX" if self.pixels.ndim == 2 else "YXS"

    @property
    def ceiling(self) -> int | None:
        """Highest count the converter can give, ``2**bit_depth - 1``; None without one."""
        return (1 << self.bit_depth) - 1 if self.bit_depth else None


def hash_pixels(pixels: NDArray[Any]) -> str:
    """Return ``blake3:`` and the hash of shape, dtype (little-endian) and pixels in C order."""
    little = pixels.dtype.newbyteorder("<")
    digest = blake3(f"{pixels.shape} {little.str}".encode())
    digest.update(np.ascontiguousarray(pixels, little).reshape(-1).view(np.uint8).data)
    return f"blake3:{digest.hexdigest()}"


def gray(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return (Y, X) intensities of (Y, X) or (Y, X, 3) ``pixels``, in the same dtype.

    Colour samples are weighted as in ITU-R BT.601 (0.299, 0.587, 0.114).
    A (Y, X) array is returned as it is, not copied.
    """
    if pixels.ndim == 2:
        return pixels
    # Sums, not a matrix product: that would wake a thread of the linear algebra for each core.
    weighted = pixels[..., 0] * np.float32(0.299)
    weighted += pixels[..., 1] * np.float32(0.587)
    weighted += pixels[..., 2] * np.float32(0.114)
    if np.issubdtype(pixels.dtype, np.integer):
        weighted = np.rint(weighted)
    return weighted.astype(pixels.dtype)
