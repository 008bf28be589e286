"""Micro-Manager's data sets: which frames stand where, and which are complete.

NDTiff: ``NDTiff.index`` beside the stack (specification 3.x, README of
micro-manager/NDStorage). Image stack files: an index map inside the file.
Separate files: ``metadata.txt`` beside them. All of them are read while
their writer is still at work.
"""

from __future__ import annotations

import os
import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segbatch.acquire.metadata import AXIS
from segbatch.acquire.raw import RawFile, unreadable
from segbatch.acquire.sidefiles import IndexEntry, IndexFile, MetadataFile, side_file
from segbatch.errors import FrameError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from segbatch.acquire.tiff import Header

__all__ = [
    "Index",
    "IndexEntry",
    "StackMap",
    "find_stack_map",
    "is_ndtiff",
    "metadata_txt",
    "ndtiff_entries",
    "ndtiff_index",
    "position_in_name",
    "saved_by_writer",
    "stack_map",
]

INDEX_NAME = "NDTiff.index"
METADATA_NAME = "metadata.txt"
NDTIFF_MAGIC = 483729
INDEX_MAP_OFFSET, INDEX_MAP = 54773648, 3453623
DISPLAY_OFFSET, COMMENTS_OFFSET = 483765892, 99384722
MAP_AXES = ("c", "z", "t", "p")

_BLOCK = 1 << 16

# Bytes a sample, samples, and bits of the converter of each pixel type; an
# index that says 16 bits says nothing, Micro-Manager writes it for any depth.
PIXEL_TYPES: dict[int, tuple[int, int, int | None]] = {
    0: (1, 1, None),
    1: (2, 1, None),
    2: (1, 3, None),
    3: (2, 1, 10),
    4: (2, 1, 12),
    5: (2, 1, 14),
    6: (2, 1, 11),
}


@dataclass(frozen=True, slots=True)
class Index:
    """What ``NDTiff.index`` says of one of its stacks, as far as it is written.

    Attributes
    ----------
    entries
        Those of the stack, in the order the images were saved.
    room_follows
        The index goes on with zeros: its writer preallocated it and is at work.
    is_whole
        The index ends with its last entry.
    is_last
        The newest entry of all names this stack.
    """

    entries: list[IndexEntry]
    room_follows: bool
    is_whole: bool
    is_last: bool


def ndtiff_entries(path: Path, order: str) -> list[IndexEntry] | None:
    """Return the entries that name ``path``, in the order the images were saved.

    A writer puts an image's pixels first and its entry second, so every entry
    stands for a complete image. The index may be preallocated: it ends at the
    first entry whose axes have no length.

    Parameters
    ----------
    path
        A ``.tif`` file of the data set.
    order
        Its byte order, ``<`` or ``>``; the index is written on the same machine.

    Returns
    -------
    None where no index stands beside the file.
    """
    index = ndtiff_index(path, order)
    return None if index is None else index.entries


def ndtiff_index(path: Path, order: str) -> Index | None:
    """Return what the index says of ``path``, None where no index stands beside it.

    Parameters are those of ``ndtiff_entries``. Only what was appended since the
    last call is read.
    """
    beside = path.parent / INDEX_NAME
    if not beside.is_file():
        return None
    with side_file(beside, IndexFile, order) as (index, _):
        name = os.fsencode(path.name)
        return Index(
            list(index.entries.get(name, ())),
            index.room_follows,
            index.at == index.size,
            index.newest == name,
        )


def is_ndtiff(file: RawFile, order: str) -> bool:
    """Tell whether the file carries NDTiff's number after the TIFF header."""
    return file.read_some(8, 4) == struct.pack(order + "I", NDTIFF_MAGIC)


@dataclass(frozen=True, slots=True)
class StackMap:
    """Where the index map of an image stack file stands, and whether the file is closed.

    ``first`` is the offset of its first entry, ``capacity`` the most entries it can hold.
    """

    order: str
    first: int
    capacity: int
    marked_closed: bool

    def entries(self, file: RawFile, start: int = 0) -> Iterator[tuple[int, ...]]:
        """Yield (channel, slice, frame, position, directory offset) from entry ``start`` on."""
        entry = struct.Struct(self.order + "5I")
        while start < self.capacity:
            count = min(self.capacity - start, _BLOCK // 20)
            data = file.read_some(self.first + 20 * start, 20 * count)
            for values in entry.iter_unpack(data[: len(data) // 20 * 20]):
                if not values[4]:
                    return
                yield values
            if len(data) < 20 * count:
                return
            start += count


def find_stack_map(file: RawFile, header: Header) -> StackMap | None:
    """Find the index map of an image stack file, None where it has none."""
    order = header.order
    head = file.read_some(0, 32)
    if header.big or len(head) < 32:
        return None
    words = struct.unpack_from(order + "6I", head, 8)
    if words[0] != INDEX_MAP_OFFSET or not words[1]:
        return None
    mark, capacity = struct.unpack(order + "2I", file.read(words[1], 8))
    if mark != INDEX_MAP:
        return None
    closed = any(
        mark == wanted and offset
        for mark, offset, wanted in (
            (words[2], words[3], DISPLAY_OFFSET),
            (words[4], words[5], COMMENTS_OFFSET),
        )
    )
    return StackMap(order, words[1] + 8, capacity, closed)


def stack_map(file: RawFile, header: Header) -> list[tuple[int, dict[str, int]]] | None:
    """Return (directory offset, position) of each complete frame of an image stack file.

    The map's entry is written before its pixels, so while the file is open
    the last frame is not proven and is left out. A closed file carries the
    true count in place of the capacity, or the offsets of display settings
    and comments.

    Returns
    -------
    None where the file has no index map.

    Raises
    ------
    UnreadableFrameError
        The map names places outside the file.
    """
    found = find_stack_map(file, header)
    if found is None:
        return None
    frames = []
    for entry in found.entries(file):
        if entry[4] >= file.size:
            raise unreadable(file.path, f"its index map names a page at {entry[4]}")
        frames.append((entry[4], dict(zip(MAP_AXES, entry[:4], strict=True))))
    closed = found.marked_closed or len(frames) == found.capacity
    return frames if closed else frames[:-1]


def metadata_txt(path: Path) -> dict[str, Any]:
    """Return what ``metadata.txt`` beside ``path`` says of that file, empty where nothing.

    Until a run ends (and after a crash) the file is no valid JSON, so only
    the entry that is wanted is parsed, and only what was appended is searched.
    """
    with suppress(FrameError), side_file(path.parent / METADATA_NAME, MetadataFile) as side:
        return side[0].entry(side[1], path)
    return {}


def saved_by_writer(path: Path) -> bool | None:
    """Tell whether the writer of separate files has said that it finished ``path``.

    Returns
    -------
    True where its entry of ``metadata.txt`` is whole, which is written when the
    image has been saved; False where Micro-Manager's file has none yet; None
    where there is no such file, or a version wrote it that leaves no entries.
    """
    with suppress(FrameError), side_file(path.parent / METADATA_NAME, MetadataFile) as side:
        text, file = side
        if not text.is_micro_manager:
            return None
        if text.entry(file, path):
            return True
        return None if path.name in text.only_placed else False
    return None


def position_in_name(name: str) -> dict[str, int]:
    """Return the indices in ``img_channel000_position000_time000000000_z000.tif``."""
    if not name.startswith("img_"):
        return {}
    pairs = re.findall(r"_([A-Za-z]+)(\d{3,9})(?=[_.])", name)
    return {AXIS.get(axis, axis): int(index) for axis, index in pairs}
