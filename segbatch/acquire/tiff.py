"""TIFF and BigTIFF structure: the header, the chain of pages, and their tags.

Written against Adobe's TIFF 6.0 (1992), its Technical Notes and the BigTIFF
layout of libtiff. Nothing in a file is believed: every offset and count is
checked against the file's size before anything is read or allocated.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from segbatch.acquire.raw import RawFile, unreadable
from segbatch.errors import UnreadableFrameError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Bytes per value of each field type (TIFF 6.0 section 2; 13, 16 to 18 of BigTIFF).
TYPE_SIZE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
TYPE_SIZE |= {13: 4, 16: 8, 17: 8, 18: 8}
INTEGER_TYPE = {1: "u1", 3: "u2", 4: "u4", 6: "i1", 8: "i2", 9: "i4", 13: "u4"}
INTEGER_TYPE |= {16: "u8", 17: "i8", 18: "u8"}
# Tags that a page cannot be decoded without; other tags that lie outside the file are dropped.
PAGE_TAGS = frozenset(
    (256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 339, 347)
)
MAX_TAGS = 4096  # real files have fewer than 100
MAX_TEXT_BYTES = 4 << 20  # of a description, what lies beyond is left unread
HEAD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Header:
    """First bytes of a file: ``order`` is ``<`` or ``>``, ``first`` the first page's offset."""

    order: Literal["<", ">"]
    big: bool
    first: int


