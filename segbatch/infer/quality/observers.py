"""Processes that look at frames, beside the one that drives the run.

Measuring a frame is some three hundred short calls into OpenCV and NumPy, and each of them
gives Python's global lock away and waits to get it back. Two threads that do so are no faster
than one, and every other thread waits in the same queue. So frames are measured in processes
of their own: the pixels are read into shared memory, the answer is a message of JSON.

A process that dies or hangs costs nothing: its frame is measured here.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from segbatch.infer.quality.observe import MESSAGE_BYTES, Observation, Request, observe
from segbatch.infer.quality.shared import SharedFrames
from segbatch.log import get_logger

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

# More would only wait for what is left to do here, one frame after another.
MOST_OBSERVERS = 6
# Frames under way for each process: one that is measured, others that are read and recorded.
PLACES_EACH = 4
# Another process is started when so many more frames found all busy than found one free.
CROWDED = 8
FRAMES_THAT_PAY = 50  # to start a process takes the time of 20
ANSWERS_S = 60.0
RETRY_S = 60.0  # after one that could not be started
OBSERVER = "segbatch.infer.quality.observer"
_logger = get_logger(__name__)


class Observers:
    """Measures frames, in processes of its own where there are cores for them.

    Processes are started one after another, as frames have to wait for them.
    ``observe`` may be called from several threads.

    Parameters
    ----------
    most
        Processes to start at most; 0 where all is to be done in the calling thread.
    """

    def __init__(self, most: int) -> None:
        self._most = min(most, MOST_OBSERVERS)
        self._changed = threading.Condition()
        self._idle: list[_Observer] = []
        self._starting: _Observer | None = None
        self._count = 0
        self._crowded = 0
        self._closed = False
        self._not_before = float("-inf")
        self._shared = self._share() if self._most else None

    def __enter__(self) -> Observers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def most(self) -> int:
        """Frames that are measured at once at most, besides those of the calling threads."""
        return self._most

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return what ``numpy.empty`` does, where the processes see it too if there is room."""
        return np.empty(shape, dtype) if self._shared is None else self._shared.empty(shape, dtype)

    def expect(self, frames: int) -> None:
        """Start the first process where so many frames pay for it, so that they find it ready."""
        with self._changed:
            pays = frames >= FRAMES_THAT_PAY and not self._count
            if pays and self._may_start and self._shared is not None:
                self._start(self._shared)

    def observe(self, pixels: NDArray[Any], ceiling: int | None) -> Observation:
        """Return what ``observe.observe`` does; at its best on pixels in memory of ``empty``."""
        shared = self._shared
        if shared is None:
            return observe(pixels, ceiling)
        seen, offset = pixels, shared.offset_of(pixels)
        if offset is None:
            seen = shared.empty(pixels.shape, pixels.dtype)
            offset = shared.offset_of(seen)
        observer = self._borrow(shared) if offset is not None else None
        if observer is None or offset is None:
            return observe(pixels, ceiling)
        if seen is not pixels:
            np.copyto(seen, pixels)
        found: Observation | None = None
        try:
            found = observer.ask(Request(offset, pixels.shape, pixels.dtype.str, ceiling))
        except (OSError, ValueError, msgspec.DecodeError) as error:
            _logger.warning("a process that measures frames was lost", why=str(error))
        finally:
            self._give_back(observer, usable=found is not None)
        return observe(pixels, ceiling) if found is None else found

    def close(self) -> None:
        """End the processes; frames are measured in the calling thread from here on."""
        with self._changed:
            self._closed = True
            ending = [*self._idle, *([self._starting] if self._starting is not None else [])]
            self._idle.clear()
            self._starting = None
            self._changed.notify_all()
        for observer in ending:
            observer.close()
        if self._shared is not None:
            self._shared.close()

    def _share(self) -> SharedFrames | None:
        try:
            return SharedFrames(PLACES_EACH * self._most)
        except (AttributeError, OSError) as error:  # no Linux, or one that lends none
            _logger.info("frames are measured without processes of their own", why=str(error))
            self._most = 0
            return None

    def _borrow(self, shared: SharedFrames) -> _Observer | None:
        """Return a process that is free, None where the caller had better look by itself."""
        with self._changed:
            if self._closed or not self._most:
                return None
            self._welcome()
            if self._idle:
                self._crowded = max(0, self._crowded - 1)
                return self._idle.pop()
            self._crowded += 1
            more_wanted = not self._count or self._crowded >= CROWDED
            if more_wanted and self._may_start:
                self._start(shared)
            if self._starting is not None or not self._count:
                return None
            self._changed.wait_for(lambda: self._idle or self._closed or self._is_alone)
            return self._idle.pop() if self._idle else None

    @property
    def _is_alone(self) -> bool:
        """Whether no process is left that could be given back: one that starts is nobody's yet."""
        return self._count <= (self._starting is not None)

    @property
    def _may_start(self) -> bool:
        in_time = time.monotonic() >= self._not_before and self._starting is None
        return in_time and not self._closed and self._count < self._most

    def _start(self, shared: SharedFrames) -> None:
        self._crowded = 0
        try:
            self._starting = _Observer(shared.descriptor)
            self._count += 1
        except OSError as error:
            self._do_without(error)

    def _welcome(self) -> None:
        """Take the process that was started among the others, once it is ready."""
        observer = self._starting
        if observer is None:
            return
        try:
            if not observer.is_ready():
                return
            self._idle.append(observer)
        except OSError as error:
            observer.close()
            self._count -= 1
            self._do_without(error)
        self._starting = None
        self._changed.notify_all()

    def _do_without(self, error: OSError) -> None:
        """Start no further process for a while: the next would fare no better."""
        _logger.warning(
            "no further process measures frames for a while", why=str(error), retry_in_s=RETRY_S
        )
        self._not_before = time.monotonic() + RETRY_S

    def _give_back(self, observer: _Observer, *, usable: bool) -> None:
        with self._changed:
            keep = usable and not self._closed
            if keep:
                self._idle.append(observer)
                self._changed.notify()
            else:
                self._count -= 1
                self._changed.notify_all()
        if not keep:
            observer.close()


