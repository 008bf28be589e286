"""Stopping on a signal: the first one drains, the second one ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from segbatch.service.record.atomic import discard_live_partials

_SHOW_CURSOR = b"\x1b[?25h\n"


class Stopper:
    """Set by SIGINT or SIGTERM; ``exit_code`` is 128 plus the signal's number, as shells say."""

    def __init__(self) -> None:
        self.event = threading.Event()
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
