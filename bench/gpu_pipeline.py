"""End to end: files in memory to masks and QC logs, by what ``segbatch process`` runs.

The same processes, threads and files as those of the command, but the engine behind the door is
one of ``gpu_engines``: also one that the command would not choose, because it is torch, or
because TensorRT does not list the GPU. Beside it the same without inference (``host.py``).
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_engines
import msgspec
import numpy as np
import tifffile
from frames import BIT_DEPTH
from gpu_material import Size, album, run_folder
from gpu_run import Notes, Rounds
from host import HostOnly, TrueMasks, times_by_step

from segbatch.infer import segment
from segbatch.infer.engine.door import Opened
from segbatch.infer.engine.machine import available_threads
from segbatch.service.process import Process
from segbatch.service.progress import Progress
from segbatch.service.selection import select
from segbatch.settings import Settings

HOST = "host alone"
FEWEST_FRAMES, RUN_S = 200, 4.0
MOST_ROUNDS = 7
IN_MEMORY_S = 1.5


@dataclass(frozen=True)
class Run:
    """What is timed: a process with its engine open, and how many frames it is given."""

    label: str
    process: Process
    frames: int
    out: Path


def measure(notes: Notes, work: Path, network: str, seconds: float, *, tiny: bool) -> None:
    """Note frames/s of every engine that was timed alone before, the fastest first."""
    until = time.monotonic() + seconds
    frame_px = tuple(msgspec.json.decode((work / "material.json").read_bytes())["frame_px"])
    running: list[Run] = []
    for name, rate in {HOST: float("inf"), **timed_alone(work, network)}.items():
        most = Size.of(tiny=tiny).frames
        frames = int(max(min(FEWEST_FRAMES, most), min(most, RUN_S * rate)))

        def opening(name: str = name, frames: int = frames) -> Run:
            out = work / f"out-{network}-{len(running)}"
            settings = Settings(model=str(work / f"{network}.json"), redo=True, out=str(out))
            process = opened(name, network, work, frame_px, settings, tiny=tiny)
            return Run(name, process, frames, out)

        found = notes.attempt(f"opening {name}", opening)
        if found is None:
            continue
        running.append(found)
        note(notes, name, frames=frames)
        if name != HOST:
            memory = notes.attempt(
                f"{name}, in memory", lambda f=found: in_memory(f.process, work, tiny=tiny)
            )
            note(notes, name, in_memory=memory)
        once(notes, found, work)  # warms up; kept only where there is time for no other
    for each in running:
        notes.found["runs"][each.label]["rounds"][1:] = []
    rounds = Rounds(until - time.monotonic(), 1, 1 if tiny else MOST_ROUNDS)
    while rounds.another():
        for at in range(len(running)):
            once(notes, running[(at + rounds.done) % len(running)], work)
    for each in running:
        notes.attempt(f"closing {each.label}", each.process.close)


def note(notes: Notes, label: str, **found: Any) -> None:
    """Note more of one run."""
    runs = notes.found.setdefault("runs", {})
    runs.setdefault(label, {"rounds": []}).update(found)
    notes.put(runs=runs)


def timed_alone(work: Path, network: str) -> dict[str, float]:
    """Return frames/s of the engines that ran alone, one frame at a time, the fastest first."""
    file = work / f"speed-{network}.json"
    found = msgspec.json.decode(file.read_bytes()) if file.exists() else {}
    rates = {
        name: each.get("median", each["first"])
        for name, each in found.get("contenders", {}).items()
        if name in gpu_engines.HOW and each["first"]
    }
    return dict(sorted(rates.items(), key=lambda item: -item[1]))


def opened(
    name: str, network: str, work: Path, frame_px: Any, settings: Settings, *, tiny: bool
) -> Process:
    """Return a process whose engine is open before the clock starts."""
    if name == HOST:
        host = HostOnly(settings, threading.Event(), Progress(quiet=True))
        host.masks = TrueMasks(work / "album", available_threads())
        return host
    engine = gpu_engines.open_engine(name, network, work, frame_px, 1, tiny=tiny)

    def door(_model: Any, _settings: Any) -> Opened:
        return Opened(engine, available_threads(), 1.0, float("inf"), decides=True)

    segment.open_engine = door
    process = Process(settings, threading.Event(), Progress(quiet=True))
    process.segmenter()
    return process


def in_memory(process: Process, work: Path, *, tiny: bool) -> float:
    """Return frames/s of ``Segmenter.segment``, from frames in memory to masks in memory."""
    segmenter = process.segmenter()
    frames = [tifffile.imread(raw) for raw in album(work)]

    def work_on(count: int) -> float:
        given = itertools.islice(itertools.cycle(frames), count)
        start = time.perf_counter()
        with ThreadPoolExecutor(segmenter.streams) as pool:
            for _ in pool.map(lambda pixels: segmenter.segment(pixels, BIT_DEPTH), given):
                pass
        return count / (time.perf_counter() - start)

    first = work_on(4 if tiny else 64)
    return first if tiny else work_on(max(64, int(first * IN_MEMORY_S)))


def once(notes: Notes, run: Run, work: Path) -> None:
    """Process all frames once, and note how fast."""
    found = notes.attempt(f"a run with {run.label}", lambda: timed(run, work))
    if found is None:
        return
    rounds = [*notes.found["runs"][run.label]["rounds"], found]
    note(notes, run.label, rounds=rounds, **medians(rounds))


def medians(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Return the medians of what each round found; the first warms up and is left out."""
    counted = rounds[1:] or rounds
    return {
        key: statistics.median(each[key] for each in counted)
        for key in ("under_way", "whole", "read", "judge", "segment", "record")
        if all(each.get(key) is not None for each in counted)
    }


def timed(run: Run, work: Path) -> dict[str, Any]:
    """Return frames/s while the run is under way and over the whole of it, and ms by step.

    Raises
    ------
    RuntimeError
        Not every frame was segmented: one that is rejected costs no inference, and would flatter.
    """
    shutil.rmtree(run.out, ignore_errors=True)
    (selection,) = select([str(run_folder(work, run.frames))])
    start = time.perf_counter()
    report = run.process.run(selection)
    seconds = time.perf_counter() - start
    if report.counts.segmented != run.frames:
        raise RuntimeError(f"wanted {run.frames} frames segmented, got {report.counts}")
    masks = np.sort([mask.stat().st_mtime_ns / 1e9 for mask in run.out.glob("*_mask.tif")])
    steps: Callable[[Path], dict[str, float]] = times_by_step
    found = {"whole": run.frames / seconds, "under_way": slope(masks), **steps(run.out)}
    shutil.rmtree(run.out, ignore_errors=True)
    return found


def slope(written_s: Any) -> float:
    """Return frames/s by when masks were written, without those at the start and at the end."""
    edge = len(written_s) // 8
    inner = written_s[edge : len(written_s) - edge]
    return float(np.polyfit(inner - inner[0], np.arange(len(inner)), 1)[0])
