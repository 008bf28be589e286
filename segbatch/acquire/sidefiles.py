"""Files beside the images that tell where each stands, read as they grow.

A run of 100,000 frames would take hours if its index was read again for each
of them: what was parsed is kept, and only what was appended is read. A run of
many positions has such a file in each of their folders and visits them in
turn, so the bound of what is kept is one of memory, not of a few files.
"""

from __future__ import annotations

import json
import re
import struct
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from segbatch.acquire.raw import RawFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_SIDE_FILE = 1 << 30  # bytes of an index or metadata.txt; about ten million entries

_BLOCK = 1 << 16
_HEAD_BYTES, _TAIL_BYTES = 4096, 256  # by which a file that was rewritten is known
_LONGEST_KEY = 4096
_LONGEST_ENTRY = 1 << 24
# Of all side files that are kept: about 300 MB at 180 to 300 bytes each. The largest runs in
# use, a plate of 384 positions with 1000 images each, need 384,000.
_MOST_ENTRIES = 1 << 20
_ENTRIES_OF_AN_EMPTY_FILE = 32  # what a file costs besides, in the same measure
_KEY = re.compile(rb'"(?:(Metadata|Coords)-([^"\\\n]+)|FrameKey-(\d+)-\d+-(\d+))"\s*:')


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


class SideFile(ABC):
    """What was parsed of a file beside the images, whose writer only appends.

    ``at`` is the offset up to which it was parsed. A file that was replaced or
    rewritten is parsed from its start again.
    """

    def __init__(self, order: str) -> None:
        self.order = order
        self.lock = threading.Lock()
        self.at = self.size = self._mtime_ns = 0
        self.weighed = 0  # what it was last counted as, where it is kept
        self._identity = (0, 0)
        self._head = self._tail = b""

    @property
    @abstractmethod
    def entry_count(self) -> int:
        """Entries that are held in memory."""

    def update(self, file: RawFile) -> None:
        """Parse what was appended since the last call."""
        stat = file.opened
        identity = (stat.st_dev, stat.st_ino)
        if not self.at or identity != self._identity or not self._goes_on(file):
            self._start_over(file)
        else:
            before = self.at
            self._parse(file)
            rewritten = (self.at, file.size) == (before, self.size)
            if rewritten and stat.st_mtime_ns != self._mtime_ns:
                self._start_over(file)
        self._identity, self.size, self._mtime_ns = identity, file.size, stat.st_mtime_ns
        self._head = file.read_some(0, min(self.at, _HEAD_BYTES))
        tail_at = max(0, self.at - _TAIL_BYTES)
        self._tail = file.read_some(tail_at, self.at - tail_at)

    def _goes_on(self, file: RawFile) -> bool:
        """Tell whether the file still begins as it did, up to where it was parsed."""
        return (
            file.size >= self.at
            and file.read_some(0, len(self._head)) == self._head
            and file.read_some(self.at - len(self._tail), len(self._tail)) == self._tail
        )

    def _start_over(self, file: RawFile) -> None:
        self.at = 0
        self._forget()
        self._parse(file)

    @abstractmethod
    def _forget(self) -> None: ...

    @abstractmethod
    def _parse(self, file: RawFile) -> None: ...


class IndexFile(SideFile):
    """``NDTiff.index``: the entries of each stack, by the stack's name."""

    entries: dict[bytes, list[IndexEntry]]
    newest: bytes
    room_follows: bool
    _count = 0

    @property
    def entry_count(self) -> int:
        """Entries that are held in memory."""
        return self._count

    def _forget(self) -> None:
        self.entries, self.newest, self.room_follows, self._count = {}, b"", False, 0

    def _parse(self, file: RawFile) -> None:
        wanted = _BLOCK
        while self.at < MAX_SIDE_FILE:
            data = file.read_some(self.at, wanted)
            used, self.room_follows = self._take(data)
            self.at += used
            if self.room_follows or (not used and len(data) < wanted):
                return
            wanted = _BLOCK if used else 2 * wanted

    def _take(self, data: bytes) -> tuple[int, bool]:
        """Parse the whole entries of ``data``; return their bytes, and whether room follows."""
        length = struct.Struct(self.order + "I").unpack_from
        numbers = struct.Struct(self.order + "8I").unpack_from
        at = 0
        while at + 8 <= len(data):
            axes_bytes = length(data, at)[0]
            if not axes_bytes:
                return at, True
            names_at = at + 4 + axes_bytes
            if names_at + 4 > len(data):
                break
            numbers_at = names_at + 4 + length(data, names_at)[0]
            if numbers_at + 32 > len(data):
                break  # the entry is only half written
            name = data[names_at + 4 : numbers_at]
            offset, width, height, kind, packed, meta, meta_bytes, _ = numbers(data, numbers_at)
            following = data[numbers_at + 32 : numbers_at + 36]
            if following == bytes(4) and not (name and offset and width and height and meta_bytes):
                return at, True  # half written into preallocated room
            entry = IndexEntry(
                data[at + 4 : names_at], offset, width, height, kind, packed, meta, meta_bytes
            )
            self.entries.setdefault(name, []).append(entry)
            self._count += 1
            self.newest = name
            at = numbers_at + 32
        return at, False


