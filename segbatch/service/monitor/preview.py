"""Small pictures of frames and masks for the live page, made when they are asked for."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from segbatch.acquire.raw import CONTENT_ERRORS
from segbatch.acquire.source import Source
from segbatch.errors import FrameError
from segbatch.frame import gray
from segbatch.service.monitor.monitor import Shot
from segbatch.service.record.masks import decompress, palette
from segbatch.service.record.spool import read_page
from segbatch.service.record.stack import spool_of

Kind = Literal["frame", "mask", "thumb"]
WIDTH_PX: Final[dict[Kind, int]] = {"frame": 720, "mask": 1440, "thumb": 240}
LARGEST_BYTES = 64 << 20  # decoded; a larger frame is not worth its memory
_CACHE_BYTES = 16 << 20
_AT_ONCE = 8  # threads that may wait for a picture; the server's others stay free
_WAIT_S = 5.0
_SAMPLED_PX = 1 << 22
_FILL, _OUTLINE = 30, 235  # opacity of a mask
_BRUSH = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))


class UnseenError(Exception):
    """A picture cannot be shown; the text says why, for people."""


class BusyError(UnseenError):
    """It may be shown when it is asked for again."""


class Previews:
    """Makes pictures one at a time and keeps the last few; thread-safe.

    Parameters
    ----------
    open_raw
        Opens a raw file; raises ``FrameError``.
    """

    def __init__(self, open_raw: Callable[[Path], Source]) -> None:
        self._open_raw = open_raw
        self._cache: OrderedDict[tuple[Kind, str], bytes] = OrderedDict()
        self._entrance = threading.BoundedSemaphore(_AT_ONCE)
        self._turn = threading.Lock()

    def png(self, kind: Kind, shot: Shot) -> bytes:
        """Return one picture as PNG.

        Raises
        ------
        UnseenError
            The raw file is gone, changed, too large or cannot be read; or the
            frame has no mask.
        BusyError
            Others are waited for, such as on a slow disk.
        """
        if not self._entrance.acquire(blocking=False):
            raise BusyError("too many pictures at once")
        try:
            if not self._turn.acquire(timeout=_WAIT_S):
                raise BusyError("the disk is slow")
            try:
                return self._made(kind, shot)
            finally:
                self._turn.release()
        finally:
            self._entrance.release()

    def _made(self, kind: Kind, shot: Shot) -> bytes:
        key = (kind, shot.id)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        try:
            png = mask_png(shot) if kind == "mask" else self._frame_png(shot, WIDTH_PX[kind])
        except MemoryError as error:
            raise UnseenError("not enough memory to show it") from error
        self._cache[key] = png
        while sum(map(len, self._cache.values())) > _CACHE_BYTES:
            self._cache.popitem(last=False)
        return png

    def _frame_png(self, shot: Shot, width: int) -> bytes:
        if not shot.raw.exists():
            raise UnseenError("the raw file is no longer there")
        try:
            with self._open_raw(shot.raw) as source:
                _require_same(source, shot)
                pixels = gray(source.read(shot.page).pixels)
        except (FrameError, IndexError, OSError) as error:
            raise UnseenError("the raw file cannot be read") from error
        return _encode(stretched(_small(pixels, width), shot.stretch))


def _require_same(source: Source, shot: Shot) -> None:
    was = (shot.record.frame.size_bytes, shot.record.frame.mtime_ns)
    if not source.may_grow and source.size_and_mtime_ns != was:
        raise UnseenError("the raw file has changed since")
    if source.frame_bytes(shot.page) > LARGEST_BYTES:
        raise UnseenError(f"larger than {LARGEST_BYTES >> 20} MiB: not shown")


def stretched(pixels: NDArray[Any], limits: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Return (Y, X) pixels as 8-bit grey levels, ``limits`` (counts) as black and white.

    Without limits the 1st and 99.9th percentile are taken.
    """
    values = np.nan_to_num(pixels.astype(np.float32), posinf=0.0, neginf=0.0)
    low, high = limits or (float(v) for v in np.percentile(values, (1, 99.9)))
    values -= low
    values *= 255 / max(high - low, 1e-30)
    return np.clip(values, 0, 255, out=values).astype(np.uint8)


def mask_png(shot: Shot) -> bytes:
    """Return the mask as coloured outlines with a faint fill, transparent elsewhere.

    Raises
    ------
    UnseenError
        There is none, or it cannot be read.
    """
    if shot.mask is None or shot.record.mask is None:
        raise UnseenError("no mask")
    classes = _mask_pixels(shot.mask, shot.record.mask.page)
    colours = (palette() >> 8).astype(np.uint8)
    sampled = _sampled(classes)
    size = _scaled(sampled.shape, WIDTH_PX["mask"] / max(sampled.shape))
    drawn = np.zeros((size[1], size[0], 4), np.uint8)
    for value in np.unique(sampled):
        if value == 0:
            continue
        part = (sampled == value).astype(np.uint8) * 255
        inside = (cv2.resize(part, size, interpolation=cv2.INTER_LINEAR) >= 128).astype(np.uint8)
        around = cv2.dilate(inside, _BRUSH)  # outside, so that small objects stay in sight
        drawn[around > 0] = (*colours[::-1, value], _OUTLINE)
        drawn[inside > 0, 3] = _FILL
    return _encode(drawn)


def _mask_pixels(path: Path, page: int) -> NDArray[Any]:
    """Read a mask, also one of a stack that is not whole yet."""
    spool = spool_of(path)
    try:
        if spool.exists():
            return _spooled(spool, page)
        with tifffile.TiffFile(path) as file:
            found = file.pages[page]
            if found.size > LARGEST_BYTES:
                raise UnseenError("the mask is too large to be shown")
            return found.asarray()
    except FileNotFoundError as error:
        raise UnseenError("the mask is not on disk") from error
    except CONTENT_ERRORS as error:
        raise UnseenError("the mask cannot be read") from error


def _spooled(spool: Path, page: int) -> NDArray[Any]:
    found = read_page(spool, page)
    if found is None or not found.shape:
        raise UnseenError("the mask is not on disk yet")
    if math.prod(found.shape) > LARGEST_BYTES:
        raise UnseenError("the mask is too large to be shown")
    return decompress(found.strips, found.shape)


def _small(pixels: NDArray[Any], width: int) -> NDArray[Any]:
    """Return (Y, X) pixels averaged down to ``width``, in bounded memory."""
    sampled = _sampled(pixels)
    if sampled.dtype not in (np.uint8, np.uint16):
        sampled = sampled.astype(np.float32)
    sampled = np.ascontiguousarray(sampled, sampled.dtype.newbyteorder("="))
    return cv2.resize(sampled, _size(pixels.shape, width), interpolation=cv2.INTER_AREA)


def _sampled(pixels: NDArray[Any]) -> NDArray[Any]:
    """Take every n-th row and column of a very large image, so that no large copy is made."""
    step = max(1, int(np.ceil(np.sqrt(pixels.size / _SAMPLED_PX))))
    return pixels[::step, ::step]


def _size(shape: tuple[int, ...], width: int) -> tuple[int, int]:
    """Return width and height of an image of ``shape`` that fits a square of ``width``."""
    return _scaled(shape, min(1.0, width / max(shape)))


def _scaled(shape: tuple[int, ...], scale: float) -> tuple[int, int]:
    return max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))


def _encode(pixels: NDArray[np.uint8]) -> bytes:
    _, png = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 2])
    return png.tobytes()
