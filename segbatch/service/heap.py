"""Memory that was freed goes back to the system, where the C library is glibc.

Frames are large, are worked on in threads that come and go, and their memory is freed among
smaller blocks that stay. glibc keeps such memory, in as many places as there were threads; of
no use to anybody, it creeps up for hours although nothing is lost.
"""

from __future__ import annotations

import ctypes
import time
from contextlib import suppress

TIDY_EVERY_S = 60.0
_M_ARENA_MAX = -8  # malloc.h of glibc
_OTHER_LIBRARY = (OSError, AttributeError, TypeError)


def bound_the_heap() -> None:
    """Have what was freed kept in two places, not in eight for each core."""
    with suppress(*_OTHER_LIBRARY):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


class Heap:
    """Gives back what was freed, when work has come to rest and every now and then."""

    def __init__(self) -> None:
        self._was_busy = False
        self._tidied_at = time.monotonic()

    def tidy(self, *, busy: bool) -> None:
        """Give whole pages back where it is time to; takes some milliseconds then."""
        at_rest, self._was_busy = self._was_busy and not busy, busy
        if at_rest or time.monotonic() - self._tidied_at >= TIDY_EVERY_S:
            self._tidied_at = time.monotonic()
            with suppress(*_OTHER_LIBRARY):
                ctypes.CDLL(None).malloc_trim(0)
