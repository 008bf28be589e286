"""What is found out of a frame's pixels alone: their hash and their measures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from segbatch.frame import gray, hash_pixels
from segbatch.infer.quality.measures import Measures, measure

if TYPE_CHECKING:
    from numpy.typing import NDArray


MESSAGE_BYTES = 1 << 16  # of a request or an observation at most; they take two thousand


class Observation(msgspec.Struct, frozen=True):
    """Measures of a frame's intensities, and the hash of its pixels."""

    measures: Measures
    pixel_hash: str


class Request(msgspec.Struct, frozen=True):
    """Where a frame lies in shared memory, in bytes from its start."""

    offset: int
    shape: tuple[int, ...]
    dtype: str
    ceiling: int | None


def observe(pixels: NDArray[Any], ceiling: int | None) -> Observation:
    """Look at the pixels of one frame, (Y, X) or (Y, X, 3), as ``measures.measure`` does.

    ``ceiling`` is the highest count of the converter, None where there is none.
    """
    return Observation(measure(gray(pixels), ceiling), hash_pixels(pixels))