class MetadataFile(SideFile):
    """``metadata.txt`` of separate files: where the entry of each file starts.

    ``only_placed`` are files of which it says the place along the axes, and
    nothing else: early builds of version 2 wrote no more.
    """

    is_micro_manager: bool
    only_placed: set[str]

    def __init__(self, order: str) -> None:
        super().__init__(order)
        self._forget()

    @property
    def entry_count(self) -> int:
        """Entries that are held in memory."""
        return len(self._starts) + len(self.only_placed) + len(self._frames)

    def _forget(self) -> None:
        self.is_micro_manager = False
        self.only_placed = set()
        self._starts: dict[str, int] = {}
        self._frames: dict[tuple[int, int], list[int]] = {}

    def _parse(self, file: RawFile) -> None:
        while self.at < MAX_SIDE_FILE:
            data = file.read_some(self.at, 16 * _BLOCK)
            if not self.at:
                self.is_micro_manager = b'"Summary"' in data or b'"FrameKey-' in data
            for found in _KEY.finditer(data):
                self._note(found, self.at + found.start())
            used = max(0, len(data) - _LONGEST_KEY)  # a key may be cut in two here
            self.at += used
            if len(data) < 16 * _BLOCK:
                return

    def _note(self, found: re.Match[bytes], start: int) -> None:
        kind, name, time, place = found.groups()
        if kind is None:
            starts = self._frames.setdefault((int(time), int(place)), [])
            if start not in starts[-1:]:
                starts.append(start)
            return
        # Version 2 names the position's folder or not, by the year of its build.
        text = name.decode("utf-8", "replace").rpartition("/")[2]
        if kind == b"Metadata":
            self._starts[text] = start
            self.only_placed.discard(text)
        elif text not in self._starts:
            self.only_placed.add(text)

    def entry(self, file: RawFile, path: Path) -> dict[str, Any]:
        """Return the entry of one file, empty where there is none or it is not whole."""
        start = self._starts.get(path.name)
        if start is not None:
            return _object_at(file, start)
        # Version 1.4 counts time, channel and slice; the channel is not in the file's name.
        named = re.fullmatch(r"img_(\d{9})_.*_(\d{3})\.tif", path.name)
        for start in self._frames.get((int(named[1]), int(named[2])), ()) if named else ():
            value = _object_at(file, start)
            if value.get("FileName") == path.name:
                return value
        return {}


def _object_at(file: RawFile, start: int) -> dict[str, Any]:
    """Return the first JSON object behind ``start``, empty where it is not whole."""
    wanted = _BLOCK
    while True:
        data = file.read_some(start, wanted)
        try:
            text = data.decode("utf-8", "replace")
            value, _ = json.JSONDecoder().raw_decode(text, text.index("{"))
            return value if isinstance(value, dict) else {}
        except (ValueError, RecursionError):
            if len(data) < wanted or wanted > _LONGEST_ENTRY:
                return {}
        wanted *= 8


_Kind = TypeVar("_Kind", IndexFile, MetadataFile)


class _Shelf:
    """The side files that were used last, as many as the bound of their entries allows."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._sides: OrderedDict[tuple[Path, str], SideFile] = OrderedDict()
        self._weight = 0

    def take(self, path: Path, kind: type[_Kind], order: str) -> _Kind:
        """Return what is known of a file, as the one that was used last."""
        with self._guard:
            side = self._sides.pop((path, order), None)
            if not isinstance(side, kind):
                self._weight -= side.weighed if side is not None else 0
                side = kind(order)
            self._sides[path, order] = side
            return side

    def weigh(self, path: Path, side: SideFile) -> None:
        """Take note of how much a file holds now; drop others where it is too much in all."""
        with self._guard:
            if self._sides.get((path, side.order)) is not side:
                return  # dropped while it was in use
            weight = side.entry_count + _ENTRIES_OF_AN_EMPTY_FILE
            self._weight += weight - side.weighed
            side.weighed = weight
            while self._weight > _MOST_ENTRIES and len(self._sides) > 1:
                _, dropped = self._sides.popitem(last=False)
                self._weight -= dropped.weighed

    def drop_below(self, folder: Path) -> None:
        """Drop all files below a folder."""
        with self._guard:
            for path, order in [key for key in self._sides if key[0].is_relative_to(folder)]:
                self._weight -= self._sides.pop((path, order)).weighed

    def __len__(self) -> int:
        return len(self._sides)


_shelf = _Shelf()


@contextmanager
def side_file(path: Path, kind: type[_Kind], order: str = "") -> Iterator[tuple[_Kind, RawFile]]:
    """Open a side file and bring what is known of it up to date; what was used last is kept."""
    file = RawFile(path)
    try:
        side = _shelf.take(path, kind, order)
        with side.lock:
            side.update(file)
            _shelf.weigh(path, side)
            yield side, file
    finally:
        file.close()


def forget_side_files(folder: Path) -> None:
    """Forget what was read of side files below ``folder``, whose run is over."""
    _shelf.drop_below(folder)
