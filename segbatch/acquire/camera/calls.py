"""Calls of Micro-Manager's core from one thread, which can be left behind when the core hangs.

A device adapter may block for ever (a cable pulled at the wrong moment), and
no call of the core can be interrupted. Whoever asks waits for a bounded time;
the thread stays with the core and takes up the rest of its work if it returns.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from segbatch.acquire.camera.errors import CameraError, CameraSilentError
from segbatch.errors import SegbatchError

T = TypeVar("T")


class _Job(Generic[T]):
    def __init__(self, what: str, call: Callable[[], T]) -> None:
        self.what = what
        self.call = call
        self.done = threading.Event()
        self.answer: T | None = None
        self.error: Exception | None = None


class CoreCalls:
    """One thread that asks the core, one question after the other.

    Parameters
    ----------
    timeout_s
        Longest time that an answer may take.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._silent: tuple[_Job[Any], float] | None = None
        self._thread = threading.Thread(target=self._work, name="camera-core", daemon=True)
        self._thread.start()

    @property
    def silent(self) -> str:
        """What the core was asked and has not answered yet; empty where it answers."""
        if self._silent is None or self._silent[0].done.is_set():
            return ""
        job, since = self._silent
        return f"{job.what}, asked {time.monotonic() - since:.0f} s ago"

    def ask(self, what: str, call: Callable[[], T], *, extra_s: float = 0.0) -> T:
        """Return what ``call`` returns in the core's thread.

        Parameters
        ----------
        what
            Names the question in an error.
        extra_s
            Time that the answer may take on top, such as the exposure.

        Raises
        ------
        CameraSilentError
            No answer in time, now or to an earlier question.
        CameraError
            The core refused.
        """
        if self.silent:
            raise _no_answer(self.silent)
        job = _Job(what, call)
        asked = time.monotonic()
        self._jobs.put(job)
        if not job.done.wait(self.timeout_s + extra_s):
            self._silent = (job, asked)
            raise _no_answer(self.silent or what)
        if job.error is not None:
            if isinstance(job.error, SegbatchError):
                raise job.error
            raise CameraError(f"{what}: {_first_line(job.error)}") from job.error
        return cast("T", job.answer)

    def end(self, last: Callable[[], None]) -> bool:
        """Let ``last`` be the core's last work; return whether it was done in time.

        Where the core hangs, ``last`` runs if it ever returns.
        """
        job = _Job("letting the camera go", last)
        asked = time.monotonic()
        self._jobs.put(job)
        self._jobs.put(None)
        if self.silent:
            return False
        if not job.done.wait(self.timeout_s):
            self._silent = (job, asked)
            return False
        self._thread.join(self.timeout_s)
        return True

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job.answer = job.call()
            except Exception as error:  # noqa: BLE001 - it is raised where the question was asked
                job.error = error
            job.done.set()
            del job  # it holds the frames that were popped


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _no_answer(what: str) -> CameraSilentError:
    return CameraSilentError(
        f"Micro-Manager's core does not answer: {what}",
        "an answer within camera.timeout_s",
        "look at the camera's cable and power; if it never answers, start this program again",
    )
