"""Frames/s of everything but inference: read, judge, record; and where that time goes.

    python bench/host.py [--frames 400] [--rounds 3] [--folder FOLDER]

`segbatch process` runs over simulated frames of a Zelux (1440 x 1080 px, 10 bits), with an engine
that answers at once: each frame's true mask. So masks are those of real frames, and are compressed
and written as usual. The frames lie in FOLDER (by default /dev/shm, so that no disk is measured)
and are read from there, 1.2 GB of them; every round runs on one, two, ... cores in turn, in
processes of their own. "ms of a core" counts all processes of the command, with their start.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, cast

import cv2
import machine
import numpy as np
import tifffile

from segbatch.acquire.simulate import write_run
from segbatch.infer.objects import areas_of
from segbatch.infer.segment import ModelInfo, Segmentation, Segmenter
from segbatch.log import configure
from segbatch.service.process import Process
from segbatch.service.progress import Progress
from segbatch.service.selection import select
from segbatch.settings import Settings

STEPS = ("read", "judge", "segment", "record")


class TrueMasks:
    """Stands for a segmenter whose engine takes no time: it knows every frame's mask."""

    def __init__(self, folder: Path, streams: int) -> None:
        self.streams = streams
        self.info = ModelInfo("true masks", "", "none", "none", "")
        self._known: dict[str, Segmentation] = {}
        for truth in folder.glob("*_truth.tif"):
            raw = truth.with_name(truth.name.replace("_truth", ""))
            mask = np.asarray(tifffile.imread(truth) > 0, np.uint8)
            areas = areas_of(mask, 1)
            self._known[_key(tifffile.imread(raw))] = Segmentation(
                mask, cv2.countNonZero(mask) / mask.size, areas.objects, areas.median,
                0.99, 0.01, None, None,
            )  # fmt: skip

    def segment(self, pixels: Any, bit_depth: int, **_: Any) -> Segmentation:
        """Return the true mask of a frame, found by a few of its pixels."""
        return self._known[_key(pixels)]


def _key(pixels: Any) -> bytes:
    """Return a few pixels, by which a frame is known again at no cost."""
    return bytes(np.ascontiguousarray(pixels[::37, ::41]).tobytes())


class HostOnly(Process):
    """The runs of one command, without inference."""

    masks: TrueMasks

    def segmenter(self) -> Segmenter:
        """Return what stands for the engine."""
        return cast("Segmenter", self.masks)


def row(folder: Path, cores: int) -> None:
    """Process the folder on so many cores, and print what it took as JSON."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    process = HostOnly(Settings(redo=True), threading.Event(), Progress(quiet=True))
    process.masks = TrueMasks(folder, cores)
    (selection,) = select([str(folder)])
    busy, began = sum(os.times()[:4]), time.perf_counter()
    report = process.run(selection)
    seconds = time.perf_counter() - began
    process.close()  # the processes that measured count from when they have ended
    busy = sum(os.times()[:4]) - busy
    frames = report.counts.frames
    print(
        json.dumps(
            {"frames": frames, "rate": frames / seconds, "busy_ms": 1000 * busy / frames}
            | {"outcomes": [report.counts.segmented, report.counts.rejected]}
        )
    )


def in_own_process(folder: Path, cores: int) -> dict[str, Any]:
    """Run this script for one row."""
    command = [sys.executable, __file__, "--row", str(folder), str(cores)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def times_by_step(folder: Path) -> dict[str, float]:
    """Return the median milliseconds of each step over the frames that were segmented."""
    records = [
        record
        for log in folder.glob("*_qc.json")
        if (record := json.loads(log.read_bytes()))["outcome"] == "segmented"
    ]
    return {
        step: statistics.median(record["timing_ms"][step] for record in records) for step in STEPS
    }


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    shared = Path("/dev/shm")  # noqa: S108 - files in memory, removed at the end
    parser.add_argument("--folder", type=Path, default=shared if shared.is_dir() else None)
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    configure(verbose=False)
    if given.row:
        row(Path(given.row[0]), int(given.row[1]))
        return
    for line in machine.describe():
        print(line, flush=True)
    available = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="segbatch-host-", dir=given.folder) as name:
        folder = Path(name) / "run"
        write_run(folder, given.frames, 1)
        found: dict[int, list[dict[str, Any]]] = {}
        steps: dict[str, float] = {}
        for _ in range(given.rounds):
            for cores in range(1, available + 1):
                found.setdefault(cores, []).append(in_own_process(folder, cores))
                if cores == 1:
                    steps = times_by_step(folder)
        print(
            "\n| cores | frames/s | frames/s a core | ms of a core for a frame |\n|---|---|---|---|"
        )
        for cores, rows in found.items():
            rate = statistics.median(each["rate"] for each in rows)
            busy_ms = statistics.median(each["busy_ms"] for each in rows)
            print(f"| {cores} | {rate:.0f} | {rate / cores:.0f} | {busy_ms:.1f} |")
        print("\n| step, on one core | ms |\n|---|---|")
        for step, ms in steps.items():
            print(f"| {step} | {ms:.1f} |")


if __name__ == "__main__":
    main()
