"""Small runs and real `segbatch` processes for the tests of this folder."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from segbatch.acquire.simulate import write_run

COMMAND = [sys.executable, "-m", "segbatch"]


def make_run(folder: Path, frames: int = 16, stack_frames: int = 6) -> Path:
    """Write a run of single frames, one stack and one broken file; return its folder."""
    write_run(folder, frames, seed=3, height_px=192, width_px=256)
    if stack_frames:
        scratch = folder.parent / "for_stack"
        write_run(scratch, stack_frames, seed=4, height_px=192, width_px=256)
        pages = [tifffile.imread(p) for p in sorted(scratch.glob("img_*[0-9].tif"))]
        tifffile.imwrite(folder / "stack.tif", np.stack(pages), photometric="minisblack")
        shutil.rmtree(scratch)
    (folder / "broken.tif").write_bytes(b"II*\0\x08\0\0\0 this is no image")
    return folder


def raw_frames(folder: Path) -> dict[str, int]:
    """Return the raw files of a run made by ``make_run`` with how many frames each holds."""
    found = {}
    for path in sorted(folder.glob("*.tif")):
        if path.name == "broken.tif":
            found[path.name] = 1
        elif not path.stem.endswith(("_mask", "_truth", "_prob", "_labels")):
            with tifffile.TiffFile(path) as file:
                found[path.name] = len(file.pages)
    return found


def segbatch(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **options,
    )


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start the command and return at once."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_until(condition: Any, process: subprocess.Popen[str]) -> bool:
    """Wait until ``condition()`` holds; False when the process ended before."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.002)
    return bool(condition())


def kill(process: subprocess.Popen[str]) -> None:
    """End a process as a power cut would."""
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.communicate()


@dataclass(frozen=True)
class Outcome:
    """What a run says of one frame, without what differs between runs (times, speeds)."""

    outcome: str
    reasons: tuple[str, ...]
    pixel_hash: str | None
    mask_hash: str | None


def records(folder: Path) -> list[dict[str, Any]]:
    """Read every QC record in a folder."""
    found = [json.loads(path.read_bytes()) for path in sorted(folder.glob("*_qc.json"))]
    for path in sorted(folder.glob("*_qc.jsonl")):
        found += [json.loads(line) for line in path.read_text().splitlines()]
    return found


def outcomes(folder: Path) -> dict[tuple[str, int], Outcome]:
    """Return each frame's outcome; fails if a frame has two."""
    found: dict[tuple[str, int], Outcome] = {}
    for record in records(folder):
        key = (record["frame"]["file"], record["frame"]["page"])
        assert key not in found, f"{key} has two outcomes"
        mask_hash = None
        if record["mask"] is not None:
            with tifffile.TiffFile(folder / record["mask"]["file"]) as file:
                pixels = file.pages[record["mask"]["page"]].asarray()
            mask_hash = hashlib.sha256(pixels.tobytes()).hexdigest()
        found[key] = Outcome(
            record["outcome"],
            tuple(record["reasons"]),
            record["frame"]["pixel_hash"],
            mask_hash,
        )
    return found


def hidden_files(folder: Path) -> list[str]:
    """Return the names of files that a finished run must not leave."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def clear(folder: Path) -> None:
    """Remove every result, so that only raw files and their truth remain."""
    for path in folder.iterdir():
        keep = path.suffix == ".tif" and not path.stem.endswith("_mask")
        if not (keep or path.name == "simulated.json") or path.name.startswith("."):
            path.unlink()
