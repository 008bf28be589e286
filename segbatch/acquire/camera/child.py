"""A process that drives a camera: ``apart`` starts it, and ends it by a word or by its own end.

    python -P -m segbatch.acquire.camera.child

Its first line of input, a ``Begin``, says what to drive; the lines after it, each a ``Word``, say
what is new. It answers with lines of its own, each a ``CameraStatus``: at once where a state or a
folder begins, soon after counts change, and in any case every ``BEAT_S``, by which the other end
knows that it is not stuck.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import BinaryIO

import msgspec

from segbatch import log
from segbatch.acquire.camera.door import hanging_core
from segbatch.acquire.camera.run import FINISH_S
from segbatch.acquire.camera.session import CameraSession
from segbatch.acquire.camera.status import CameraStatus
from segbatch.heap import keep_what_was_freed
from segbatch.settings.sections import CameraSettings

BEAT_S = 1.0
STUCK_S = 5.0  # longest without a beat, beyond what an answer of the core may take
CAMERA_NICE = -10  # of -20: an image that nobody takes in time is lost, all else can wait
CAMERA_REAL_TIME = 1  # of 99: before every thread that is not real-time, as soon as it is woken
CORE_HANGS = 75  # exit code; the last status says of what
PAUSE_S = 0.05  # between two lines that tell of counts: a reader wants the newest only
_logger = log.get_logger(__name__)


class Begin(msgspec.Struct, frozen=True):
    """The first line: what to drive."""

    settings: CameraSettings
    port: int
    min_free_gib: float
    processors: list[int]


class Word(msgspec.Struct, frozen=True, omit_defaults=True):
    """A later line: what is new."""

    stop: bool = False
    min_free_gib: float | None = None


def longest_answer_s(settings: CameraSettings) -> float:
    """Return the longest time, s, that one question to the camera's core may take."""
    return settings.timeout_s + 2 * (settings.exposure_ms or 0.0) / 1000


def longest_end_s(settings: CameraSettings) -> float:
    """Return the time, s, in which a session that was asked to stop has ended, or never will.

    An open camera answers the question under way, stops, empties its ring and is let go.
    """
    return FINISH_S + 4 * longest_answer_s(settings)


def main() -> int:
    """Drive the camera until its frames are taken or the input says or brings the end.

    Returns the exit code: 0, or ``CORE_HANGS`` where nothing but the end of this process gets
    rid of a core.
    """
    _leave_signals_to_the_service()
    keep_what_was_freed()
    pipe = Pipe()
    log.configure()
    first = sys.stdin.buffer.readline()
    if not first:
        return 0
    begin = msgspec.json.decode(first, type=Begin)
    _go_first(begin.processors)
    return _drive(begin, sys.stdin.buffer, pipe)


def _drive(begin: Begin, heard: BinaryIO, pipe: Pipe) -> int:
    """Run the session, and tell of it until it has ended or will not; return the exit code."""
    teller = Teller(begin, pipe)
    session = teller.session
    listener = Listener(heard, session, longest_end_s(begin.settings))
    session.start()
    bound_s = longest_answer_s(begin.settings) + STUCK_S
    _end_where_stuck(bound_s)
    while not session.wait(PAUSE_S):
        _end_where_stuck(bound_s)
        teller.changed.wait(BEAT_S)
        teller.changed.clear()
        # Its run has ended by then, with all that could be saved.
        if session.status.state == "failed" and hanging_core():
            teller.tell_at_last()
            return CORE_HANGS
        teller.tell()
        if listener.should_have_ended:
            _logger.error("the camera does not let go: left", waiting_for=hanging_core())
            return CORE_HANGS
    faulthandler.cancel_dump_traceback_later()
    teller.tell_at_last()
    return 0


