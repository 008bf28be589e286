"""Frames that are all different, and a record of which frame was written where."""

from __future__ import annotations

import io
import itertools
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from segbatch.acquire.simulate import write_run
from segbatch.acquire.simulate.kinds import GOOD_FRACTION
from segbatch.acquire.simulate.run import RUN_FILE
from segbatch.frame import hash_pixels

SHAPE = (96, 128)  # (Y, X)
LARGE_FRAMES = 24  # that the small ones are cut from
BROKEN_BYTES = 200  # of a file that breaks off inside its frame

Pixels = NDArray[np.uint16]


class Album:
    """Small frames cut from simulated ones, each stamped with a number of its own.

    Frames of one run are cut from one simulated run of 1440 x 1080 px, good and
    spoiled ones; the number stands in the first two pixels, in base 1000, so that
    10 bits hold it.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        write_run(folder, LARGE_FRAMES, seed)
        listed = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["frames"]
        self._good: list[Pixels] = []
        self._bad: list[Pixels] = []
        for entry in listed:
            tiles = _cut(tifffile.imread(folder / entry["file"]))
            if entry["kind"] == "good":
                # Cells without a bead would all be rejected as empty.
                self._good += [tile for tile in tiles if tile.max() - np.median(tile) > 150]
            else:
                self._bad += tiles
        self._numbers = itertools.count()
        self._guard = threading.Lock()
        self._head, self._tail = _around(np.zeros(SHAPE, np.uint16))

    def frame(self, rng: np.random.Generator) -> Pixels:
        """Return a frame that no other is equal to: (Y, X), uint16, 10 bits."""
        of = self._good if rng.random() < GOOD_FRACTION else self._bad
        pixels = of[int(rng.integers(len(of)))].copy()
        with self._guard:
            number = next(self._numbers)
        pixels[0, :2] = divmod(number, 1000)
        return pixels

    def tiff(self, pixels: Pixels) -> bytes:
        """Return a TIFF file that holds one frame."""
        return self._head + pixels.astype("<u2").tobytes() + self._tail


@dataclass
class Run:
    """One run: what its writer is to write, and what it has written.

    Attributes
    ----------
    root, out
        The watched tree and the folder that mirrors it for results; the same where results
        lie beside the raw files.
    frames
        How many frames it is to have.
    written
        The hash of the pixels (None: the file is broken) by file, relative to the run's folder,
        and page.
    others
        Names of further files that its writer leaves.
    """

    name: str
    kind: str
    root: Path
    out: Path
    frames: int
    rng: np.random.Generator
    album: Album
    gate: Callable[[], None]
    pauses_s: float = 0.0
    written: dict[tuple[str, int], str | None] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)

    @property
    def folder(self) -> Path:
        """Of its raw files."""
        return self.root / self.name

    @property
    def results(self) -> Path:
        """The folder of its results."""
        return self.out / self.name

    def next(self, file: str, page: int = 0) -> Pixels:
        """Return the next frame to write, when there is room for it in the backlog."""
        self.gate()
        pixels = self.album.frame(self.rng)
        self.written[file, page] = hash_pixels(pixels)
        return pixels

    def next_file(self, file: str) -> bytes:
        """Return the next frame as a TIFF; one in 300 is cut short."""
        content = self.album.tiff(self.next(file))
        if self.rng.random() < 1 / 300:
            self.written[file, 0] = None
            return content[: len(content) - BROKEN_BYTES * int(self.rng.integers(5, 50))]
        return content


def _cut(frame: Pixels) -> list[Pixels]:
    height, width = SHAPE
    return [
        frame[y : y + height, x : x + width].copy()
        for y in range(0, frame.shape[0] - height + 1, height)
        for x in range(0, frame.shape[1] - width + 1, width)
    ]


def _around(pixels: Pixels) -> tuple[bytes, bytes]:
    """Return what stands before and after the pixels in a TIFF of one frame."""
    made = io.BytesIO()
    tifffile.imwrite(made, pixels, byteorder="<", metadata=None)
    with tifffile.TiffFile(io.BytesIO(made.getvalue())) as file:
        start = file.pages.first.dataoffsets[0]
    content = made.getvalue()
    return content[:start], content[start + pixels.nbytes :]
