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
from segbatch.service.record.atomic import storage_error

LOCK_NAME = ".segbatch.lock"
_SHOWN_CHARACTERS = 120  # of the command that holds a folder
_logger = log.get_logger(__name__)


@contextmanager
def folder_lock(root: Path) -> Iterator[None]:
    """Hold ``root`` for this process while the block runs.

    The operating system's file lock is what counts: it ends with the process,
    however that ends, so a lock file without a holder is stale and is taken
    over. The file's text names the holder for the person who is refused.
    A folder above or below that is being processed is refused as well.

    Raises
    ------
    StorageError
        Another process holds this folder, one above it or one below it, or
        no lock file can be written here.
    """
    path = root / LOCK_NAME
    handle = _take(path)
    try:
        for other in _neighbours(root):
            holder = _holder_of(other)
            if holder is not None:
                raise _refusal(other.parent, holder)
        yield
    finally:
        _release(path, handle)


def _release(path: Path, handle: BinaryIO) -> None:
    if sys.platform == "win32":  # an open file cannot be removed there
        handle.close()
    with suppress(OSError):  # the folder may be gone; the lock itself ends with the handle
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
    mine = os.fstat(handle.fileno())
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def _neighbours(root: Path) -> Iterator[Path]:
    resolved = root.resolve()
    for parent in resolved.parents:
        yield parent / LOCK_NAME
    for folder, _, files in os.walk(resolved):
        if LOCK_NAME in files and Path(folder) != resolved:
            yield Path(folder) / LOCK_NAME


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


if sys.platform == "win32":
    import msvcrt

    # The first bytes name the holder and must stay readable: lock one far behind them.
    _LOCKED_BYTE = 1 << 30

    def _try_lock(handle: BinaryIO) -> bool:
        handle.seek(_LOCKED_BYTE)
        try:
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            handle.seek(0)
        return True
else:
    import fcntl

    def _try_lock(handle: BinaryIO) -> bool:
        try:
            fcntl.flock(handle.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
