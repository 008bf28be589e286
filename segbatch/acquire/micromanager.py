"""Micro-Manager's data sets: which frames stand where, and which are complete.

NDTiff: ``NDTiff.index`` beside the stack (specification 3.x, README of
micro-manager/NDStorage). Image stack files: an index map inside the file.
Separate files: ``metadata.txt`` beside them. All of them are read while
their writer is still at work.
"""

from __future__ import annotations

import functools
import json
import os
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segbatch.acquire.metadata import AXIS
from segbatch.acquire.raw import RawFile, unreadable
from segbatch.errors import FrameError

if TYPE_CHECKING:
    from pathlib import Path

    from segbatch.acquire.tiff import Header

INDEX_NAME = "NDTiff.index"
MAX_SIDE_FILE = 1 << 30  # bytes of an index or metadata.txt; about ten million entries
NDTIFF_MAGIC = 483729
INDEX_MAP_OFFSET, INDEX_MAP = 54773648, 3453623
DISPLAY_OFFSET, COMMENTS_OFFSET = 483765892, 99384722
MAP_AXES = ("c", "z", "t", "p")

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
class IndexEntry:
    """One image of an NDTiff data set: offsets in bytes, size in pixels."""

    axes: bytes
    offset: int
    width: int
    height: int
    pixel_type: int
    compression: int
    metadata_offset: int
    metadata_bytes: int


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
    beside = path.parent / INDEX_NAME
    if not beside.is_file():
        return None
    index = RawFile(beside)
    try:
        data = index.read_some(0, MAX_SIDE_FILE)
    finally:
        index.close()
    name = os.fsencode(path.name)
    length = struct.Struct(order + "I").unpack_from
    numbers = struct.Struct(order + "8I").unpack_from
    entries: list[IndexEntry] = []
    at = 0
    while at + 8 <= len(data):
        axes_bytes = length(data, at)[0]
        names_at = at + 4 + axes_bytes
        if not axes_bytes or names_at + 4 > len(data):
            break
        name_bytes = length(data, names_at)[0]
        numbers_at = names_at + 4 + name_bytes
        if numbers_at + 32 > len(data):
            break  # the entry is only half written
        if data[names_at + 4 : numbers_at] == name:
            offset, width, height, kind, packed, meta, meta_bytes, _ = numbers(data, numbers_at)
            entries.append(
                IndexEntry(
                    data[at + 4 : names_at], offset, width, height, kind, packed, meta, meta_bytes
                )
            )
        at = numbers_at + 32
    return entries


def is_ndtiff(file: RawFile, order: str) -> bool:
    """Tell whether the file carries NDTiff's number after the TIFF header."""
    return file.read_some(8, 4) == struct.pack(order + "I", NDTIFF_MAGIC)


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
    data = file.read_some(words[1] + 8, 20 * capacity)
    frames = []
    for entry in struct.iter_unpack(order + "5I", data[: len(data) // 20 * 20]):
        if not entry[4]:
            break
        if entry[4] >= file.size:
            raise unreadable(file.path, f"its index map names a page at {entry[4]}")
        frames.append((entry[4], dict(zip(MAP_AXES, entry[:4], strict=True))))
    closed = len(frames) == capacity or any(
        mark == wanted and offset
        for mark, offset, wanted in (
            (words[2], words[3], DISPLAY_OFFSET),
            (words[4], words[5], COMMENTS_OFFSET),
        )
    )
    return frames if closed else frames[:-1]


def metadata_txt(path: Path) -> dict[str, Any]:
    """Return what ``metadata.txt`` beside ``path`` says of that file, empty where nothing.

    Until a run ends (and after a crash) the file is no valid JSON, so only
    the entry that is wanted is parsed.
    """
    beside = path.parent / "metadata.txt"
    try:
        stat = beside.stat()
    except OSError:
        return {}
    if stat.st_size > MAX_SIDE_FILE:
        return {}
    text = _side_text(beside, stat.st_size, stat.st_mtime_ns)
    # Version 2 names the position's folder or not, by the year of its build.
    inside = f"Metadata-{path.parent.name}/{path.name}"
    for key in (f"Metadata-{path.name}", inside):
        found = text.find(f'"{key}":')
        if found >= 0:
            return _object_at(text, found)
    # Version 1.4 counts time, channel and slice; the channel is not in the file's name.
    named = re.fullmatch(r"img_(\d{9})_.*_(\d{3})\.tif", path.name)
    if named:
        key = rf'"FrameKey-{int(named[1])}-\d+-{int(named[2])}":'
        for match in re.finditer(key, text):
            value = _object_at(text, match.start())
            if value.get("FileName") == path.name:
                return value
    return {}


def _object_at(text: str, start: int) -> dict[str, Any]:
    """Return the first JSON object behind ``start``, empty where it is not whole."""
    try:
        value, _ = json.JSONDecoder().raw_decode(text, text.index("{", start))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


@functools.lru_cache(maxsize=2)
def _side_text(path: Path, size: int, mtime_ns: int) -> str:
    """Text of a side file, kept until it changes: a folder's frames share it."""
    try:
        file = RawFile(path)
    except FrameError:
        return ""
    try:
        return file.read_some(0, size).decode("utf-8", "replace")
    finally:
        file.close()


def position_in_name(name: str) -> dict[str, int]:
    """Return the indices in ``img_channel000_position000_time000000000_z000.tif``."""
    if not name.startswith("img_"):
        return {}
    pairs = re.findall(r"_([A-Za-z]+)(\d{3,9})(?=[_.])", name)
    return {AXIS.get(axis, axis): int(index) for axis, index in pairs}
