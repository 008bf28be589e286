"""All that is to be measured on an NVIDIA GPU, in one call.

    python bench/gpu.py --out FOLDER [--minutes 8]

For the shipped network and the U-Net of 7.76 million parameters, on frames of 1440 x 1080 px: the
GPU's ceiling (half-precision products, memory), likeness to the fp32 network on the processor,
frames/s of the engine alone and of the whole of `segbatch process`, beside torch (eager,
compiled), MONAI and ONNX Runtime's CUDA provider; and what TensorRT says to this GPU. It
prints a page of Markdown for docs/gpu.md, and writes it with all rounds as JSON into FOLDER.
Needs torch with CUDA; MONAI, tensorrt-rtx, TensorRT and onnxruntime-gpu are measured where they
are installed. Each part runs in a process of its own: what fails is named and costs only itself.
`--dry-run` tries the script on tiny frames, without a GPU: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gpu_report
from gpu_run import LEAST_S, NETWORKS, Notes, Part, run_all, run_part

FLAVOURS = ("tensorrt", "tensorrt_rtx")
LONGEST_MINUTES = 9.5
NEEDED_BYTES = 6 << 30


def parts(given: argparse.Namespace, work: Path) -> list[Part]:
    """Return the parts in their order, with the share of the time that each may take."""
    common = (__file__, "--work", str(work), *(("--dry-run",) if given.dry_run else ()))
    made = [
        Part("facts", (*common, "--part", "facts"), 1),
        Part("material", (*common, "--part", "material"), 9),
        Part("ceiling", (*common, "--part", "ceiling"), 3),
    ]
    for network in NETWORKS:
        made += [
            Part(
                f"tensorrt-{flavour}-{network}",
                (*common, "--part", "tensorrt", "--network", network, "--flavour", flavour),
                2,
            )
            for flavour in FLAVOURS
            if importlib.util.find_spec(flavour) is not None
        ]
    for network, shares in zip(NETWORKS, ((12, 11), (8, 8)), strict=True):
        for kind, share in zip(("speed", "files"), shares, strict=True):
            arguments = (*common, "--part", kind, "--network", network)
            made.append(Part(f"{kind}-{network}", arguments, share))
    return made


def do_part(given: argparse.Namespace) -> None:
    """Measure one part, in the process that was started for it."""
    from segbatch.log import configure

    configure(verbose=False)
    notes, work, tiny = Notes(Path(given.notes)), Path(given.work), given.dry_run
    notes.put(doing="loading libraries")
    if given.part == "facts":
        import gpu_facts

        gpu_facts.describe(notes, given.seconds)
    elif given.part == "material":
        import gpu_material

        gpu_material.prepare(notes, work, tiny=tiny)
    elif given.part == "ceiling":
        import gpu_facts

        gpu_facts.ceilings(notes, given.seconds, tiny=tiny)
    elif given.part == "tensorrt":
        import gpu_tensorrt

        gpu_tensorrt.attempt(notes, work, given.network, given.flavour, tiny=tiny)
    elif given.part == "speed":
        import gpu_speed

        gpu_speed.measure(notes, work, given.network, given.seconds, tiny=tiny)
    else:
        import gpu_pipeline

        gpu_pipeline.measure(notes, work, given.network, given.seconds, tiny=tiny)


def place() -> Path | None:
    """Return where files lie in memory, if there is room; None for where temporary files go."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of our own inside, removed at the end
    if memory.is_dir() and shutil.disk_usage(memory).free > NEEDED_BYTES:
        return memory
    print("no room in memory: files go where temporary files go", file=sys.stderr)
    return None


class Kept:
    """What was found so far, written anew after every part: the machine may be gone any moment."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self._date = datetime.now(UTC)
        self._command = " ".join(["python", "bench/gpu.py", *sys.argv[1:]])
        self.results: dict[str, Any] = {}

    def add(self, found: dict[str, Any]) -> None:
        """Add what parts found, and write it all."""
        self.results |= found
        if self._given.out is None:
            return
        self._given.out.mkdir(parents=True, exist_ok=True)
        tail = "-dry-run" if self._given.dry_run else ""
        stem = self._given.out / f"gpu-{self._date:%Y-%m-%d-%H%M%S}{tail}"
        stem.with_suffix(".json").write_text(json.dumps(self.results, indent=1), encoding="utf-8")
        stem.with_suffix(".md").write_text(self.page(), encoding="utf-8")

    def page(self) -> str:
        """Return the page."""
        date = f"{self._date:%Y-%m-%d}"
        return gpu_report.page(self.results, date, self._command, tiny=self._given.dry_run)


def measure(given: argparse.Namespace) -> int:
    """Run every part, print what was found, and return the exit code."""
    until = time.monotonic() + 60 * given.minutes
    kept = Kept(given)
    with tempfile.TemporaryDirectory(prefix="segbatch-gpu-", dir=place()) as name:
        work = Path(name)
        first, *todo = parts(given, work)
        facts = run_part(first, work, LEAST_S, 60 * given.minutes / 4)
        why = facts.get("gpu", {}).get("why", facts["outcome"])
        if why and not given.dry_run:
            print(
                f"{why}; nothing was measured. --dry-run tries the script without a GPU.",
                file=sys.stderr,
            )
            return 3
        kept.add({first.name: facts})
        if until - time.monotonic() < LEAST_S * len(todo):
            print(f"{given.minutes:g} minutes is little: parts will be missing", file=sys.stderr)
        run_all(todo, work, until - time.monotonic(), kept.add)
    print(kept.page())
    return 1 if any(found["outcome"] != "done" for found in kept.results.values()) else 0


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for the page and the JSON file")
    parser.add_argument("--minutes", type=float, default=8.0, help="what all of it may take")
    parser.add_argument("--dry-run", action="store_true", help="try the script without a GPU")
    for hidden in ("part", "network", "flavour", "work", "notes"):
        parser.add_argument(f"--{hidden}", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        do_part(given)
        return
    if not 0 < given.minutes <= LONGEST_MINUTES:
        parser.error(f"--minutes {given.minutes:g}: up to {LONGEST_MINUTES:g}")
    started = time.monotonic()
    code = measure(given)
    print(f"took {time.monotonic() - started:.0f} s", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
