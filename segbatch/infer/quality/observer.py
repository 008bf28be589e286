"""A process that looks at frames: ``observers`` starts it, and ends it by closing its input.

    python -m segbatch.infer.quality.observer DESCRIPTOR

It says ``ready`` and then answers each line, a ``Request``, with one line, an ``Observation``.
"""

from __future__ import annotations

import math
import mmap
import os
import signal
import sys
from contextlib import suppress
from typing import Any

import cv2
import msgspec
import numpy as np

from segbatch.heap import keep_what_was_freed
from segbatch.infer.quality.observe import Request, observe


def main(descriptor: int) -> None:
    """Answer until the input ends: it does so with the process at its other end, however that dies.

    Raises
    ------
    Exception
        Whatever looking at a frame raised: the other end looks again, and tells of it.
    """
    # A signal to the whole group is for the run, which still wants its last frames measured.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(1)
    keep_what_was_freed()
    memory = mmap.mmap(descriptor, os.fstat(descriptor).st_size, prot=mmap.PROT_READ)
    _say(b"ready")
    for line in sys.stdin.buffer:
        asked = msgspec.json.decode(line, type=Request)
        dtype, count = np.dtype(asked.dtype), math.prod(asked.shape)
        flat: np.ndarray[Any, Any] = np.frombuffer(memory, dtype, count, asked.offset)
        _say(msgspec.json.encode(observe(flat.reshape(asked.shape), asked.ceiling)))


def _say(line: bytes) -> None:
    os.write(sys.stdout.fileno(), line + b"\n")  # nothing is left to be flushed at the end


if __name__ == "__main__":
    with suppress(BrokenPipeError):  # nobody is left who wants to know
        main(int(sys.argv[1]))
