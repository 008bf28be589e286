"""Memory that was freed does not stay with the service."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, sys, threading
from pathlib import Path
from segbatch import heap as module
from segbatch.heap import Heap, bound_the_heap
module.AT_REST_EVERY_S = 0.0

def resident_mib():
    words = Path("/proc/self/statm").read_text().split()
    return int(words[1]) * 4096 >> 20

bound_the_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def work():
    # Small blocks that stay among large ones that go: nothing can be cut off at the end.
    blocks = []
    for number in range(4000):
        blocks.append(libc.malloc(100_000))
        ctypes.memset(blocks[-1], 1, 100_000)
        libc.malloc(64)
    for block in blocks:
        libc.free(block)
thread = threading.Thread(target=work)
thread.start(); thread.join()
heap = Heap()
heap.tidy(busy=True)
before = resident_mib()
heap.tidy(busy=False)
print(before, resident_mib())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap is looked at in /proc")
def test_freed_memory_goes_back_when_work_comes_to_rest() -> None:
    """Memory that was freed among blocks that stay is given back once nothing is left to do."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    before, after = map(int, done.stdout.split())

    assert before > 300
    assert after < before / 4
