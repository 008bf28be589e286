"""Where a camera stands that is driven for weeks, and when it is tried again."""

from __future__ import annotations

import threading
import time
from typing import Literal

import msgspec

from segbatch.acquire.camera.ledger import Counts

FIRST_RETRY_S, LONGEST_RETRY_S = 1.0, 60.0
HEALTHY_S = 60.0  # of acquisition, after which a failure counts as a new one
State = Literal["off", "connecting", "acquiring", "waiting", "failed"]


class CameraStatus(msgspec.Struct, frozen=True):
    """Where the camera stands; counts are of all its runs since the session began.

    ``waiting``: somebody else is acquiring, or the disk has too little room.
    ``failed``: anything else. ``error`` says what; both are tried again after
    ``retry_in_s``. In every state ``error`` also says what a disk has been
    asked for and has not done for some seconds.
    """

    state: State = "off"
    frames_taken: int = 0
    frames_written: int = 0
    dropped: int = 0
    ring_used: int = 0
    ring_capacity: int = 0
    run: str = ""
    error: str | None = None
    retry_in_s: float | None = None

    @property
    def counts(self) -> Counts:
        """What it says of frames."""
        return Counts(
            self.frames_taken, self.frames_written, self.dropped, self.ring_used, self.ring_capacity
        )

    def counting(self, counts: Counts) -> CameraStatus:
        """Return this status with other counts."""
        return msgspec.structs.replace(
            self,
            frames_taken=counts.taken,
            frames_written=counts.written,
            dropped=counts.dropped,
            ring_used=counts.ring_used,
            ring_capacity=counts.ring_capacity,
        )


class Retry:
    """When it is tried again: after 1 s, then twice as long each time, up to a minute."""

    def __init__(self) -> None:
        self._next_s = FIRST_RETRY_S
        self._at: float | None = None

    def after(self, lasted_s: float) -> float:
        """Begin a pause after an attempt that failed when it had lasted so long; return it, s."""
        wait_s = FIRST_RETRY_S if lasted_s > HEALTHY_S else self._next_s
        self._next_s = min(2 * wait_s, LONGEST_RETRY_S)
        self.is_in(wait_s)
        return wait_s

    def is_in(self, wait_s: float | None) -> None:
        """Note when somebody else tries again; None where nobody waits for that."""
        self._at = None if wait_s is None else time.monotonic() + wait_s

    def wait(self, stop: threading.Event) -> None:
        """Wait for the end of the pause, or until ``stop`` is set."""
        if self._at is not None:
            stop.wait(self._at - time.monotonic())
        self._at = None

    def told_in(self, status: CameraStatus) -> CameraStatus:
        """Return a status with what is left of the pause."""
        at = self._at
        if at is None:
            return status
        left_s = max(at - time.monotonic(), 0.0)
        return msgspec.structs.replace(status, retry_in_s=round(left_s, 1))
