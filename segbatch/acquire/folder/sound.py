"""Whether a file holds all that it names: opened once for each state it is seen in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from segbatch.acquire import micromanager
from segbatch.acquire.decode import PNG_SIGNATURE
from segbatch.acquire.layout import Page, read_page
from segbatch.acquire.metadata import DESCRIPTION_TAG, imagej_entries, whole
from segbatch.acquire.raw import RawFile
from segbatch.acquire.tiff import Ifd, is_tiff, read_header, read_ifd
from segbatch.errors import UnsupportedFrameError

if TYPE_CHECKING:
    from pathlib import Path

ANY_SIZE = 1 << 62  # how large a frame may be is not asked here
_ZERO_ROWS, _ZERO_BYTES = 2, 64


@dataclass(frozen=True, slots=True)
class Soundness:
    """What was found in a file.

    Attributes
    ----------
    whole
        All pages and their strips or tiles, or all chunks, lie inside the file.
    ends_in_zeros
        The last frame does: its writer may only have made room for it.
    is_stack
        It has Micro-Manager's index map, which says more than this.
    """

    whole: bool = False
    ends_in_zeros: bool = False
    is_stack: bool = False


def examine(path: Path) -> Soundness:
    """Look through a file, without reading its pixels.

    Raises
    ------
    FrameError
        It cannot be opened, or breaks off.
    """
    raw = RawFile(path)
    try:
        head = raw.read_some(0, 8)
        if head == PNG_SIGNATURE:
            return Soundness(whole=_png_ends(raw))
        if not is_tiff(head):
            return Soundness()
        if micromanager.find_stack_map(raw, read_header(raw)) is not None:
            return Soundness(is_stack=True)
        return _chain(raw)
    finally:
        raw.close()


def ends_in_zeros(raw: RawFile, offset: int, size: int, row_bytes: int) -> bool:
    """Tell whether the last rows of a frame that lies in one piece are all zeros."""
    count = min(size, _ZERO_ROWS * max(1, row_bytes))
    return not any(raw.read(offset + size - count, count))


def page_ends_in_zeros(raw: RawFile, page: Page) -> bool:
    """Tell whether the last rows of a page, or the end of its last coded strip, are zeros."""
    plain = page.compression == 1
    row_bytes = page.block[1] * page.samples * page.bits // 8
    return ends_in_zeros(
        raw, page.offsets[-1], page.counts[-1], row_bytes if plain else _ZERO_BYTES // _ZERO_ROWS
    )


def _chain(raw: RawFile) -> Soundness:
    """Follow a TIFF's pages to the end."""
    header = read_header(raw)
    offset, spent, pages = header.first, 0, 0
    seen: set[int] = set()
    page: Page | None = None
    ifd: Ifd | None = None
    while offset and offset not in seen:
        seen.add(offset)
        ifd = read_ifd(raw, header, offset)
        try:
            page = read_page(ifd, ANY_SIZE)
        except UnsupportedFrameError:
            page = None  # it is whole as far as can be told; reading it says what is amiss
        pages += 1
        spent += ifd.size
        if spent > raw.size:  # directories that overlap could make the chain endless
            return Soundness()
        offset = ifd.next_offset
    if ifd is None:
        return Soundness()
    if page is None:
        return Soundness(whole=True)
    if pages == 1 and not _run_is_whole(raw, ifd, page):
        return Soundness()
    return Soundness(whole=True, ends_in_zeros=page_ends_in_zeros(raw, page))


def _run_is_whole(raw: RawFile, ifd: Ifd, page: Page) -> bool:
    """Tell whether the frames are there that ImageJ puts behind a single directory.

    A description that was copied along with one frame names others that never come.
    """
    images = whole(imagej_entries(ifd.text(DESCRIPTION_TAG)).get("images"), 2, 1 << 31) or 1
    there = (raw.size - page.offsets[0]) // sum(page.counts)
    return not page.is_plain or there < 2 or there >= images


def _png_ends(raw: RawFile) -> bool:
    """Follow a PNG's chunks to the last one, IEND."""
    at = 8
    while at + 12 <= raw.size:
        head = raw.read(at, 8)
        if head[4:] == b"IEND":
            return True
        if not head[4:].isalpha():
            return False
        at += 12 + int.from_bytes(head[:4], "big")
    return False
