"""The writers of Micro-Manager and NDTiff, byte for byte and in their order, one step at a time.

Sources: MultipageTiffWriter.java of micro-manager/micro-manager, NDTiffWriter.java
and IndexWriter.java of micro-manager/NDStorage, StorageSinglePlaneTiffSeries.java.
"""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tifffile
from numpy.typing import NDArray

GIB = 1 << 30
SHAPE = (256, 512)
SHORT, LONG, RATIONAL, ASCII, BYTE = 3, 4, 5, 2, 1


def numbered(number: int, shape: tuple[int, int] = SHAPE) -> NDArray[np.uint16]:
    """Return a frame in which every pixel says which frame it is of; none of them is 0."""
    return np.full(shape, number + 1, np.uint16)


def is_numbered(pixels: NDArray[np.generic], number: int) -> bool:
    """Tell whether a frame is the whole frame of that number."""
    return bool((pixels == number + 1).all())


def write(path: Path, number: int = 0, software: str = "MicroManager") -> Path:
    """Write a numbered frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, numbered(number), software=software)
    return path


def content(number: int = 0, **options: object) -> bytes:
    """Return the bytes of a TIFF with a numbered frame."""
    file = io.BytesIO()
    tifffile.imwrite(file, numbered(number), **options)
    return file.getvalue()


def _tag(code: int, kind: int, count: int, value: int) -> bytes:
    packed = (
        struct.pack("<HH", value, 0) if (kind, count) == (SHORT, 1) else struct.pack("<I", value)
    )
    return struct.pack("<HHI", code, kind, count) + packed


class ImageStackWriter:
    """``*_MMStack_*.ome.tif``: preallocated; a frame's map entry is written before the frame."""

    def __init__(self, path: Path, frames: int, shape: tuple[int, int] = SHAPE) -> None:
        self.path = path
        self._shape = shape
        self._bytes = 2 * shape[0] * shape[1]
        summary = json.dumps({"Prefix": "run", "Frames": frames}).encode()
        capacity = 4 * GIB // self._bytes
        map_at = 40 + len(summary)
        self._entry_at = self._first_entry = map_at + 8
        self._at = map_at + 8 + 20 * capacity
        self._file: BinaryIO = path.open("w+b", buffering=0)
        room = len(summary) + 2_000_000 + frames * (self._bytes + 2000)
        self._file.truncate(max(room, self._at))
        head = struct.pack("<2sHI", b"II", 42, self._at)
        head += struct.pack("<2I", 54773648, map_at) + bytes(16)
        head += struct.pack("<2I", 2355492, len(summary))
        self._file.write(head + summary + struct.pack("<2I", 3453623, capacity))
        self.frames = 0
        self._link = 0
        self._description_at = 0

    def put_entry(self) -> None:
        """Write the next frame's entry of the index map."""
        self._write(self._entry_at, struct.pack("<5I", 0, 0, self.frames, 0, self._at))
        self._entry_at += 20

    def put_frame(self, rows: int | None = None) -> None:
        """Write the next frame's directory, its pixels (or the first rows) and its metadata."""
        number, first = self.frames, self.frames == 0
        meta = json.dumps({"BitDepth": 10, "FrameIndex": number}).encode() + b"\0"
        entries = 17 if first else 13
        pixels_at = self._at + 2 + 12 * entries + 4
        ratio_at = pixels_at + self._bytes
        meta_at = ratio_at + 16
        tags = _tag(256, LONG, 1, self._shape[1]) + _tag(257, LONG, 1, self._shape[0])
        tags += _tag(258, SHORT, 1, 16) + _tag(259, SHORT, 1, 1) + _tag(262, SHORT, 1, 1)
        if first:
            self._description_at = self._at + 2 + len(tags)
            tags += _tag(270, ASCII, 0, 0) + _tag(270, ASCII, 0, 0)
        tags += _tag(273, LONG, 1, pixels_at) + _tag(277, SHORT, 1, 1)
        tags += _tag(278, SHORT, 1, self._shape[0]) + _tag(279, LONG, 1, self._bytes)
        tags += _tag(282, RATIONAL, 1, ratio_at) + _tag(283, RATIONAL, 1, ratio_at + 8)
        tags += _tag(296, SHORT, 1, 3)
        if first:
            tags += _tag(50838, LONG, 0, 0) + _tag(50839, BYTE, 0, 0)
        tags += _tag(51123, ASCII, len(meta), meta_at)
        head = struct.pack("<H", entries) + tags + struct.pack("<I", meta_at + len(meta))
        self._link = self._at + 2 + 12 * entries
        pixels = numbered(number, self._shape).tobytes()
        if rows is not None:
            self._write(self._at, head + pixels[: rows * 2 * self._shape[1]])
            return
        self._write(self._at, head + pixels + struct.pack("<4I", 1, 1, 1, 1) + meta)
        self._at = meta_at + len(meta)
        self.frames += 1

    def put_early_entry(self) -> None:
        """Write the entry of the frame after the next, before its time."""
        entry = struct.pack("<5I", 0, 0, self.frames + 1, 0, self._at + self._bytes + 4096)
        self._write(self._entry_at, entry)

    def put(self) -> None:
        """Write a whole frame, as the writer's thread does."""
        self.put_entry()
        self.put_frame()

    def finish(self) -> None:
        """End the chain of pages and write the true count; then all that closing adds."""
        self._write(self._link, bytes(4))
        self._write(self._first_entry - 4, struct.pack("<I", self.frames))
        xml = f'<OME><Image><Pixels SizeT="{self.frames}"/></Image></OME>\0'.encode()
        self._write(self._description_at + 4, struct.pack("<2I", len(xml), self._at))
        self._write(self._at, xml)
        self._at += len(xml)
        for header, block in ((483765892, 347834724), (99384722, 84720485)):
            text = b"{}"
            place = 16 if header == 483765892 else 24
            self._write(place, struct.pack("<2I", header, self._at))
            self._write(self._at, struct.pack("<2I", block, len(text)) + text)
            self._at += 8 + len(text)
        self._file.truncate(self._at + 8)
        self._file.close()

    def abandon(self) -> None:
        """End as a crash does."""
        self._file.close()

    def _write(self, at: int, data: bytes) -> None:
        self._file.seek(at)
        self._file.write(data)


