"""What becomes of memory that was freed, where the C library is glibc.

Frames are large, are worked on in threads that come and go, and their memory is freed among
smaller blocks that stay. glibc keeps such memory, in as many places as there were threads; of
no use to anybody, it creeps up for hours although nothing is lost.
"""

from __future__ import annotations

import ctypes
import time
from contextlib import suppress

AT_WORK_EVERY_S, AT_REST_EVERY_S = 60.0, 5.0
# malloc.h of glibc
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_OTHER_LIBRARY = (OSError, AttributeError, TypeError)


def bound_the_heap() -> None:
    """Have what was freed kept in two places, not in eight for each core."""
    with suppress(*_OTHER_LIBRARY):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def keep_what_was_freed() -> None:
    """Have blocks of all sizes come from heaps that are not given back: for frame after frame.

    To page such memory in anew is a third of the cost of measuring a frame, and holds up a camera.
    For a process that does nothing else.
    """
    with suppress(*_OTHER_LIBRARY):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        library.mallopt(_M_TOP_PAD, 1 << 24)


def give_back() -> None:
    """Give whole pages of what was freed back to the system; takes some milliseconds."""
    with suppress(*_OTHER_LIBRARY):
        ctypes.CDLL(None).malloc_trim(0)


class Heap:
    """Gives back what was freed, when work has come to rest and every now and then.

    Not each time that there is nothing to do for a moment: the next frame would page it in anew.
    """

    def __init__(self) -> None:
        self._used = False
        self._tidied_at = time.monotonic()

    def tidy(self, *, busy: bool) -> None:
        """Give whole pages back where it is time to; takes some milliseconds then."""
        self._used |= busy
        due_s = AT_WORK_EVERY_S if busy else AT_REST_EVERY_S
        if self._used and time.monotonic() - self._tidied_at >= due_s:
            self._used, self._tidied_at = False, time.monotonic()
            give_back()
