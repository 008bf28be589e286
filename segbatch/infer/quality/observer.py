"""A process that looks at frames: ``observers`` starts it, and ends it by closing the socket.

    python -m segbatch.infer.quality.observer MEMORY SOCKET

Both are descriptors. It says ``ready`` and then answers each message, a ``Request``, with one,
an ``Observation``.
"""

from __future__ import annotations

import math
import mmap
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import Any

import cv2
import msgspec
import numpy as np

from segbatch.heap import keep_what_was_freed
from segbatch.infer.quality.observe import MESSAGE_BYTES, Request, observe


def main(memory_descriptor: int, socket_descriptor: int) -> None:
    """Answer until the socket ends, as it does with the process at its other end.

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
    size = os.fstat(memory_descriptor).st_size
    memory = mmap.mmap(memory_descriptor, size, prot=mmap.PROT_READ)
    with socket.socket(fileno=socket_descriptor) as other_end:
        other_end.send(b"ready")
        while message := other_end.recv(MESSAGE_BYTES):
            asked = msgspec.json.decode(message, type=Request)
            dtype, count = np.dtype(asked.dtype), math.prod(asked.shape)
            flat: np.ndarray[Any, Any] = np.frombuffer(memory, dtype, count, asked.offset)
            seen = observe(flat.reshape(asked.shape), asked.ceiling)
            other_end.send(msgspec.json.encode(seen))


if __name__ == "__main__":
    with suppress(BrokenPipeError, ConnectionResetError):  # nobody is left who wants to know
        main(int(sys.argv[1]), int(sys.argv[2]))