class NdtiffWriter:
    """NDTiff as Java writes it: both files preallocated, a frame's entry after the frame."""

    def __init__(self, folder: Path, name: str = "run_NDTiffStack.tif") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / name
        self._name = name.encode()
        self._index: BinaryIO = (folder / "NDTiff.index").open("w+b", buffering=0)
        self._index.truncate(25 << 20)
        self._file: BinaryIO = self.path.open("w+b", buffering=0)
        self._file.truncate(4 * GIB)
        summary = b"{}"
        head = struct.pack("<2sHI", b"II", 42, 28 + len(summary))
        self._file.write(head + struct.pack("<5I", 483729, 3, 3, 2355492, len(summary)) + summary)
        self.frames = 0
        self._link = 4

    def put_frame(self) -> bytes:
        """Write the next frame, and return the entry that is to follow in the index."""
        at = self._file.tell() + self._file.tell() % 2
        meta = json.dumps({"BitDepth": 10, "FrameIndex": self.frames}).encode()
        pixels = numbered(self.frames)
        ratio_at = at + 2 + 12 * 13 + 4
        pixels_at = ratio_at + 16
        meta_at = pixels_at + pixels.nbytes
        following = meta_at + len(meta)
        tags = _tag(256, LONG, 1, SHAPE[1]) + _tag(257, LONG, 1, SHAPE[0])
        tags += _tag(258, SHORT, 1, 16) + _tag(259, SHORT, 1, 1) + _tag(262, SHORT, 1, 1)
        tags += _tag(273, LONG, 1, pixels_at) + _tag(277, SHORT, 1, 1)
        tags += _tag(278, SHORT, 1, SHAPE[0]) + _tag(279, LONG, 1, pixels.nbytes)
        tags += _tag(282, RATIONAL, 1, ratio_at) + _tag(283, RATIONAL, 1, ratio_at + 8)
        tags += _tag(296, SHORT, 1, 3) + _tag(51123, ASCII, len(meta), meta_at)
        self._link = at + 2 + 12 * 13
        body = struct.pack("<H", 13) + tags + struct.pack("<I", following + following % 2)
        self._file.seek(at)
        self._file.write(body + struct.pack("<4I", 1, 1, 1, 1) + pixels.tobytes() + meta)
        axes = json.dumps({"time": self.frames}).encode()
        self.frames += 1
        numbers = (pixels_at, SHAPE[1], SHAPE[0], 1, 0, meta_at, len(meta), 0)
        entry = struct.pack("<I", len(axes)) + axes + struct.pack("<I", len(self._name))
        return entry + self._name + struct.pack("<8I", *numbers)

    def put_entry(self, entry: bytes) -> None:
        """Write an entry, or a part of one, into the index."""
        self._index.write(entry)

    def put(self) -> None:
        """Write a whole frame and its entry."""
        self.put_entry(self.put_frame())

    def finish(self) -> None:
        """End the chain of pages, and cut both files to what was written."""
        end = self._file.tell()
        self._file.seek(self._link)
        self._file.write(bytes(4))
        self._file.truncate(end)
        self._file.close()
        self._index.truncate(self._index.tell())
        self._index.close()


class SeparateFilesWriter:
    """One file a frame, each followed by its entry in ``metadata.txt``."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._text = (folder / "metadata.txt").open("w")
        self._text.write('{\n"Summary": {"Prefix": "run"}')
        self._text.flush()
        self.frames = 0

    def put_image(self) -> Path:
        """Save the next frame as ImageJ does, under its final name."""
        path = self.folder / f"img_channel000_position000_time{self.frames:09d}_z000.tif"
        tifffile.imwrite(path, numbered(self.frames), metadata=None)
        return path

    def put_entry(self) -> None:
        """Write what Micro-Manager says of the frame that was saved last."""
        name = f"img_channel000_position000_time{self.frames:09d}_z000.tif"
        meta = json.dumps({"BitDepth": 10, "Exposure-ms": 1 + self.frames}, indent=2)
        self._text.write(f',\n"Coords-Default/{name}": {{"time": {self.frames}}}')
        self._text.write(f',\n"Metadata-Default/{name}": {meta}')
        self._text.flush()
        self.frames += 1

    def finish(self) -> None:
        """End the JSON."""
        self._text.write("\n}\n")
        self._text.close()
