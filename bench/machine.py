"""What a measurement was taken on: processor, cores in use, versions."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from segbatch.infer.engine.machine import available_threads

PACKAGES = ("segbatch", "openvino", "onnxruntime", "torch", "monai", "numpy", "opencv", "tifffile")
_DISTRIBUTIONS = {"opencv": "opencv-python-headless"}


def processor() -> str:
    """Return the processor's family, model and number formats, as the kernel names them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    facts: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    flags = set(facts.get("flags", "").split())
    formats = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    named = facts.get("model name", platform.processor())
    which = f"family {facts.get('cpu family')}, model {facts.get('model')}"
    return f"{named} ({which}; {', '.join(formats)})"


def versions() -> str:
    """Return the versions of what is compared, those that are installed."""
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(_DISTRIBUTIONS.get(package, package))}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def describe() -> list[str]:
    """Return the lines that stand above every table."""
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    kernel = f"{platform.system()} {platform.release()}"
    return [
        f"command: {' '.join(['python', *sys.argv])}",
        f"date: {datetime.now(UTC):%Y-%m-%d}",
        f"processor: {processor()}",
        f"machine: {available_threads()} cores in use, {memory_gib:.0f} GiB, {kernel}",
        f"load when it began (1, 5, 15 minutes): {load}",
        f"versions: {versions()}",
    ]
