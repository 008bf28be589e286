"""Which frames are under way, on disk: what a process that dies leaves behind.

A frame may end the process that works on it: a fault in a native library, or a
hang that the service manager ends. The next process reads here which frames
were under way; one that was in two such deaths is not touched again. A process
that is killed from outside leaves no traceback. That casts no suspicion, unless
the same frame is under way time after time: what kills then may be the memory
that it takes.
"""

from __future__ import annotations

import faulthandler
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from segbatch import log
from segbatch.errors import EngineError
from segbatch.service.record.atomic import make_folder, storage_error, write_whole
from segbatch.service.record.lock import process_lock

DEATHS = 2  # of a fault, after which a frame is set aside
# Deaths in a row without a traceback, after which a frame goes alone, and is set aside.
UNEXPLAINED_ALONE, UNEXPLAINED = 3, 6
_MARKS, _SUSPECTS, _CRASH = "under-way.json", "suspects.json", "crash.log"
_UNEXPLAINED, _LOCK = "unexplained.json", "lock"
_logger = log.get_logger(__name__)
_T = TypeVar("_T")


class UnderWay:
    """The frames under way of one process, and those that earlier ones died of.

    Parameters
    ----------
    folder
        A folder of this service alone; it is made.

    Raises
    ------
    StorageError
        The folder cannot be written, or another process notes its frames there.
    """

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self._folder = folder
        self._held = ExitStack()
        self._held.enter_context(process_lock(folder / _LOCK))
        self._guard = threading.Lock()
        self._marked: Counter[str] = Counter()
        self._is_writing = True
        self._deaths, self._unexplained = self._learn()
        try:
            self._marks = (folder / _MARKS).open("wb", buffering=0)
            self._crash = (folder / _CRASH).open("wb", buffering=0)
        except OSError as error:
            raise storage_error(error, folder) from error
        faulthandler.enable(self._crash)

    @contextmanager
    def mark(self, raw: Path, page: int) -> Iterator[None]:
        """Name a frame as under way while the block runs."""
        name = _name(raw, page)
        self._change(name, 1)
        try:
            yield
        finally:
            self._change(name, -1)

    def is_suspect(self, raw: Path) -> bool:
        """Tell whether frames of this file are to be tried one by one."""
        suspects = [
            *self._deaths,
            *(name for name, count in self._unexplained.items() if count >= UNEXPLAINED_ALONE),
        ]
        return bool(suspects) and any(name.startswith(f"{_file_of(raw)}\n") for name in suspects)

    def why_set_aside(self, raw: Path, page: int) -> EngineError | None:
        """Return why a frame is not to be touched again, None where it may be."""
        if not (self._deaths or self._unexplained):
            return None
        name = _name(raw, page)
        deaths = self._deaths[name] + self._unexplained[name]
        if self._deaths[name] < DEATHS and self._unexplained[name] < UNEXPLAINED:
            return None
        return EngineError(
            f"the process died {deaths} times while this frame was under way",
            "a frame that the engine survives",
            "try it alone with segbatch process, and report it with the frame",
        )

    def close(self) -> None:
        """Leave nothing behind but what is known of earlier deaths."""
        faulthandler.disable()
        self._marks.close()
        self._crash.close()
        with suppress(OSError):
            for name in (_MARKS, _CRASH, _UNEXPLAINED):
                (self._folder / name).unlink(missing_ok=True)
        self._held.close()

    def _learn(self) -> tuple[Counter[str], Counter[str]]:
        """Count the deaths of each frame that was under way: of a fault, and unexplained."""
        deaths: Counter[str] = Counter(_read(self._folder / _SUSPECTS, dict[str, int]) or {})
        before = _read(self._folder / _UNEXPLAINED, dict[str, int]) or {}
        left = _read(self._folder / _MARKS, list[str]) or []
        crash = self._folder / _CRASH
        if not left:
            return deaths, Counter()
        if not crash.is_file() or not crash.stat().st_size:
            unexplained = Counter({name: before.get(name, 0) + 1 for name in left})
            write_whole(self._folder / _UNEXPLAINED, msgspec.json.encode(unexplained))
            return deaths, unexplained
        deaths.update(left)
        write_whole(self._folder / _SUSPECTS, msgspec.json.encode(deaths))
        _logger.error(
            "the last process died of a fault; its frames are tried again one by one",
            frames=[name.partition("\n")[0] for name in left],
            fault=crash.read_text(errors="replace").partition("\n")[0],
        )
        return deaths, Counter(before)

    def _change(self, name: str, by: int) -> None:
        with self._guard:
            self._marked[name] += by
            if not self._marked[name]:
                del self._marked[name]
            content = msgspec.json.encode(list(self._marked))
            # One write, so that whatever ends the process leaves the list before or after it.
            try:
                os.pwrite(self._marks.fileno(), content.ljust(self._marks_bytes()), 0)
            except OSError as error:
                if self._is_writing:
                    _logger.error(
                        "frames under way are not noted: none is set aside if it ends the process",
                        folder=str(self._folder),
                        why=error.strerror,
                    )
                self._is_writing = False
            else:
                self._is_writing = True

    def _marks_bytes(self) -> int:
        return os.fstat(self._marks.fileno()).st_size


def _name(raw: Path, page: int) -> str:
    return f"{_file_of(raw)}\n{page}"


def _file_of(raw: Path) -> str:
    """Name a file with its time stamp: one that was replaced is another."""
    try:
        stamp = raw.stat().st_mtime_ns
    except OSError:
        stamp = 0
    return f"{os.fsencode(raw).decode('utf-8', 'backslashreplace')}\n{stamp}"


def _read(path: Path, kind: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError):
        return None
