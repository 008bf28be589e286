"""Threads of another process held still, as a driver or a disk that never answers holds them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

_SEIZE, _INTERRUPT = 0x4206, 0x4207  # ptrace(2)
_WALL = 0x40000000  # waitpid(2): threads too


@contextlib.contextmanager
def held_threads(pid: int, but: int) -> Iterator[None]:
    """Hold all threads of ``pid`` except thread ``but`` while the block runs, or until it dies.

    Raises
    ------
    OSError
        The kernel does not let this process trace that one.
    """
    answers: queue.Queue[OSError | None] = queue.Queue()
    done = threading.Event()

    def trace() -> None:
        # The kernel takes orders only from the thread that seized; its end lets all go.
        libc = ctypes.CDLL(None, use_errno=True)
        libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        libc.ptrace.restype = ctypes.c_long
        error = None
        held = {int(thread.name) for thread in Path(f"/proc/{pid}/task").iterdir()} - {but}
        for tid in held:
            for order in (_SEIZE, _INTERRUPT):
                if libc.ptrace(order, tid, None, None) != 0:
                    number = ctypes.get_errno()
                    error = OSError(number, os.strerror(number))
        answers.put(error)
        while not done.wait(0.05):
            for tid in tuple(held):  # a thread that died is gone only when its holder has noticed
                found, status = os.waitpid(tid, os.WNOHANG | _WALL)
                if found and not os.WIFSTOPPED(status):
                    held.discard(tid)

    tracer = threading.Thread(target=trace)
    tracer.start()
    try:
        problem = answers.get()
        if problem is not None:
            raise problem
        yield
    finally:
        done.set()
        tracer.join()
