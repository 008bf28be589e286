"""Writers of many kinds, each filling one run the way some program in a lab does."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import tifffile
from ndstorage import NDTiffDataset

from soaking.frames import SHAPE, Pixels, Run

SHORT, LONG, ASCII = 3, 4, 2
GIB = 1 << 30


def write_plain(run: Run) -> None:
    """Let tifffile write each file under its name, with a pause in the middle of some runs."""
    run.folder.mkdir(exist_ok=True)
    pause_at = int(run.rng.integers(run.frames)) if run.pauses_s else -1
    for number in range(run.frames):
        name = f"frame_{number:05d}.tif"
        if number == pause_at:
            time.sleep(run.pauses_s)  # long enough for the run to be taken for over
        tifffile.imwrite(run.folder / name, run.next(name), photometric="minisblack")


def write_and_rename(run: Run) -> None:
    """Write each file under a temporary name, then give it its own."""
    run.folder.mkdir(exist_ok=True)
    for number in range(run.frames):
        name = f"frame_{number:05d}.tif"
        part = run.folder / f"{name}.tmp"
        part.write_bytes(run.next_file(name))
        part.rename(run.folder / name)


def move_folder(run: Run) -> None:
    """Fill a nested folder elsewhere on the disk, then move it in whole."""
    elsewhere = run.root.parent / "elsewhere" / run.name
    (elsewhere / "pos_1" / "deep").mkdir(parents=True)
    for number in range(run.frames):
        name = f"{('', 'pos_1/', 'pos_1/deep/')[number % 3]}frame_{number:05d}.tif"
        (elsewhere / name).write_bytes(run.next_file(name))
    elsewhere.rename(run.folder)


def write_slowly(run: Run) -> None:
    """Stop in the middle of some files for longer than they need to settle."""
    run.folder.mkdir(exist_ok=True)
    for number in range(run.frames):
        name = f"frame_{number:05d}.tif"
        content = run.next_file(name)
        with (run.folder / name).open("wb", buffering=0) as file:
            if number % 40 == 7:
                cut = int(run.rng.integers(4, len(content)))
                file.write(content[:cut])
                time.sleep(float(run.rng.uniform(0.2, 1.0)))
                file.write(content[cut:])
            else:
                file.write(content)


def write_pages(run: Run) -> None:
    """Write TIFFs of up to 200 pages, each in one go, some under a temporary name first."""
    run.folder.mkdir(exist_ok=True)
    left, number = run.frames, 0
    while left:
        count = min(left, int(run.rng.integers(2, 200)))
        name = f"stack_{number:03d}.tif"
        made = io.BytesIO()
        pages = np.stack([run.next(name, page) for page in range(count)])
        tifffile.imwrite(made, pages, photometric="minisblack", metadata=None)
        part = run.folder / (f"{name}.part" if number % 2 else name)
        part.write_bytes(made.getvalue())
        part.rename(run.folder / name)
        left, number = left - count, number + 1


def write_image_stack(run: Run) -> None:
    """Let one Micro-Manager stack grow, frame by frame."""
    run.folder.mkdir(exist_ok=True)
    name = "run_MMStack_Pos0.ome.tif"
    stack = ImageStack(run.folder / name, run.frames)
    for page in range(run.frames):
        stack.put(run.next(name, page))
        _breathe(run)
    stack.finish()


def write_ndtiff(run: Run) -> None:
    """Let an NDTiff data set grow, through the package that pycromanager uses."""
    run.folder.mkdir(exist_ok=True)
    data = NDTiffDataset(str(run.folder), name="set", summary_metadata={}, writable=True)
    inside = Path(data.path).relative_to(run.folder).as_posix()
    name = f"{inside}/set_NDTiffStack.tif" if inside != "." else "set_NDTiffStack.tif"
    for page in range(run.frames):
        data.put_image({"time": page}, run.next(name, page), {"BitDepth": 10, "FrameIndex": page})
        _breathe(run)
    data.current_writer.reader.close()
    data.finish()
    data.close()
    run.others.update(
        path.relative_to(run.folder).as_posix() for path in run.folder.rglob("NDTiff.index")
    )


def write_separately(run: Run) -> None:
    """Save files as Micro-Manager does, each followed by its entry in ``metadata.txt``."""
    run.folder.mkdir(exist_ok=True)
    run.others.add("metadata.txt")
    with (run.folder / "metadata.txt").open("w", encoding="utf-8") as text:
        text.write('{\n"Summary": {"Prefix": "run"}')
        for number in range(run.frames):
            name = f"img_channel000_position000_time{number:09d}_z000.tif"
            (run.folder / name).write_bytes(run.album.tiff(run.next(name)))
            text.write(f',\n"Metadata-Default/{name}": {json.dumps({"BitDepth": 10})}')
            text.flush()
        text.write("\n}\n")


WRITERS: dict[str, Callable[[Run], None]] = {
    "plain": write_plain,
    "renamed": write_and_rename,
    "folder moved in": move_folder,
    "slow": write_slowly,
    "pages": write_pages,
    "image stack": write_image_stack,
    "NDTiff": write_ndtiff,
    "separate files": write_separately,
}


class ImageStack:
    """``*_MMStack_*.ome.tif`` as Micro-Manager writes it.

    Room for all is made at the start, and a frame's entry of the index map is
    written before the frame. Source: MultipageTiffWriter.java of
    micro-manager/micro-manager.
    """

    def __init__(self, path: Path, frames: int) -> None:
        self._bytes = 2 * SHAPE[0] * SHAPE[1]
        summary = json.dumps({"Prefix": "run", "Frames": frames}).encode()
        capacity = 4 * GIB // self._bytes
        self._first_entry = 48 + len(summary)
        self._at = self._first_entry + 20 * capacity
        self._frames = self._link = 0
        self._file = path.open("w+b", buffering=0)
        self._file.truncate(self._at + frames * (self._bytes + 2000))
        head = struct.pack("<2sHI", b"II", 42, self._at)
        head += struct.pack("<2I", 54773648, self._first_entry - 8) + bytes(16)
        head += struct.pack("<2I", 2355492, len(summary))
        self._file.write(head + summary + struct.pack("<2I", 3453623, capacity))

    def put(self, pixels: Pixels) -> None:
        """Write a frame: its entry of the map, its directory, its pixels, its metadata."""
        entry = struct.pack("<5I", 0, 0, self._frames, 0, self._at)
        self._write(self._first_entry + 20 * self._frames, entry)
        meta = json.dumps({"BitDepth": 10, "FrameIndex": self._frames}).encode() + b"\0"
        pixels_at = self._at + 2 + 12 * 10 + 4
        meta_at = pixels_at + self._bytes
        tags = _tag(256, LONG, 1, SHAPE[1]) + _tag(257, LONG, 1, SHAPE[0])
        tags += _tag(258, SHORT, 1, 16) + _tag(259, SHORT, 1, 1) + _tag(262, SHORT, 1, 1)
        tags += _tag(273, LONG, 1, pixels_at) + _tag(277, SHORT, 1, 1)
        tags += _tag(278, SHORT, 1, SHAPE[0]) + _tag(279, LONG, 1, self._bytes)
        tags += _tag(51123, ASCII, len(meta), meta_at)
        self._link = self._at + 2 + len(tags)
        following = struct.pack("<I", meta_at + len(meta))
        content = struct.pack("<H", 10) + tags + following + pixels.astype("<u2").tobytes() + meta
        self._write(self._at, content)
        self._at = meta_at + len(meta)
        self._frames += 1

    def finish(self) -> None:
        """End the chain of pages, write the true count and what closing adds, and cut the rest."""
        self._write(self._link, bytes(4))
        self._write(self._first_entry - 4, struct.pack("<I", self._frames))
        for place, header, block in ((16, 483765892, 347834724), (24, 99384722, 84720485)):
            self._write(place, struct.pack("<2I", header, self._at))
            self._write(self._at, struct.pack("<2I", block, 2) + b"{}")
            self._at += 10
        self._file.truncate(self._at)
        self._file.close()

    def _write(self, at: int, data: bytes) -> None:
        os.pwrite(self._file.fileno(), data, at)


def _tag(code: int, kind: int, count: int, value: int) -> bytes:
    packed = struct.pack("<HH", value, 0) if kind == SHORT else struct.pack("<I", value)
    return struct.pack("<HHI", code, kind, count) + packed


def _breathe(run: Run) -> None:
    """Pause now and then, as an acquisition does between its bursts."""
    if run.rng.random() < 1 / 50:
        time.sleep(float(run.rng.uniform(0.0, 0.5)))


def remove_tree(folder: Path) -> None:
    """Delete a folder, also one in which somebody else is still writing."""
    for _ in range(20):
        with suppress(FileNotFoundError):
            shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.2)
