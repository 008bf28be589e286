"""The camera of a service in a process of its own, which can crash and hang by itself.

In the service's process its images would be late: every thread there shares one memory map, one
allocator and one interpreter's lock with those that segment.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import msgspec

from segbatch.acquire.camera.child import (
    BEAT_S,
    CORE_HANGS,
    STUCK_S,
    Begin,
    Word,
    longest_answer_s,
)
from segbatch.acquire.camera.door import PORT
from segbatch.acquire.camera.ledger import Counts
from segbatch.acquire.camera.left import LeftFolder, settle
from segbatch.acquire.camera.status import CameraStatus, Retry
from segbatch.log import get_logger

if TYPE_CHECKING:
    from segbatch.settings.sections import CameraSettings

CHILD = "segbatch.acquire.camera.child"
BEGINS_S = 60.0  # longest until its first line: its libraries may come from a cold disk
FOLDERS_KEPT = 3  # at least: the one that is written to, and those whose records may not be final
LETS_GO_S = 5.0  # longest that a killed process is waited for
_logger = get_logger(__name__)


class CameraProcess:
    """Has the camera driven by a ``CameraSession`` in another process; never raises into its owner.

    What a session promises holds. Where its process ends or does not say a
    word any more, that is the state ``failed`` too, the record of its run says
    so, and another process is started, as late as the session would try again.

    Parameters
    ----------
    settings
        The camera and its runs, which are new folders in ``settings.out``.
    on_change
        Called from a thread after each change of ``status``.
    port
        Of Micro-Manager's server.
    min_free_gib
        Room on the disk below which no frame is taken.
    processors
        That it may use; empty for those of the calling thread.
    """

    def __init__(
        self,
        settings: CameraSettings,
        on_change: Callable[[], None],
        *,
        port: int = PORT,
        min_free_gib: float = 0.0,
        processors: Sequence[int] = (),
    ) -> None:
        self._settings = settings
        self._on_change = on_change
        self._port = port
        self._min_free_gib = min_free_gib
        self._processors = list(processors)
        self._status = CameraStatus()
        self._retry = Retry()
        self._before = Counts()  # of the processes that have ended
        self._counts = Counts()  # of the one that runs
        self._folders: list[LeftFolder] = []  # the last that it made
        self._lost = 0  # frames that its runs before had taken and not written
        self._finished = False
        self._why = ""  # it was killed by us
        self._stop = threading.Event()
        self._guard = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    @property
    def status(self) -> CameraStatus:
        """Where the camera stands now."""
        return self._retry.told_in(self._status)

    @property
    def min_free_gib(self) -> float:
        """Room on the disk below which no frame is taken. Set anew, it is for the next run."""
        return self._min_free_gib

    @min_free_gib.setter
    def min_free_gib(self, value: float) -> None:
        with self._guard:
            self._min_free_gib = value
            self._tell(Word(min_free_gib=value))

    @property
    def pid(self) -> int | None:
        """Of the process that drives the camera now; None where there is none."""
        child = self._child
        return child.pid if child is not None else None

    def start(self) -> None:
        """Begin; returns at once. The other process gets the priority of the calling thread."""
        self._thread = threading.Thread(target=self._work, name="camera-process", daemon=True)
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Have the run under way ended and the camera let go; returns at once, any thread may ask.

        Not from a signal handler: what it interrupted may hold the lock that this takes.
        """
        self._stop.set()
        with self._guard:
            self._tell(Word(stop=True))

    def stop(self, timeout_s: float) -> bool:
        """Ask to stop; return whether the run was ended and the camera let go in time.

        Where it was not, the process is killed.
        """
        self.ask_to_stop()
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            return True
        self._kill(f"hangs: it did not end within {timeout_s:g} s and was killed")
        self._thread.join(LETS_GO_S)
        return False

    def _work(self) -> None:
        if hasattr(signal, "pthread_sigmask"):
            # The next process begins without them, until it ignores them itself.
            signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        while not self._stop.is_set() and not self._is_done():
            begun = time.monotonic()
            error = self._drive()
            if error is None:
                break
            _logger.error("the camera's process is gone", error=error)
            if self._stop.is_set():
                break
            self._retry.after(time.monotonic() - begun)
            self._set(CameraStatus(state="failed", run=self._status.run, error=error))
            self._retry.wait(self._stop)
        self._set(CameraStatus(run=self._status.run))

    def _is_done(self) -> bool:
        return 0 < self._settings.frames <= self._before.taken

    def _drive(self) -> str | None:
        """Have one process drive the camera until it ends; return what it should not have."""
        self._folders, self._counts, self._lost = [], Counts(), 0
        self._finished, self._why = False, ""
        try:
            self._begin()
            if self._child is not None:
                self._follow(self._child)
        except OSError as refused:
            self._kill(f"cannot be started: {refused.strerror or refused}")
        except Exception as fault:
            # A fault of ours must not end the camera for good; it is told with its place.
            _logger.exception("the camera's process is left")
            self._kill(f"is left: {type(fault).__name__}: {fault}")
        return self._let_go()

    def _let_go(self) -> str | None:
        """Have the process end, and count what it did; return what it should not have."""
        child = self._child
        if child is None:
            return self._why or None
        try:
            code = child.wait(LETS_GO_S)
        except subprocess.TimeoutExpired:
            self._kill("hangs: it closed its pipe and did not end")
            code = child.wait()
        with self._guard:
            self._child = None
            for pipe in (child.stdin, child.stdout):
                with contextlib.suppress(OSError):
                    cast("BinaryIO", pipe).close()
        error = None if code == 0 and self._finished else self._why or self._ended_by(code)
        if error is not None:
            self._settle(error)
        self._before, self._counts = self._counts.after(self._before), Counts()
        return error

    def _begin(self) -> None:
        """Start the process, unless it is not wanted any more."""
        settings = self._settings
        if settings.frames:
            left = settings.frames - self._before.taken
            settings = msgspec.structs.replace(settings, frames=left)
        with self._guard:
            if self._stop.is_set():
                return
            self._child = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-P", "-m", CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
            )
            self._tell(Begin(settings, self._port, self._min_free_gib, self._processors))

    def _tell(self, line: Begin | Word) -> None:
        if self._child is not None:
            with contextlib.suppress(OSError):  # it is gone, which its own pipe tells
                cast("BinaryIO", self._child.stdin).write(msgspec.json.encode(line) + b"\n")

    def _follow(self, child: subprocess.Popen[bytes]) -> None:
        """Take its lines until they end; end it where none comes, or none that can be read."""
        lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        reader = threading.Thread(
            target=_read, args=(child.stdout, lines), name="camera-reader", daemon=True
        )
        reader.start()
        patience_s, goes_on = BEGINS_S, True
        while goes_on:
            try:
                goes_on = self._hear(lines, patience_s)
            except Exception as fault:
                # As above; what it says until its end still counts.
                _logger.exception("the camera's process is left")
                self._kill(f"is left: {type(fault).__name__}: {fault}")
            patience_s = longest_answer_s(self._settings) + 2 * STUCK_S + BEAT_S
        reader.join()

    def _hear(self, lines: queue.SimpleQueue[bytes | None], patience_s: float) -> bool:
        """Take its next line; return whether another may come."""
        try:
            line = _next_of(lines, patience_s)
            if line is None:
                return False
            told = msgspec.json.decode(line, type=CameraStatus)
        except queue.Empty:
            self._kill(f"hangs: it did not say a word for {patience_s:.0f} s and was killed")
            self._set(msgspec.structs.replace(self._status, state="failed", error=self._why))
        except msgspec.DecodeError as error:
            self._kill(f"hangs: what it says cannot be read ({error}); it was killed")
        else:
            self._take(told)
        return True

    def _take(self, told: CameraStatus) -> None:
        self._counts = told.counts
        if told.state != "acquiring":
            self._lost = told.frames_taken - told.frames_written
        elif [Path(told.run)] != [each.folder for each in self._folders[-1:]]:
            under_way_too = told.frames_taken - self._lost
            before = msgspec.structs.replace(told.counts, written=under_way_too)
            self._folders.append(LeftFolder(Path(told.run), before))
        kept = self._folders
        while len(kept) > FOLDERS_KEPT and kept[1].before.written <= told.frames_written:
            del kept[0]
        self._finished = told.state == "off"
        self._retry.is_in(told.retry_in_s)
        if told.error and told.retry_in_s is None and told.error != self._status.error:
            _logger.warning("the camera waits", state=told.state, error=told.error)
        self._set(told)

    def _set(self, status: CameraStatus) -> None:
        """Take a status over, with the counts since the beginning."""
        run = status.run or self._status.run
        status = msgspec.structs.replace(status, run=run, retry_in_s=None)
        status = status.counting(self._counts.after(self._before))
        if status != self._status:
            self._status = status
            self._on_change()

    def _kill(self, why: str) -> None:
        with self._guard:
            self._why = self._why or f"the camera's process {why}"
            if self._child is not None:
                self._child.kill()

    def _ended_by(self, code: int) -> str:
        if code == CORE_HANGS and self._status.error:
            return self._status.error
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return f"the camera's process ended {how}"

    def _settle(self, error: str) -> None:
        """Bring what it left to an end, and count what it did not tell any more."""
        try:
            self._counts = settle(self._folders, self._counts, error)
        except Exception:  # a disk that is gone, a file that is none: the camera goes on
            runs = [str(each.folder) for each in self._folders[-1:]]
            _logger.exception("the record of a run stays as it was left", runs=runs)


def _next_of(lines: queue.SimpleQueue[bytes | None], patience_s: float) -> bytes | None:
    """Return the next line; ``queue.Empty`` where it does not come in time."""
    with contextlib.suppress(queue.Empty):
        return lines.get(timeout=patience_s / 2)
    # Time also passes while this process is held; then what was said is read first.
    return lines.get(timeout=patience_s / 2)


def _read(pipe: BinaryIO, lines: queue.SimpleQueue[bytes | None]) -> None:
    buffer = b""
    try:
        while part := pipe.read(1 << 16):
            *whole, buffer = (buffer + part).split(b"\n")
            for line in whole:
                lines.put(line)
    finally:
        lines.put(None)
