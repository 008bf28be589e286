"""One run at a time in a folder: a lock that dies with its process."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from segbatch import log
from segbatch.errors import StorageError
from segbatch.filelock import try_lock as _try_lock
from segbatch.service.record.atomic import storage_error

LOCK_NAME = ".segbatch.lock"
_SHOWN_CHARACTERS = 120  # of the command that holds a folder
_REMEMBERED = 4096  # folders that were found free
_logger = log.get_logger(__name__)


class FolderLock:
    """A folder that this process holds.

    Whoever begins to work above or below it from now on is refused; only those
    that began earlier are to be asked for.
    """

    def __init__(self, root: Path, handle: BinaryIO) -> None:
        self._root, self._path = root, root / LOCK_NAME
        self._identity = _identity(os.fstat(handle.fileno()))
        handle.seek(0)
        self._text = handle.read().decode(errors="replace")
        self._free: set[Path] = set()

    @property
    def stands(self) -> bool:
        """Whether the folder under this name is still the one that is held.

        False where another one stands in its place: a share that was mounted
        anew, or a lock file that somebody removed. True while nothing is there.
        """
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return not self._root.is_dir()
        except OSError:  # a share that does not answer for a while
            return True
        # Some shares number their files anew, so another number alone proves nothing.
        return _identity(there) == self._identity or _holder_of(self._path) == self._text

    def require_free(self, folder: Path, *, deep: bool) -> None:
        """Make sure that nobody works in a folder below since before this lock was taken.

        Parameters
        ----------
        deep
            In all folders below that one, too.

        Raises
        ------
        StorageError
            Another process holds it, one between, or one below it.
        """
        if folder in self._free:
            return
        place = self._root
        for part in folder.relative_to(self._root).parts:
            place /= part
            _refuse_if_held(place)
        if deep:
            for below in _locked_below(folder):
                _refuse_if_held(below)
        if len(self._free) >= _REMEMBERED:
            self._free.clear()
        self._free.add(folder)


@contextmanager
def folder_lock(root: Path, *, below: bool = True) -> Iterator[FolderLock]:
    """Hold ``root`` for this process while the block runs.

    The operating system's file lock is what counts: it ends with the process,
    however that ends, so a lock file without a holder is stale and is taken
    over. The file's text names the holder for the person who is refused.
    A folder above or below that is being processed is refused as well.

    Parameters
    ----------
    below
        Look for holders in all folders below, which takes as long as listing
        them. Otherwise ``FolderLock.require_free`` is to be asked before the
        work in one of them begins: for a tree that holds the runs of years.

    Raises
    ------
    StorageError
        Another process holds this folder, one above it or one below it, or
        no lock file can be written here.
    """
    with process_lock(root / LOCK_NAME) as handle:
        resolved = root.resolve()
        for parent in resolved.parents:
            _refuse_if_held(parent)
        if below:
            for folder in _locked_below(resolved):
                _refuse_if_held(folder)
        yield FolderLock(root, handle)


@contextmanager
def process_lock(path: Path) -> Iterator[BinaryIO]:
    """Hold the lock file ``path`` for this process while the block runs; as ``folder_lock``."""
    handle = _take(path)
    try:
        yield handle
    finally:
        _release(path, handle)


def _release(path: Path, handle: BinaryIO) -> None:
    with suppress(OSError):  # the folder may be gone; the lock itself ends with the handle
        ours = _still_there(path, handle)  # not that of another holder of another folder
        if sys.platform == "win32":  # an open file cannot be removed there
            handle.close()
        if ours:
            path.unlink(missing_ok=True)
    handle.close()


def _take(path: Path) -> BinaryIO:
    while True:
        try:
            handle = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        except OSError as error:
            raise storage_error(error, path) from error
        if not _try_lock(handle):
            holder = handle.read().decode(errors="replace")
            handle.close()
            raise _refusal(path.parent, holder)
        if _still_there(path, handle):
            break
        handle.close()  # the holder removed it between our open and our lock
    stale = handle.read()
    if stale:
        _logger.warning("stale lock taken over", folder=str(path.parent), left_by=_named(stale))
    me = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["segbatch", *sys.argv[1:]])[:_SHOWN_CHARACTERS],
    }
    try:
        handle.seek(0)
        handle.truncate()
        handle.write(json.dumps(me).encode())
        handle.flush()
    except OSError as error:
        path.unlink(missing_ok=True)
        raise storage_error(error, path) from error
    return handle


def _still_there(path: Path, handle: BinaryIO) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return _identity(there) == _identity(os.fstat(handle.fileno()))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _locked_below(root: Path) -> Iterator[Path]:
    """Yield the folders below ``root`` in which a lock file lies."""
    for folder, _, files in os.walk(root):
        if LOCK_NAME in files and Path(folder) != root:
            yield Path(folder)


def _refuse_if_held(folder: Path) -> None:
    holder = _holder_of(folder / LOCK_NAME)
    if holder is not None:
        raise _refusal(folder, holder)


def _holder_of(path: Path) -> str | None:
    """Return what the holder of a lock file wrote, None where nobody holds it."""
    try:
        with path.open("r+b") as handle:
            if _try_lock(handle):
                return None
            return handle.read().decode(errors="replace")
    except OSError:  # not there, or not ours to look at: then no run of ours could lock it either
        return None


def _refusal(folder: Path, holder: str) -> StorageError:
    return StorageError(
        f"{folder} is being processed by {_named(holder.encode())}",
        "one run at a time in a folder",
        "wait for that run to end, or stop it",
    )


def _named(content: bytes) -> str:
    try:
        holder = json.loads(content)
        process = f"process {holder['pid']} ({holder['command']})"
        return f"{process} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