class _Observer:
    """One process, and the socket to it; ``descriptor`` names the frames' memory."""

    def __init__(self, descriptor: int) -> None:
        # A message is read by one call, whole: each call gives the interpreter's lock away.
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                bound = struct.pack("@ll", int(ANSWERS_S), 0)
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, bound)
                self._child = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    # -P: modules of the current folder, which may be anybody's, are none of ours.
                    [sys.executable, "-P", "-m", OBSERVER, str(descriptor), str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[descriptor, theirs.fileno()],
                )
            except OSError:
                self._socket.close()
                raise
        self._bound = time.monotonic() + ANSWERS_S

    def is_ready(self) -> bool:
        """Tell whether it has said so.

        Raises
        ------
        OSError
            It ended instead, or has had its time.
        """
        with suppress(BlockingIOError):
            self._hear(socket.MSG_DONTWAIT)
            return True
        if time.monotonic() > self._bound:
            raise TimeoutError(f"not ready within {ANSWERS_S:.0f} s")
        return False

    def ask(self, request: Request) -> Observation:
        """Have one frame looked at.

        Raises
        ------
        OSError
            The process is gone, or does not answer in time.
        ValueError, msgspec.DecodeError
            It answered something else.
        """
        self._socket.send(msgspec.json.encode(request))
        try:
            answer = self._hear()
        except BlockingIOError:
            raise TimeoutError(f"no answer within {ANSWERS_S:.0f} s") from None
        return msgspec.json.decode(answer, type=Observation)

    def close(self) -> None:
        """End the process."""
        self._child.kill()
        self._socket.close()
        self._child.wait()

    def _hear(self, flags: int = 0) -> bytes:
        answer = self._socket.recv(MESSAGE_BYTES, flags)
        if not answer:
            raise ConnectionError(f"it ended with {self._child.poll()}")
        return answer
