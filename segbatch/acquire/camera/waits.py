"""What the disk was asked for and has not done yet: a disk that hangs says nothing by itself."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

TELL_AFTER_S = 5.0  # longer than a disk that is merely busy takes


class DiskWaits:
    """Questions to the disk that are under way, in whichever thread."""

    def __init__(self) -> None:
        self._begun: dict[object, tuple[float, float, str]] = {}
        self._guard = threading.Lock()

    @contextlib.contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Note that the block may wait for the disk, and for what."""
        question = object()
        with self._guard:
            self._begun[question] = time.monotonic(), time.time(), what
        try:
            yield
        finally:
            with self._guard:
                del self._begun[question]

    def told(self, place: str) -> str | None:
        """Say what has been waited for longest, and since when; None where nothing is for long.

        Parameters
        ----------
        place
            Whose disk it is.
        """
        with self._guard:
            begun, since, what = min(self._begun.values(), default=(float("inf"), 0.0, ""))
        if time.monotonic() - begun < TELL_AFTER_S:
            return None
        moment = datetime.fromtimestamp(since, UTC).isoformat(timespec="seconds")
        return f"waiting since {moment} for the disk of {place} {what}"
