"""What the engine alone can do, what the work around it costs, and what both reach together.

    python bench/engine.py [MODEL ...] [--frames N] [--threads N]

For each model (the shipped one where none is named), precision and number of
streams: frames per second of the bare engine on input already normalised in
memory, and its peak memory; then milliseconds on one core of each step around
it; then frames per second of ``Segmenter.segment`` and its part of the bare
engine's. Each engine row runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from segbatch.infer.decide import counted_rows, decide_binary, decide_classes
from segbatch.infer.engine.cpu.onnxruntime_engine import OnnxRuntimeEngine
from segbatch.infer.engine.cpu.openvino_engine import OpenVinoEngine
from segbatch.infer.engine.machine import available_threads, processor
from segbatch.infer.engine.manifest import Percentile, ZScore
from segbatch.infer.engine.network.models import open_model
from segbatch.infer.normalise import fill, scale_of
from segbatch.infer.objects import areas_of
from segbatch.infer.segment import Segmenter
from segbatch.infer.tiles import forced, up
from segbatch.settings import Settings

SHAPE = (1080, 1440)


def beads(seed: int = 0) -> NDArray[np.uint16]:
    """Return a 10-bit frame with some 300 blurred spots, photon noise and an offset."""
    rng = np.random.default_rng(seed)
    light = np.full(SHAPE, 40.0)
    y, x = np.mgrid[-15:16, -15:16]
    for _ in range(300):
        at_y, at_x = rng.integers(15, SHAPE[0] - 15), rng.integers(15, SHAPE[1] - 15)
        spot = rng.uniform(80, 700) * np.exp(-(y**2 + x**2) / (2 * rng.uniform(2, 5) ** 2))
        light[at_y - 15 : at_y + 16, at_x - 15 : at_x + 16] += spot
    return np.minimum(rng.poisson(light), 1023).astype(np.uint16)


def peak_mib() -> int:
    """Return the most memory that this process ever held, MiB (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def rate(work: Callable[[int], Any], callers: int, frames: int) -> float:
    """Return calls per second of ``work`` from ``callers`` threads, after one round unmeasured."""
    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(work, range(callers)))
        start = time.perf_counter()
        list(pool.map(work, range(frames)))
        return frames / (time.perf_counter() - start)


def bare(path: str, name: str, precision: str, streams: int, threads: int, frames: int) -> None:
    """Measure one row and print it as JSON."""
    model = open_model(path)
    stride, channels = model.manifest.stride or 1, model.manifest.input_channels
    engine = (
        OpenVinoEngine(model.file, precision, threads)
        if name == "openvino"
        else OnnxRuntimeEngine(model.file, threads)
    )
    shape = (1, channels, up(SHAPE[0], stride), up(SHAPE[1], stride))
    image = np.random.default_rng(0).random(shape, np.float32)

    def work(_: int) -> None:
        with engine.request(shape, streams) as request:
            request.input[...] = image
            request.infer()

    callers = streams + (name == "openvino")
    print(json.dumps({"rate": rate(work, callers, frames), "peak_mib": peak_mib()}))


def whole(path: str, name: str, precision: str, threads: int, frames: int) -> None:
    """Measure ``Segmenter.segment`` and print it as JSON."""
    frame = beads()
    settings = Settings(engine=name, precision=precision, threads=threads)
    with Segmenter(open_model(path), settings) as segmenter:
        found = rate(lambda _: segmenter.segment(frame, 10), segmenter.streams, frames)
        streams = segmenter._layout(SHAPE).streams
    print(json.dumps({"rate": found, "streams": streams, "peak_mib": peak_mib()}))


def in_own_process(*arguments: object) -> dict[str, Any]:
    """Run this script for one row."""
    command = [sys.executable, __file__, "--row", *(str(part) for part in arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def host_costs() -> None:
    """Print milliseconds of one core for each step around the engine."""
    import cv2

    cv2.setNumThreads(1)
    frame = beads()
    ((y, x),) = forced(SHAPE, 16, 0, 4096).tiles()
    out = np.empty((1, y.stop, x.stop), np.float32)
    fill(frame, y, x, 0.0, 1 / 1023, out)
    smooth = cv2.GaussianBlur(frame.astype(np.float32), (0, 0), 2.0)
    logits = (smooth - 120.0) / 20.0
    classes = np.stack([-logits, logits, np.full_like(logits, -3.0), logits - 4.0])
    mask, winners = np.empty(SHAPE, np.uint8), np.empty(SHAPE, np.uint8)
    counted = counted_rows(mask.size, 0)
    decide_binary(logits, 0.5, mask, counted)
    steps: dict[str, Callable[[], Any]] = {
        "scale, percentile": lambda: scale_of(frame, Percentile(1.0, 99.8), 10),
        "scale, z-score": lambda: scale_of(frame, ZScore(), 10),
        "normalise and mirror out": lambda: fill(frame, y, x, 0.0, 1 / 1023, out),
        "mask and certainty, one class": lambda: decide_binary(logits, 0.5, mask, counted),
        "mask and certainty, four classes": lambda: decide_classes(classes, winners, counted),
        "objects": lambda: areas_of(mask),
    }
    print(f"\nwork around the engine on one core, median ms ({areas_of(mask).objects} objects)")
    for name, step in steps.items():
        times = []
        for _ in range(25):
            start = time.thread_time()
            step()
            times.append(1e3 * (time.thread_time() - start))
        print(f"  {name:34s} {statistics.median(times):6.2f}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", default=[""])
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--threads", type=int, default=available_threads())
    given = parser.parse_args()
    name = processor().split("|")
    print(f"{platform.platform()}, {given.threads} threads of {os.cpu_count()} processors")
    print(next((part for part in name if " " in part and len(part) < 80), ""))
    rows = [("openvino", "fp32"), ("openvino", "bf16"), ("onnxruntime", "fp32")]
    for path in given.models:
        open_model(path)
        print(f"\n{path or 'the shipped model'}, {SHAPE[1]} x {SHAPE[0]} px, frames/s (peak MiB)")
        for engine, precision in rows:
            best = 0.0
            for streams in [n for n in range(1, given.threads + 1) if given.threads % n == 0]:
                if engine == "onnxruntime" and streams > 2:
                    continue
                found = in_own_process(
                    "bare", path, engine, precision, streams, given.threads, given.frames
                )
                best = max(best, found["rate"])
                print(
                    f"  {engine:12s} {precision} bare, {streams} streams"
                    f" {found['rate']:8.2f} ({found['peak_mib']})"
                )
            found = in_own_process("whole", path, engine, precision, given.threads, given.frames)
            print(
                f"  {engine:12s} {precision} segment, {found['streams']} streams"
                f" {found['rate']:5.2f} ({found['peak_mib']}), {found['rate'] / best:.2f} of bare"
            )
    host_costs()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if "--row" in sys.argv:
        kind, *rest = sys.argv[sys.argv.index("--row") + 1 :]
        if kind == "bare":
            bare(*rest[:3], *(int(part) for part in rest[3:]))  # type: ignore[call-arg]
        else:
            whole(*rest[:3], *(int(part) for part in rest[3:]))  # type: ignore[call-arg]
    else:
        main()
