"""Memory stays within what is stated, whatever the frame's size."""

from __future__ import annotations

import subprocess
import sys

import pytest

GIB = 1 << 30
PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from segbatch.infer.engine.network.models import open_model
from segbatch.infer.segment import Segmenter
from segbatch.settings import Settings

side, engine, memory = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
frame = np.empty((side, side), np.uint16)
rng = np.random.default_rng(0)
patch = np.minimum(rng.poisson(80, (1000, 1000)), 1023).astype(np.uint16)
patch[400:412, 300:312] += 600
for top in range(0, side, 1000):
    for left in range(0, side, 1000):
        room = frame[top : top + 1000, left : left + 1000]
        room[...] = patch[: room.shape[0], : room.shape[1]]
with Segmenter(open_model(""), Settings(engine=engine, memory_gib=memory)) as segmenter:
    found = segmenter.segment(frame, 10)
assert found.mask.shape == frame.shape
status = Path("/proc/self/status").read_text()
sys.stdout.write("peak " + status.partition("VmHWM:")[2].split()[0])
"""


def peak_bytes(side: int, engine: str, memory_gib: float) -> int:
    """Return the peak memory of a process that segments one square frame."""
    command = [sys.executable, "-c", PROGRAM, str(side), engine, str(memory_gib)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.rpartition("peak ")[2]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_memory_is_the_limit_plus_the_frame_and_its_mask(engine: str) -> None:
    """A frame that does not fit at once takes memory_gib and 4 bytes a pixel, plus the program."""
    side, memory_gib = 3000, 0.4

    assert peak_bytes(side, engine, memory_gib) < memory_gib * GIB + 4 * side**2 + 0.2 * GIB


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_a_frame_of_20000_by_20000_passes_in_4_gib() -> None:
    """With the default settings the whole process stays under 4 GiB."""
    assert peak_bytes(20_000, "auto", 2.0) < 4 * GIB
