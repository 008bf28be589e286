"""What goes first when there are not processors enough for all."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from pathlib import Path

FEWEST_PROCESSORS = 3  # of which one can be left free
_AT_FIRST = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
_STEPS = 10  # of 19: about a tenth of the processor time of a thread that did not give way


def give_way() -> None:
    """Let all other threads go before this one, and before those that it starts from now on.

    A camera delivers when it delivers, and its frames are lost where nobody
    takes them; a frame on the disk can wait. Does nothing but on Linux, where
    each thread has a priority of its own.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        now = os.getpriority(os.PRIO_PROCESS, thread)
        with suppress(PermissionError):  # the unit allows it only where it drives a camera
            os.setpriority(os.PRIO_PROCESS, thread, min(now + _STEPS, 19))


def all_processors() -> list[int]:
    """Return the numbers of the processors that were this process's when it began."""
    return list(_AT_FIRST)


def leave_a_processor_free(wanted: bool) -> None:
    """Keep the threads of this process, and those that they start, off one processor, or on all.

    For a camera that is driven beside them: where every processor is busy, whoever is woken
    waits until the kernel looks again, which may take longer than a frame, whatever its priority.
    Does nothing on fewer than three processors, nor but on Linux.
    """
    if sys.platform == "linux" and len(_AT_FIRST) >= FEWEST_PROCESSORS:
        processors = _AT_FIRST[:-1] if wanted else _AT_FIRST
        with suppress(OSError):  # the unit allows it only where it drives a camera
            if os.sched_getaffinity(0) == set(processors):
                return
            for thread in Path("/proc/self/task").iterdir():
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread.name), processors)
