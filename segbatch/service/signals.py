"""Stopping on a signal: the first one drains, the second one ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from segbatch.service.record.atomic import discard_live_partials

LOOK_S = 0.05  # between two looks of whoever waits
_SHOW_CURSOR = b"\x1b[?25h\n"


class Flag(threading.Event):
    """An event that a signal handler may set.

    Setting a ``threading.Event`` takes a lock, and a handler runs in the main
    thread, between any two of its steps: where it interrupts a wait for that
    event, which holds the lock for a moment, both wait for ever. This one is
    an attribute, and whoever waits looks at it again and again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_up = False

    def is_set(self) -> bool:
        """Tell whether it is set."""
        return self._is_up

    def set(self) -> None:
        """Set it; takes no lock."""
        self._is_up = True

    def clear(self) -> None:
        """Take it back; takes no lock."""
        self._is_up = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, or for ``timeout`` seconds; return whether it is set."""
        end = time.monotonic() + (float("inf") if timeout is None else timeout)
        while not self._is_up and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_S))
        return self._is_up


class Stopper:
    """Set by SIGINT or SIGTERM; ``exit_code`` is 128 plus the signal's number, as shells say."""

    def __init__(self) -> None:
        self.event: threading.Event = Flag()
        self._signals = 0
        self.exit_code: int | None = None

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        # Nothing here may wait for a lock: the code that was interrupted may hold it.
        self._signals += 1
        if self._signals > 1:
            discard_live_partials()
            if os.isatty(2):
                os.write(2, _SHOW_CURSOR)  # a progress bar hides it
            os._exit(128 + number)
        self.exit_code = 128 + number
        self.event.set()


@contextmanager
def stop_on_signals() -> Iterator[Stopper]:
    """Catch SIGINT and SIGTERM while the block runs, and put the old handlers back."""
    stopper = Stopper()
    before = {
        number: signal.signal(number, stopper._handle) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stopper
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
