"""The threads that put frames on the disk, and the short queue before them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from segbatch.acquire.camera.waits import DiskWaits
from segbatch.log import get_logger

DEPTH = 32  # frames between the ring buffer and the disk, 100 MB at the Zelux's size
_POLL_S = 0.05
_logger = get_logger(__name__)


class Writers:
    """Do jobs in a few threads; the first that fails ends the others' work.

    One thread hands jobs over and looks at ``room``; ``put`` never waits
    while there is some. Jobs behind a failure are thrown away. ``waits`` is
    told of each.
    """

    def __init__(self, threads: int, depth: int = DEPTH, *, waits: DiskWaits | None = None) -> None:
        self.failure: Exception | None = None
        self._waits = waits or DiskWaits()
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._depth = depth
        self._is_over = False
        self._threads = [
            threading.Thread(target=self._work, name=f"camera-writer-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def room(self) -> int:
        """How many jobs can be put without waiting for the disk."""
        return max(self._depth - self._jobs.qsize(), 0)

    @property
    def behind(self) -> bool:
        """Whether the disk is slower than the camera at the moment."""
        return self._jobs.qsize() > self._depth // 2

    def put(self, job: Callable[[], None]) -> None:
        """Hand a job over."""
        self._jobs.put(job)

    def close(self, timeout_s: float) -> bool:
        """Finish what was handed over; return whether that was done in time.

        What is not begun by then is thrown away: nobody counts it any more.
        """
        for _ in self._threads:
            self._jobs.put(None)
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), _POLL_S))
        self._is_over = True
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self.failure is None and not self._is_over:
                try:
                    with self._waits.on("to write frames or records"):
                        job()
                except OSError as error:
                    self.failure = error
                except Exception as error:
                    # A thread that died of it would leave the queue to nobody.
                    _logger.exception("a frame could not be written")
                    self.failure = error
            del job  # it holds a frame
