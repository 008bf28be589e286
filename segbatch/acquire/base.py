"""What every open raw file can do, whatever wrote it."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from segbatch.acquire.raw import RawFile, unreadable
from segbatch.errors import FrameError
from segbatch.frame import Acquisition, Frame, FrameId

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import DTypeLike, NDArray

    Empty = Callable[[tuple[int, ...], DTypeLike], NDArray[Any]]


# Stacks even while they hold one frame. Their writer says which frames are
# complete and does not touch those again, so the file may grow while it is read.
GROWING_KINDS = ("ndtiff", "mmstack")


@dataclass(frozen=True, slots=True)
class Options:
    """How to read a file.

    Bit depths where it says none, the largest decoded frame in bytes, and what
    gives the memory for pixels: called with shape and dtype, as ``numpy.empty``.
    """

    bit_depth: int | None
    profile_bit_depth: int
    max_bytes: int
    empty: Empty = np.empty


@dataclass(frozen=True, slots=True)
class Picture:
    """Pixels, the bits of their container, and what the file says of them.

    ``bit_hint`` is a bit depth that gives way to one that a person asked for.
    """

    pixels: NDArray[Any]
    container_bits: int
    acquisition: Acquisition = field(default_factory=Acquisition)
    bit_hint: int | None = None


class Source(ABC):
    """An open raw file. ``read`` may be called from several threads at once.

    Attributes
    ----------
    path
        The file.
    kind
        ``tiff``, ``imagej``, ``ome-tiff``, ``mmstack``, ``micro-manager``
        (separate files), ``ndtiff`` or ``png``.
    frame_count
        Frames in this file, at least 1.
    """

    def __init__(self, file: RawFile, kind: str, frame_count: int, options: Options) -> None:
        self.path = file.path
        self.kind = kind
        self.frame_count = frame_count
        self._file = file
        self._options = options
        if frame_count < 1:
            raise unreadable(
                file.path,
                "holds no complete frame",
                "one frame or more",
                "run again when its writer has finished",
            )

    @property
    def may_grow(self) -> bool:
        """True for formats that are read while they are written."""
        return self.kind in GROWING_KINDS

    @property
    def size_and_mtime_ns(self) -> tuple[int, int]:
        """Size (bytes) and time stamp of the file as it was opened."""
        return self._file.opened.st_size, self._file.opened.st_mtime_ns

    @property
    def is_stack(self) -> bool:
        """True where the file holds several frames, or is of a kind made to."""
        return self.frame_count > 1 or self.may_grow

    def read(self, page: int) -> Frame:
        """Read frame ``page`` (from 0).

        Raises
        ------
        IndexError
            No such page.
        UnreadableFrameError
            Corrupt, cut short, or changed, replaced or removed meanwhile.
        UnsupportedFrameError
            Sound, but of a kind that is not read, or larger than allowed.
        """
        if not 0 <= page < self.frame_count:
            raise IndexError(f"{self.path} has {self.frame_count} frames, no frame {page}")
        stat = self._file.check_unchanged(may_grow=self.may_grow)
        picture = self._picture(page)
        self._file.check_unchanged(may_grow=self.may_grow)
        return Frame(
            FrameId(self.path, page),
            picture.pixels,
            self._bit_depth(picture),
            stat.st_size,
            stat.st_mtime_ns,
            picture.acquisition,
        )

    def frame_bytes(self, page: int) -> int:
        """Return the bytes that frame ``page`` takes when it is read.

        0 where that cannot be told; reading the frame then says why.
        """
        try:
            return self._decoded_bytes(page)
        except FrameError:
            return 0

    def grid_axes(self) -> tuple[str, tuple[int, ...]] | None:
        """Return the axes that the frames run along and their lengths, slowest first.

        As in ``("TC", (10, 2))``; None where the frames are no full grid of
        the axes T, Z and C in one order.
        """
        positions = [self._position(page) for page in range(self.frame_count)]
        names = [axis for axis in positions[0] if any(where.get(axis) for where in positions)]
        if not set(names) <= set("tzc"):
            return None
        lengths = {axis: 1 + max(where.get(axis, 0) for where in positions) for axis in names}
        first_step = {
            axis: next(page for page, where in enumerate(positions) if where.get(axis))
            for axis in names
        }
        names.sort(key=first_step.__getitem__, reverse=True)
        expected = itertools.product(*(range(lengths[axis]) for axis in names))
        found = [tuple(where.get(axis, -1) for axis in names) for where in positions]
        if found != list(itertools.islice(expected, len(found) + 1)):
            return None
        return "".join(names).upper(), tuple(lengths[axis] for axis in names)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _picture(self, page: int) -> Picture: ...

    @abstractmethod
    def _decoded_bytes(self, page: int) -> int: ...

    @abstractmethod
    def _position(self, page: int) -> dict[str, int]: ...

    def _bit_depth(self, picture: Picture) -> int:
        """JSON's BitDepth, else what was asked for, else a hint, else the profile's."""
        if picture.pixels.dtype.kind == "f":
            return 0
        hint = picture.bit_hint
        if hint is not None and hint >= picture.container_bits:
            hint = None  # writers that do not know name the container's size
        wanted = picture.acquisition.bit_depth or self._options.bit_depth or hint
        return min(wanted or self._options.profile_bit_depth, picture.container_bits)
