"""The disk of one run: its writers, the room that is left, and what it failed of, in words."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from segbatch.acquire.camera.files import storage_error
from segbatch.acquire.camera.room import free_bytes, no_room
from segbatch.acquire.camera.writing import Writers
from segbatch.errors import SegbatchError, StorageError

if TYPE_CHECKING:
    from segbatch.acquire.camera.waits import DiskWaits

SAVE_S = 5.0  # for the records on a disk that did not take the frames
ROOM_EVERY_S = 1.0  # between two looks at the room that is left


class RunDisk:
    """What a run has written, and how it hears of a disk that is full, gone or stuck.

    Parameters
    ----------
    threads
        That write at once.
    folder
        Returns the folder that is written to.
    min_free
        Bytes that are to be left free.
    timeout_s
        Longest time that it may take nothing while frames wait.
    waits
        Is told of every question that the disk may hang on.
    """

    def __init__(
        self,
        threads: int,
        folder: Callable[[], Path],
        *,
        min_free: int,
        timeout_s: float,
        waits: DiskWaits,
    ) -> None:
        self.writers = Writers(threads, waits=waits)
        self._folder = folder
        self._min_free = min_free
        self._timeout_s = timeout_s
        self._free: int | None = None
        self._looked_at_room = 0.0

    def look_at_room(self) -> None:
        """Have the writers look at the room that is left, if it is time."""
        is_due = time.monotonic() - self._looked_at_room >= ROOM_EVERY_S
        if self._min_free and is_due and self.writers.room:
            self._looked_at_room = time.monotonic()
            self.writers.put(self._look)

    def _look(self) -> None:
        self._free = free_bytes(self._folder())

    def require(self) -> None:
        """Make sure that frames can be written.

        Raises
        ------
        SegbatchError
            One could not be written.
        NoRoomError
            There is less room than is to be left free.
        """
        if (failure := self.failure) is not None:
            raise failure
        if self._free is not None and self._free < self._min_free:
            raise no_room(self._folder(), self._free, self._min_free)

    def require_in_time(self, waited_s: float) -> None:
        """Make sure that it has not been waited for too long: else a ``StorageError``."""
        if waited_s > self._timeout_s:
            raise self.stuck()

    @property
    def failure(self) -> SegbatchError | None:
        """What the writers failed of, if they did."""
        error = self.writers.failure
        return self.told(error) if error is not None else None

    def stuck(self) -> StorageError:
        """Say that it takes no more frames."""
        return StorageError(
            f"{self._folder()}: the disk takes no more frames",
            "a disk as fast as the camera",
            "look at the drive or the share",
        )

    def told(self, error: Exception) -> SegbatchError:
        """Return an error of the writers in the words of whoever can act on it."""
        if isinstance(error, SegbatchError):
            return error
        if isinstance(error, OSError):
            return storage_error(error, self._folder())
        return SegbatchError(
            f"cannot write {self._folder()}: {text_of(error)}",
            "frames that can be written",
            "this is a fault of segbatch and not of the disk: its log has the place",
        )

    def attempt(
        self, step: Callable[[], None], failure: BaseException | None
    ) -> BaseException | None:
        """Take a step that the disk may refuse; return the first failure."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 - it is raised at the end
            return failure or self.told(error)
        return failure

    def do_if_it_answers(self, step: Callable[[], None]) -> None:
        """Take a last step in a thread that can be left behind, as the writers were."""

        def try_it() -> None:
            with suppress(OSError):  # that the disk is stuck is told already
                step()

        thread = threading.Thread(target=try_it, name="camera-record", daemon=True)
        thread.start()
        thread.join(SAVE_S)
        if thread.is_alive():
            raise self.stuck()


def text_of(error: BaseException) -> str:
    """Return an error's own words, with the name of one that is not ours."""
    return str(error) if isinstance(error, SegbatchError) else f"{type(error).__name__}: {error}"
