"""Which frames are under way, on disk: what a process that dies leaves behind.

A frame may end the process that works on it: a fault in a native library, or a
hang that the service manager ends. The next process reads here which frames
were under way; one that was in two such deaths is not touched again. A process
that is killed from outside leaves no traceback, and casts no suspicion.
"""

from __future__ import annotations

import faulthandler
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from segbatch import log
from segbatch.errors import EngineError
from segbatch.service.record.atomic import make_folder, storage_error, write_whole

DEATHS = 2  # after which a frame is set aside
_MARKS, _SUSPECTS, _CRASH = "under-way.json", "suspects.json", "crash.log"
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
        The folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self._folder = folder
        self._guard = threading.Lock()
        self._marked: Counter[str] = Counter()
        self._deaths = self._learn()
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
        """Tell whether a process died while a frame of this file was under way."""
        return bool(self._deaths) and any(
            name.startswith(f"{_file_of(raw)}\n") for name in self._deaths
        )

    def why_set_aside(self, raw: Path, page: int) -> EngineError | None:
        """Return why a frame is not to be touched again, None where it may be."""
        if not self._deaths:
            return None
        deaths = self._deaths[_name(raw, page)]
        if deaths < DEATHS:
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
        for name in (_MARKS, _CRASH):
            (self._folder / name).unlink(missing_ok=True)

    def _learn(self) -> Counter[str]:
        """Count the frames that were under way when the last process died of a fault."""
        deaths: Counter[str] = Counter(_read(self._folder / _SUSPECTS, dict[str, int]) or {})
        left = _read(self._folder / _MARKS, list[str]) or []
        crash = self._folder / _CRASH
        if not left or not crash.is_file() or not crash.stat().st_size:
            return deaths
        deaths.update(left)
        write_whole(self._folder / _SUSPECTS, msgspec.json.encode(deaths))
        _logger.error(
            "the last process died of a fault; its frames are tried again one by one",
            frames=[name.partition("\n")[0] for name in left],
            fault=crash.read_text(errors="replace").partition("\n")[0],
        )
        return deaths

    def _change(self, name: str, by: int) -> None:
        with self._guard:
            self._marked[name] += by
            if not self._marked[name]:
                del self._marked[name]
            content = msgspec.json.encode(list(self._marked))
            # One write, so that whatever ends the process leaves the list before or after it.
            os.pwrite(self._marks.fileno(), content.ljust(self._marks_bytes()), 0)

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
