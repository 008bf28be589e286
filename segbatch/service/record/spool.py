"""Finished pages of a stack, kept in order of their frames until the stack is whole."""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from segbatch.service.record.atomic import append_whole, storage_error

# magic, number of dimensions, shape (three, unused ones 0), number of strips, CRC-32 of the rest
_HEAD = struct.Struct("<4sBIIIII")
_MAGIC = b"SBP1"


@dataclass(frozen=True, slots=True)
class Page:
    """One compressed page: its shape, () where the frame has none, and its strips."""

    shape: tuple[int, ...]
    strips: Sequence[bytes]


class PageSpool:
    """An append-only file of compressed pages that survives a kill at any byte.

    Opening it finds the whole pages and cuts off what follows the last one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            self._handle = os.fdopen(descriptor, "r+b", buffering=0)
            self._index = self._find_whole_pages()
        except OSError as error:
            raise storage_error(error, path) from error

    def __len__(self) -> int:
        return len(self._index)

    def append(self, page: Page) -> None:
        """Add the next page; it is complete in the file when this returns."""
        lengths = struct.pack(f"<{len(page.strips)}I", *map(len, page.strips))
        check = zlib.crc32(lengths)
        for strip in page.strips:
            check = zlib.crc32(strip, check)
        shape = (*page.shape, 0, 0, 0)[:3]
        head = _HEAD.pack(_MAGIC, len(page.shape), *shape, len(page.strips), check)
        try:
            offset = self._handle.seek(0, os.SEEK_END)
            append_whole(self._handle, b"".join((head, lengths, *page.strips)))
        except OSError as error:
            raise storage_error(error, self.path) from error
        self._index.append((offset, page.shape))

    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shape of every page, () for a frame without one."""
        return [shape for _, shape in self._index]

    def strips(self, number: int) -> Sequence[bytes]:
        """Read the strips of one page again."""
        page = self._read(self._index[number][0])
        if page is None:
            gone = OSError(errno.EIO, "a page written before cannot be read")
            raise storage_error(gone, self.path)
        return page.strips

    def truncate(self, count: int) -> None:
        """Keep the first ``count`` pages."""
        if count < len(self._index):
            self._handle.truncate(self._index[count][0])
            del self._index[count:]

    def sync(self) -> None:
        """Flush the pages to the disk."""
        try:
            os.fsync(self._handle.fileno())
        except OSError as error:
            raise storage_error(error, self.path) from error

    def close(self) -> None:
        """Close the file; its pages stay."""
        self._handle.close()

    def _find_whole_pages(self) -> list[tuple[int, tuple[int, ...]]]:
        index = []
        offset = 0
        while (page := self._read(offset)) is not None:
            index.append((offset, page.shape))
            offset += _HEAD.size + sum(4 + len(strip) for strip in page.strips)
        self._handle.truncate(offset)
        return index

    def _read(self, offset: int) -> Page | None:
        self._handle.seek(offset)
        return _whole_page(self._handle)


def read_page(path: Path, number: int) -> Page | None:
    """Read one page of a spool that is still added to; None where it is not there whole.

    Raises
    ------
    OSError
        The spool cannot be read.
    """
    with path.open("rb") as handle:
        for _ in range(number):
            lengths = _lengths(handle, handle.read(_HEAD.size))
            if lengths is None:
                return None
            handle.seek(sum(lengths), os.SEEK_CUR)
        return _whole_page(handle)


def _lengths(handle: BinaryIO | FileIO, head: bytes) -> tuple[int, ...] | None:
    """Read how many bytes each strip of the page takes that ``head`` begins."""
    if len(head) < _HEAD.size:
        return None
    magic, dimensions, *_, count, _ = _HEAD.unpack(head)
    packed = handle.read(4 * count)
    if magic != _MAGIC or dimensions > 3 or len(packed) < 4 * count:
        return None
    return struct.unpack(f"<{count}I", packed)


def _whole_page(handle: BinaryIO | FileIO) -> Page | None:
    head = handle.read(_HEAD.size)
    lengths = _lengths(handle, head)
    if lengths is None:
        return None
    _, dimensions, *shape, _, check = _HEAD.unpack(head)
    strips = [handle.read(length) for length in lengths]
    found = zlib.crc32(struct.pack(f"<{len(lengths)}I", *lengths))
    for strip in strips:
        found = zlib.crc32(strip, found)
    if found != check or [len(strip) for strip in strips] != list(lengths):
        return None
    return Page(tuple(shape[:dimensions]), strips)
