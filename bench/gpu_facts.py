"""What a GPU is, and what it can do at most: products of matrices, and copies of memory."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import distributions
from typing import Any

import machine
from gpu_run import Notes, Rounds

# Of 16384 halves a side there are three of 0.5 GB each.
SIDES = (4096, 8192, 12288, 16384)
COPIED_BYTES = 2 << 30
TURN_S = 0.25
PACKAGES = ("torch", "triton", "tensorrt", "onnxruntime", "nvidia-cudnn", "cuda-", "monai", "numpy")
ASKED = "name,driver_version,memory.total,clocks.sm,clocks.mem,temperature.gpu,power.draw"


def there() -> dict[str, Any]:
    """Return what torch says of the first GPU; ``why`` says in words where it can use none."""
    import torch

    if not torch.cuda.is_available():
        return {"why": f"torch {torch.__version__} finds no GPU that it can use"}
    seen = torch.cuda.get_device_properties(0)
    return {
        "why": "",
        "name": seen.name,
        "compute_capability": f"{seen.major}.{seen.minor}",
        "processors": seen.multi_processor_count,
        "memory_gib": round(seen.total_memory / 2**30, 1),
        "cuda_of_torch": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def describe(notes: Notes, _seconds: float) -> None:
    """Note the machine, the GPU, its driver and the libraries."""
    notes.put(machine=machine.describe()[1:])
    notes.put(libraries=libraries())
    notes.put(gpu=notes.attempt("asking torch for the GPU", there) or {"why": "torch failed"})
    notes.put(nvidia_smi=asked())


def libraries() -> dict[str, str]:
    """Return the versions of all that has to do with GPUs, by package."""
    found = {str(each.metadata["Name"]).lower(): each.version for each in distributions()}
    return {name: found[name] for name in sorted(found) if name.startswith(PACKAGES)}


def asked() -> str:
    """Return a line of nvidia-smi: driver, memory, clocks and temperature; empty without it."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", f"--query-gpu={ASKED}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return "nvidia-smi gave no answer"
    return done.stdout.strip()


def timed(action: Callable[[], object], count: int, sync: Callable[[], object]) -> float:
    """Return the seconds that ``count`` calls take until the GPU has done them all."""
    sync()
    start = time.perf_counter()
    for _ in range(count):
        action()
    sync()
    return time.perf_counter() - start


def ceilings(notes: Notes, seconds: float, *, tiny: bool) -> None:
    """Note TFLOP/s of half-precision products by size, and TB/s of a copy, read and written."""
    import torch

    device = "cpu" if tiny else "cuda"
    sync: Callable[[], object] = (lambda: None) if tiny else torch.cuda.synchronize
    turns: dict[str, tuple[Callable[[], object], float]] = {}

    def product(side: int) -> None:
        # Random numbers: a product of zeros needs less power, and runs faster than any network.
        a, b = (torch.randn(side, side, device=device, dtype=torch.half) for _ in range(2))
        out = torch.empty_like(a)
        turns[f"{side}"] = (lambda: torch.mm(a, b, out=out), 2.0 * side**3 / 1e12)

    def copy() -> None:
        size = 1 << 20 if tiny else COPIED_BYTES
        source = torch.randint(0, 255, (size,), device=device, dtype=torch.uint8)
        target = torch.empty_like(source)
        turns["copy"] = (lambda: target.copy_(source), 2.0 * size / 1e12)

    for side in (64, 96) if tiny else SIDES:
        notes.attempt(f"a product of {side} x {side}", lambda side=side: product(side))
    notes.attempt("a copy", copy)
    rates: dict[str, list[float]] = {}
    counts: dict[str, int] = {}
    turn_s = 0.01 if tiny else TURN_S
    for name, (action, _) in turns.items():
        notes.put(doing=f"warming up {name}")
        timed(action, 3, sync)
        counts[name] = max(3, round(turn_s / (timed(action, 3, sync) / 3)))
    rounds = Rounds(seconds / 2, 2, 9)
    while rounds.another():
        for name, (action, work) in turns.items():
            notes.put(doing=f"timing {name}")
            rates.setdefault(name, []).append(
                work * counts[name] / timed(action, counts[name], sync)
            )
        notes.put(rounds=rounds.done, medians={n: statistics.median(r) for n, r in rates.items()})
    products = {name: rate for name, rate in notes.found["medians"].items() if name != "copy"}
    notes.put(
        half_tflops=max(products.values()),
        side=max(products, key=lambda name: products[name]),
        memory_tb_s=notes.found["medians"].get("copy"),
        nvidia_smi_after=asked(),
    )
