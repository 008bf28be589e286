"""Simulated frames to measure on: a run in which every frame is good."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from segbatch.acquire.simulate import write_run
from segbatch.acquire.simulate.kinds import GOOD_FRACTION
from segbatch.acquire.simulate.run import RUN_FILE
from segbatch.infer.engine.manifest import Manifest
from segbatch.infer.normalise import fill, scale_of
from segbatch.infer.tiles import Span, up

BIT_DEPTH = 10  # of the simulated camera


def write_good_run(folder: Path, count: int, seed: int) -> list[Path]:
    """Simulate a run, throw away what is not good, and return ``count`` raw files.

    A rejected frame costs no inference, so a run with bad frames in it would flatter.
    """
    total = math.ceil(count / GOOD_FRACTION) + 2
    write_run(folder, total, seed)
    listed = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["frames"]
    good = [folder / entry["file"] for entry in listed if entry["kind"] == "good"][:count]
    for file in folder.iterdir():
        if file not in good:
            file.unlink()
    return good


def subset(raws: list[Path], count: int, folder: Path) -> Path:
    """Link the first ``count`` raw files into ``folder`` and return it."""
    folder.mkdir()
    for raw in raws[:count]:
        os.link(raw, folder / raw.name)
    return folder


def in_memory(raws: list[Path], manifest: Manifest, *, padded: bool) -> list[NDArray[np.float32]]:
    """Return frames as network input, each float32 (1, 1, Y, X), normalised.

    ``padded`` mirrors them out to a multiple of the network's stride, as a
    whole frame needs.
    """
    return [_input(tifffile.imread(raw), manifest, padded=padded) for raw in raws]


def _input(pixels: NDArray[Any], manifest: Manifest, *, padded: bool) -> NDArray[np.float32]:
    stride = (manifest.stride or 1) if padded else 1
    y, x = (Span(0, up(length, stride), 0, length) for length in pixels.shape)
    made = np.empty((1, 1, y.stop, x.stop), np.float32)
    fill(pixels, y, x, *scale_of(pixels, manifest.normalisation, BIT_DEPTH), made[0])
    return made
