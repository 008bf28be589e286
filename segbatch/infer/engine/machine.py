"""The processor: which it is, and how much of it this process may use."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path


def available_threads() -> int:
    """Return the processors this process may use: its affinity, cut to a control group's quota."""
    if hasattr(os, "sched_getaffinity"):
        processors = len(os.sched_getaffinity(0))
    else:
        processors = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return processors
    if quota == "max":
        return processors
    return max(1, min(processors, round(int(quota) / int(period))))


def processor() -> str:
    """Return the processor's model name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    lines = (line.partition(":") for line in text.splitlines())
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")
    return "|".join(sorted({value.strip() for key, _, value in lines if key.strip() in wanted}))


def processor_id() -> str:
    """Return the processor's name for people, and a digest of all that code is chosen by."""
    told = processor()
    name = next((part for part in told.split("|") if " " in part and len(part) < 80), "processor")
    return f"{name} ({hashlib.sha256(told.encode()).hexdigest()[:12]})"