def _leave_signals_to_the_service() -> None:
    """Ignore those to the whole group: the service says itself when to stop."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGABRT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _go_first(processors: list[int]) -> None:
    """Go before all else, where the system lets this user, and on the processor left free, too."""
    if sys.platform != "win32":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, CAMERA_NICE)
    if sys.platform == "linux":
        # The kernel keeps a part of each processor for the others, should a driver never rest.
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(CAMERA_REAL_TIME))
        if processors:
            with suppress(OSError):
                os.sched_setaffinity(0, processors)


def _end_where_stuck(bound_s: float) -> None:
    """End this process unless this is called again in time.

    A library that hangs may hold the interpreter's lock. This needs none, and says who has it.
    """
    faulthandler.dump_traceback_later(bound_s, exit=True, file=2)


class Pipe:
    """The way to the other end: whole lines, and none that somebody else printed.

    Libraries print to descriptor 1, which leads to the log from here on.
    """

    def __init__(self) -> None:
        self._pipe = os.dup(1)
        os.dup2(2, 1)
        self._rest = b""
        self._may_wait(False)

    def say(self, status: CameraStatus) -> None:
        """Write a line, if there is room: where nobody reads, what comes later says more."""
        data = self._rest + msgspec.json.encode(status) + b"\n"
        with suppress(OSError):  # nobody is left to read: the frames are saved all the same
            written = os.write(self._pipe, data)
            begun = data[written - 1 : written] != b"\n"
            self._rest = data[written:].partition(b"\n")[0] + b"\n" if begun else b""

    def say_at_last(self, status: CameraStatus) -> None:
        """Write the last line, however long it takes to be read."""
        self._may_wait(True)
        self.say(status)

    def _may_wait(self, may: bool) -> None:
        with suppress(OSError, AttributeError):  # not on Windows
            os.set_blocking(self._pipe, may)


class Teller:
    """Tells the other end how a session stands, which it makes; no line is older than the last.

    Parameters
    ----------
    begin
        What the session is to drive.
    pipe
        The way to the other end.
    """

    def __init__(self, begin: Begin, pipe: Pipe) -> None:
        self.changed = threading.Event()
        self._pipe = pipe
        self._told = CameraStatus()
        self._guard = threading.Lock()
        self.session = CameraSession(
            begin.settings, self._note, port=begin.port, min_free_gib=begin.min_free_gib
        )

    def tell(self) -> None:
        """Say how it stands now."""
        with self._guard:
            self._told = self.session.status
            self._pipe.say(self._told)

    def tell_at_last(self) -> None:
        """Say how it stands, however long that takes to be read."""
        with self._guard:
            self._pipe.say_at_last(self.session.status)

    def _note(self) -> None:
        now, told = self.session.status, self._told
        # The counts by which the other end settles a folder are those before its first frame.
        if (now.state, now.run) != (told.state, told.run):
            self.tell()
        self.changed.set()


class Listener:
    """Does what the lines of the service say; where they end it has ended, whichever way.

    Parameters
    ----------
    heard
        Where they come from.
    session
        Which is meant.
    longest_end_s
        Time, s, in which it ends when it is asked to.
    """

    def __init__(self, heard: BinaryIO, session: CameraSession, longest_end_s: float) -> None:
        self._heard, self._session, self._longest_end_s = heard, session, longest_end_s
        self._alone_since = float("inf")
        threading.Thread(target=self._listen, name="camera-listener", daemon=True).start()

    @property
    def should_have_ended(self) -> bool:
        """Whether the service is gone for longer than the session's end may take."""
        return time.monotonic() - self._alone_since > self._longest_end_s

    def _listen(self) -> None:
        for line in self._heard:
            try:
                word = msgspec.json.decode(line, type=Word)
            except msgspec.DecodeError as error:
                # Each stands for itself, and the end of all of them is still to be heard.
                _logger.error("a line from the service is left out", why=str(error), line=line[:80])
                continue
            if word.min_free_gib is not None:
                self._session.min_free_gib = word.min_free_gib
            if word.stop:
                self._session.ask_to_stop()
        self._session.ask_to_stop()
        self._alone_since = time.monotonic()


if __name__ == "__main__":
    # All is on the disk: a library that hangs or crashes as it is unloaded must not matter.
    os._exit(main())
