"""TIFF files of one page, written from a head that is made once: a run has thousands alike."""

from __future__ import annotations

import io
import itertools
import math
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np
import tifffile

from segbatch.service.record.masks import (
    LARGEST_CLASSIC_BYTES,
    rows_per_strip,
    software_of,
    write_pages,
)
from segbatch.service.record.spool import Page

_HEADS_KEPT = 64
_STRIP_OFFSETS, _STRIP_BYTE_COUNTS, _SOFTWARE = 273, 279, 305  # TIFF 6.0, section 8
_LONG = 4  # 32 bits, section 2


def write_page(
    handle: BinaryIO,
    page: Page,
    dtype: np.dtype[Any],
    *,
    coloured: bool,
    pixel_size_um: float | None,
    ome: bool,
) -> None:
    """Write the TIFF that ``masks.write_pages`` writes of one page, byte for byte.

    Of a plane, (Y, X), all but the strips, their places and the check sum is the same from file
    to file and is made once: the rest takes a tenth of the time.

    Parameters
    ----------
    handle
        Open for writing and reading.
    page
        (Y, X) or (K, Y, X).
    dtype, coloured, pixel_size_um
        See ``masks.write_pages``.
    ome
        As an OME-TIFF.
    """
    head = None
    small = math.prod(page.shape) * dtype.itemsize <= LARGEST_CLASSIC_BYTES
    if small and not ome and len(page.shape) == 2:
        head = _head_of(page.shape, dtype, coloured=coloured, pixel_size_um=pixel_size_um)
    if head is None:
        write_pages(
            handle,
            [(page.shape, iter(page.strips))],
            dtype,
            coloured=coloured,
            pixel_size_um=pixel_size_um,
            ome_axes=("", ()) if ome else None,
        )
        return
    content = bytearray(head.content)
    sizes = [len(strip) for strip in page.strips]
    starts = itertools.accumulate(sizes[:-1], initial=len(content))
    numbers = struct.Struct(f"{head.order}{len(sizes)}I")
    numbers.pack_into(content, head.offsets_at, *starts)
    numbers.pack_into(content, head.sizes_at, *sizes)
    strips = b"".join(page.strips)
    software = software_of(zlib.crc32(strips)).encode()
    content[head.software_at : head.software_at + len(software)] = software
    handle.write(content + strips)


@dataclass(frozen=True, slots=True)
class _Head:
    """A TIFF up to its first strip, and where in it stands what differs from file to file."""

    content: bytes
    order: str
    offsets_at: int
    sizes_at: int
    software_at: int


@lru_cache(maxsize=_HEADS_KEPT)
def _head_of(
    shape: tuple[int, ...], dtype: np.dtype[Any], *, coloured: bool, pixel_size_um: float | None
) -> _Head | None:
    """Return the head of all files of a kind; None where their strips have to be told otherwise."""
    strips = -(-shape[0] // rows_per_strip(shape, dtype.itemsize))
    blank = io.BytesIO()
    pages = [(shape, iter([b"\0"] * strips))]
    write_pages(blank, pages, dtype, coloured=coloured, pixel_size_um=pixel_size_um)
    blank.seek(0)
    with tifffile.TiffFile(blank) as file:
        page = file.pages.first
        offsets, sizes, software = (
            page.tags[code] for code in (_STRIP_OFFSETS, _STRIP_BYTE_COUNTS, _SOFTWARE)
        )
        if any((tag.dtype, tag.count) != (_LONG, strips) for tag in (offsets, sizes)):
            return None
        return _Head(
            blank.getvalue()[: page.dataoffsets[0]],
            file.byteorder,
            offsets.valueoffset,
            sizes.valueoffset,
            software.valueoffset,
        )