def is_tiff(head: bytes) -> bool:
    """Tell whether ``head`` (4 bytes or more) starts a TIFF or BigTIFF file."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_header(file: RawFile) -> Header:
    """Read byte order, flavour and first page offset.

    Raises
    ------
    UnreadableFrameError
        The file is too short, or is no TIFF.
    """
    head = file.read_some(0, 16)
    if not is_tiff(head) or len(head) < 8:
        raise unreadable(file.path, "does not start as a TIFF", "II*, MM*, or BigTIFF")
    order: Literal["<", ">"] = "<" if head[:2] == b"II" else ">"
    if b"+" not in head[2:4]:
        return Header(order, False, struct.unpack_from(order + "I", head, 4)[0])
    if len(head) < 16 or struct.unpack_from(order + "HH", head, 4) != (8, 0):
        raise unreadable(file.path, "has a broken BigTIFF header", "8-byte offsets")
    return Header(order, True, struct.unpack_from(order + "Q", head, 8)[0])


@dataclass(frozen=True, slots=True)
class Ifd:
    """One directory of tags; values are read from the file when they are asked for.

    ``entries`` maps a tag code to (type, count, value bytes or offset).
    """

    file: RawFile
    header: Header
    offset: int
    next_offset: int
    size: int
    entries: dict[int, tuple[int, int, bytes | int]] = field(repr=False)

    def data(self, code: int, limit: int | None = None) -> bytes:
        """Return the first ``limit`` value bytes of tag ``code``, empty where it is absent."""
        entry = self.entries.get(code)
        if entry is None:
            return b""
        kind, count, value = entry
        if isinstance(value, bytes):
            return value
        size = count * TYPE_SIZE[kind]
        return self.file.read(value, size if limit is None else min(size, limit))

    def array(self, code: int) -> NDArray[np.uint64] | None:
        """Return the unsigned integers of tag ``code``, None where it is absent."""
        entry = self.entries.get(code)
        if entry is None:
            return None
        kind = INTEGER_TYPE.get(entry[0])
        if kind is None:
            raise unreadable(self.file.path, f"tag {code} holds no integers")
        values = np.frombuffer(self.data(code), self.header.order + kind)
        if not values.size or (kind[0] == "i" and values.min() < 0):
            raise unreadable(self.file.path, f"tag {code} is empty or negative")
        return values.astype(np.uint64)

    def integer(self, code: int, default: int) -> int:
        """Return the first integer of tag ``code``."""
        entry = self.entries.get(code)
        if entry is None:
            return default
        if entry[1] == 1 and entry[0] in (3, 4) and isinstance(entry[2], bytes):
            kind = "H" if entry[0] == 3 else "I"  # nearly every tag, without numpy's overhead
            return int(struct.unpack(self.header.order + kind, entry[2])[0])
        values = self.array(code)
        return default if values is None else int(values[0])

    def text(self, code: int) -> str:
        """Return tag ``code`` as text up to its first NUL, empty where absent or no text."""
        entry = self.entries.get(code)
        if entry is None or entry[0] not in (1, 2, 7):
            return ""
        return self.data(code, MAX_TEXT_BYTES).split(b"\0", 1)[0].decode("utf-8", "replace")

    def ratio(self, code: int) -> float:
        """Return the first value of a rational tag, 0.0 where absent or undefined."""
        entry = self.entries.get(code)
        if entry is None or entry[0] not in (5, 10):
            return 0.0
        kind = "2I" if entry[0] == 5 else "2i"
        above, below = struct.unpack_from(self.header.order + kind, self.data(code))
        return float(above / below) if below else 0.0


def read_ifd(file: RawFile, header: Header, offset: int) -> Ifd:
    """Read the directory at ``offset``.

    Raises
    ------
    UnreadableFrameError
        It does not lie inside the file, or names values that do not.
    """
    order, big = header.order, header.big
    count_format, count_size, entry_size, inline = ("Q", 8, 20, 8) if big else ("H", 2, 12, 4)
    if offset < 8 or offset + count_size > file.size:
        raise unreadable(
            file.path,
            f"names a page at {offset}, the file has {file.size} bytes",
            "",
            "copy it again",
        )
    window = file.read_some(offset, HEAD_BYTES)
    count = struct.unpack_from(order + count_format, window)[0]
    if not 0 < count <= MAX_TAGS:
        raise unreadable(file.path, f"the page at {offset} has {count} tags", f"1 to {MAX_TAGS}")
    size = count_size + count * entry_size
    if size + inline > len(window):
        window = file.read(offset, size) + file.read_some(offset + size, inline)
    entries: dict[int, tuple[int, int, bytes | int]] = {}
    unpack = struct.Struct(order + ("HHQ" if big else "HHI")).unpack_from
    pointer = struct.Struct(order + ("Q" if big else "I")).unpack_from
    head_size = entry_size - inline
    for at in range(count_size, size, entry_size):
        code, kind, values = unpack(window, at)
        width = TYPE_SIZE.get(kind, 0) * values
        if not width or code in entries:
            continue  # unknown types are skipped, as TIFF 6.0 asks of readers
        at += head_size  # noqa: PLW2901
        if width <= inline:
            entries[code] = (kind, values, window[at : at + width])
            continue
        where = pointer(window, at)[0]
        if where + width <= file.size:
            entries[code] = (kind, values, where)
        elif code in PAGE_TAGS:
            raise unreadable(
                file.path, f"tag {code} lies outside the file ({where} + {width} of {file.size})"
            )
    # A file may end right after its last directory, without the closing zeros.
    tail = window[size : size + inline]
    following = pointer(tail)[0] if len(tail) == inline else 0
    return Ifd(file, header, offset, following, size + inline, entries)


def page_offsets(file: RawFile, header: Header) -> tuple[list[int], bool]:
    """Follow the chain of directories and return the offsets of its frames.

    Reduced-resolution copies and transparency masks (NewSubfileType bits 0
    and 2) are no frames. A chain that comes back to a page ends there.

    Returns
    -------
    offsets
        Of the frames' directories, in file order.
    broken
        True where the chain leaves the file or a directory cannot be read:
        the frames before it are good, what would follow is lost.
    """
    frames: list[int] = []
    copies: list[int] = []
    seen: set[int] = set()
    offset, spent = header.first, 0
    while offset and offset not in seen:
        seen.add(offset)
        try:
            ifd = read_ifd(file, header, offset)
            reduced = ifd.integer(254, 0) & 0b101 or ifd.integer(255, 1) == 2
        except UnreadableFrameError:
            if not frames:
                raise
            return frames, True
        (copies if reduced else frames).append(offset)
        spent += ifd.size
        if spent > file.size:  # directories that overlap could make the chain endless
            return frames or copies, True
        offset = ifd.next_offset
    return frames or copies, False
