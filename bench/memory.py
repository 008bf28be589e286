"""Peak memory of ``segbatch process``, by the size of the frame.

    python bench/memory.py [--sides 4096 20000] [--limit-gib 4] [--model FILE]

Writes one simulated frame of 1440 x 1080 px and square ones tiled from it, has
each processed by the command in a process of its own, and prints the highest
resident memory that the kernel saw. Exit code 1 where a frame needed more than
the limit or was not segmented. A frame of 20,000 x 20,000 px takes 800 MB of
disk in the temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import machine
import numpy as np
import tifffile
from numpy.typing import NDArray

from segbatch.acquire.simulate import Scene, draw

BAND_ROWS = 1024


@dataclass(frozen=True)
class Peak:
    """What one command came to."""

    outcome: str
    seconds: float
    peak_gib: float


def write_tiled(file: Path, frame: NDArray[np.uint16], height: int, width: int) -> None:
    """Write ``frame`` mirrored out to (``height``, ``width``) as a TIFF, a band at a time.

    Mirrored, because a row where copies met would be judged torn.
    This process must stay small: on Linux a child's peak never reads lower than
    what its parent held when it was started.
    """
    rows, columns = (
        np.pad(np.arange(side), (0, max(0, wanted - side)), "symmetric")[:wanted]
        for side, wanted in zip(frame.shape, (height, width), strict=True)
    )

    def bands() -> Iterator[bytes]:
        for top in range(0, height, BAND_ROWS):
            yield frame[np.ix_(rows[top : top + BAND_ROWS], columns)].tobytes()

    tifffile.imwrite(
        file, bands(), shape=(height, width), dtype=np.uint16, rowsperstrip=BAND_ROWS, metadata=None
    )


def process(raw: Path, model: str | None, limits: list[str]) -> Peak:
    """Process one frame and return how that ended and the most memory it took."""
    out = raw.parent / "out"
    command = [sys.executable, "-m", "segbatch", "process", str(raw), "--out", str(out)]
    command += [part for limit in limits for part in ("--set", limit)]
    command += ["--model", model] if model else []
    log = raw.with_suffix(".log")
    start = time.perf_counter()
    with log.open("w", encoding="utf-8") as said:
        running = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, used = os.wait4(running.pid, 0)
    running.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    records = list(out.glob("*_qc.json"))
    outcome = json.loads(records[0].read_text())["outcome"] if records else log.read_text()[-500:]
    return Peak(outcome, seconds, used.ru_maxrss * 1024 / 2**30)


def main() -> None:
    """Parse the command line, measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="*", default=[4096, 20000], help="px")
    parser.add_argument("--limit-gib", type=float, default=4.0)
    parser.add_argument("--model", help="as for segbatch process")
    parser.add_argument("--set", dest="limits", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    for line in machine.describe():
        print(line)
    frame, _ = draw(Scene(), np.random.default_rng(1))
    shapes = [frame.shape, *((side, side) for side in given.sides)]
    passed = True
    print("\n| frame, px | raw file, MB | outcome | peak memory, GiB | seconds |")
    print("|---|---|---|---|---|")
    for height, width in shapes:
        with tempfile.TemporaryDirectory(prefix="segbatch-bench-") as folder:
            raw = Path(folder) / "frame.tif"
            write_tiled(raw, frame, height, width)
            peak = process(raw, given.model, given.limits)
            size_mb = raw.stat().st_size / 1e6
        passed &= peak.outcome == "segmented" and peak.peak_gib <= given.limit_gib
        print(
            f"| {width} x {height} | {size_mb:.0f} | {peak.outcome} | "
            f"{peak.peak_gib:.2f} | {peak.seconds:.1f} |",
            flush=True,
        )
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
