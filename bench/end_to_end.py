"""``segbatch process`` as anyone runs it, timed from outside by what it leaves on the disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
POLL_S = 0.02


@dataclass(frozen=True)
class EndToEnd:
    """One run of the command.

    Attributes
    ----------
    frames_per_s
        Slope of masks on disk against time, without the first and last frames,
        while the journeys under way fill up and run out.
    first_to_last_per_s
        Frames but one, over the time from the first mask to the last.
    command_per_s
        Frames over ``command_s``.
    command_s
        The whole command: start of Python, opening the engine, frames, the
        end of the run.
    cpu_ms
        Processor time of one frame, over the same frames as the slope.
    engine, precision
        What the run says it used.
    """

    frames_per_s: float
    first_to_last_per_s: float
    command_per_s: float
    command_s: float
    cpu_ms: float
    engine: str
    precision: str


def run(raws: Path, count: int, model: Path | None, precision: str, out: Path) -> EndToEnd:
    """Process the ``count`` good frames in ``raws`` into ``out``, which is emptied first.

    Raises
    ------
    SystemExit
        The command failed, or did not segment every frame.
    """
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "segbatch", "process", str(raws), "--out", str(out)]
    command += ["--precision", precision]
    if model is not None:
        command += ["--model", str(model)]
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as ran:
        used = _watch(ran)
        _, complained = ran.communicate()
    seconds = time.perf_counter() - start
    if ran.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {ran.returncode}:\n{complained}")
    report: dict[str, Any] = json.loads((out / "segbatch_run.json").read_text(encoding="utf-8"))
    if report["counts"]["segmented"] != count:
        raise SystemExit(f"wanted {count} frames segmented, got {report['counts']}")
    masks = np.sort([mask.stat().st_mtime_ns / 1e9 for mask in out.glob("*_mask.tif")])
    inner = masks[min(8, count // 4) : count - min(8, count // 4)]
    cpu = np.interp(inner[[0, -1]], used[:, 0], used[:, 1])
    return EndToEnd(
        frames_per_s=float(np.polyfit(inner - inner[0], np.arange(len(inner)), 1)[0]),
        first_to_last_per_s=float((count - 1) / (masks[-1] - masks[0])),
        command_per_s=count / seconds,
        command_s=seconds,
        cpu_ms=float(1e3 * (cpu[1] - cpu[0]) / (len(inner) - 1)),
        engine=report["model"]["engine"],
        precision=report["model"]["precision"],
    )


def _watch(process: subprocess.Popen[str]) -> NDArray[np.float64]:
    """Return (time, processor seconds used) of a process until it ends, (n, 2)."""
    seen = []
    while process.poll() is None:
        used = _cpu_s(process.pid)
        if used is not None:
            seen.append((time.time(), used))
        time.sleep(POLL_S)
    return np.array(seen)


def _cpu_s(pid: int) -> float | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except OSError:  # it has just ended, or this is no Linux
        return None
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S
