"""Small files made by hand, byte by byte, for what no writer would write."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segbatch.acquire.source import Source, open_source
from segbatch.frame import Frame

Tags = dict[int, tuple[int, list[int]]]
SHORT, LONG, LONG8 = 3, 4, 16
SIZE = {SHORT: 2, LONG: 4, LONG8: 8}


def opened(path: Path, *, bit_depth: int | None = None, max_file_gib: float = 4.0) -> Source:
    """Open ``path`` as a Zelux user would."""
    return open_source(path, bit_depth=bit_depth, profile="zelux", max_file_gib=max_file_gib)


def frame_of(path: Path, page: int = 0, **options: int | None) -> Frame:
    """Read one frame of ``path``."""
    with opened(path, bit_depth=options.get("bit_depth")) as source:
        return source.read(page)


READ_IN_A_PROCESS = """
import sys
from pathlib import Path
import imagecodecs
imagecodecs.zstd_decode, imagecodecs.zlib_decode
from segbatch.acquire.source import open_source
from segbatch.errors import FrameError

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

before = peak()
try:
    open_source(Path(sys.argv[1]), bit_depth=None, profile="zelux", max_file_gib=1).read(0)
except FrameError:
    pass
print(peak() - before)
"""


def memory_of_reading(path: Path) -> float:
    """Return by how many MiB a process grows at its peak while it reads the first frame."""
    command = [sys.executable, "-c", READ_IN_A_PROCESS, str(path)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(answer.stdout) / 1024


def noise(shape: tuple[int, ...], dtype: str = "uint16", seed: int = 7) -> NDArray[np.generic]:
    """Random counts of up to 10 bits, or of what ``dtype`` holds."""
    high = min(1023, np.iinfo(dtype).max) if np.dtype(dtype).kind in "ui" else 1
    values = np.random.default_rng(seed).random(shape) * high
    return values.astype(dtype)


def directory(tags: Tags, following: int, order: str = "<") -> bytes:
    """Return a classic directory whose values all stand inline."""
    body = b""
    for code, (kind, values) in sorted(tags.items()):
        letter = {SHORT: "H", LONG: "I"}[kind]
        packed = struct.pack(f"{order}{len(values)}{letter}", *values).ljust(4, b"\0")
        body += struct.pack(f"{order}HHI", code, kind, len(values)) + packed
    return struct.pack(f"{order}H", len(tags)) + body + struct.pack(f"{order}I", following)


def page_tags(width: int, height: int, offset: int, count: int, bits: int = 16) -> Tags:
    """Tags of an uncompressed gray page of one strip."""
    return {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [bits]),
        259: (SHORT, [1]),
        262: (SHORT, [1]),
        273: (LONG, [offset]),
        277: (SHORT, [1]),
        278: (LONG, [height]),
        279: (LONG, [count]),
    }


def header(first: int, order: str = "<") -> bytes:
    """Return a classic TIFF header."""
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", first)


def ndtiff(folder: Path, frames: list[NDArray[np.generic]], pixel_type: int = 4) -> Path:
    """Write a finished NDTiff data set: a stack with one directory a frame, and its index."""
    name = "run_NDTiffStack.tif"
    summary = b"{}"
    data = bytearray(8) + struct.pack("<5I", 483729, 3, 3, 2355492, len(summary)) + summary
    index = b""
    link = 4
    for number, pixels in enumerate(frames):
        meta = json.dumps(
            {
                "BitDepth": 12,
                "Exposure": 20,
                "Core-Camera": "TSICam",
                "TSICam-Gain": "6.0",
                "PixelSizeUm": 0.345,
                "Time": f"2024-05-06 10:00:0{number} +0200",
            }
        ).encode()
        axes = json.dumps({"channel": "DAPI", "time": number}).encode()
        height, width = pixels.shape[:2]
        start = len(data)
        struct.pack_into("<I", data, link, start)
        at = start + 2 + 12 * 9 + 4
        data += directory(page_tags(width, height, at, pixels.nbytes, pixels.itemsize * 8), 0)
        link = at - 4
        data += pixels.tobytes() + meta
        index += struct.pack("<I", len(axes)) + axes
        index += struct.pack("<I", len(name)) + name.encode()
        index += struct.pack(
            "<8I", at, width, height, pixel_type, 0, at + pixels.nbytes, len(meta), 0
        )
    data[:4] = b"II*\0"
    (folder / name).write_bytes(data)
    (folder / "NDTiff.index").write_bytes(index)
    return folder / name


def mmstack(
    folder: Path, frames: list[NDArray[np.generic]], *, capacity: int, order: str = "<"
) -> Path:
    """Write an image stack file as it stands while its writer is at work, preallocated.

    With a ``capacity`` of the number of frames it is a closed file.
    """
    data = bytearray(header(0, order)) + bytearray(32)
    struct.pack_into(order + "2I", data, 8, 54773648, 40)
    data += struct.pack(order + "2I", 3453623, capacity) + bytes(20 * capacity)
    link = 4
    for number, pixels in enumerate(frames):
        start = len(data)
        struct.pack_into(order + "I", data, link, start)
        struct.pack_into(order + "5I", data, 48 + 20 * number, 0, 0, number, 0, start)
        meta = json.dumps({"BitDepth": 10, "Exposure-ms": {"PropVal": 5.5}}).encode() + b"\0"
        at = start + 2 + 12 * 10 + 4
        height, width = pixels.shape
        tags = page_tags(width, height, at, pixels.nbytes, pixels.itemsize * 8)
        block = bytearray(directory({**tags, 51123: (LONG, [0])}, 0, order))
        entry = 2 + 12 * 9
        struct.pack_into(order + "HHII", block, entry, 51123, 2, len(meta), at + pixels.nbytes)
        data += block + pixels.astype(pixels.dtype.newbyteorder(order)).tobytes() + meta
        link = at - 4
    path = folder / "run_MMStack_Pos0.ome.tif"
    path.write_bytes(data + bytes(1000))
    return path
