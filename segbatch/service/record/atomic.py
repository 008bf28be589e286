"""Files that appear whole or not at all, and errors of the disk in the caller's words."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO

from segbatch import wholefile
from segbatch.errors import StorageError

PARTIAL_SUFFIX = ".segbatch-part"

_AGAIN = "process continues where it stopped when it is run again, serve by itself"
_ELSEWHERE = "write elsewhere: --out DIR, or out in serve's [[watch]]"
_REMEDY = {
    errno.ENOSPC: f"free some room; {_AGAIN}",
    errno.EDQUOT: f"raise the quota or free some room; {_AGAIN}",
    errno.EROFS: f"remount the folder for writing, or {_ELSEWHERE}",
    errno.EACCES: f"give this user write permission there, or {_ELSEWHERE}",
    errno.EPERM: f"give this user write permission there, or {_ELSEWHERE}",
    errno.ENOENT: f"bring the folder back (is the drive or share still mounted?); {_AGAIN}",
}

_live: set[Path] = set()
_live_guard = threading.Lock()


def storage_error(error: OSError, path: Path) -> StorageError:
    """Say what the operating system said of ``path``, and what can be done."""
    remedy = _REMEDY.get(error.errno or 0, f"check the drive and the share; {_AGAIN}")
    return wholefile.storage_error(error, path, "a folder that can be written and has room", remedy)


def partial_path(final: Path) -> Path:
    """Return the hidden temporary name, in the same folder, that ``final`` is written under.

    It is short, because ``final`` may be as long as the file system allows.
    """
    digest = hashlib.blake2b(os.fsencode(final.name), digest_size=8).hexdigest()
    return final.with_name(f".{digest}{PARTIAL_SUFFIX}")


@contextlib.contextmanager
def whole_file(final: Path) -> Iterator[BinaryIO]:
    """Open a file that takes its name only when the block ends without an error.

    The bytes are flushed to the disk before the rename; the rename itself is
    made durable by ``sync_folder``, which the commit of a frame calls once.

    Raises
    ------
    StorageError
        The disk is full, read-only or gone. Nothing is left behind.
    """
    temporary = partial_path(final)
    with _live_guard:
        _live.add(temporary)
    try:
        with wholefile.whole_file(temporary, final) as handle:
            yield handle
    except OSError as error:
        raise storage_error(error, final) from error
    finally:
        with _live_guard:
            _live.discard(temporary)


def write_whole(final: Path, content: bytes) -> None:
    """Write ``content`` under ``final``, whole or not at all."""
    with whole_file(final) as handle:
        handle.write(content)


def append_whole(handle: RawIOBase, content: bytes) -> None:
    """Append to an unbuffered file until all is written; a disk that is full raises."""
    view = memoryview(content)
    while view:
        view = view[handle.write(view) or 0 :]


def sync_folder(folder: Path) -> None:
    """Make the renames in ``folder`` survive a power cut, where the platform can."""
    try:
        wholefile.sync_folder(folder)
    except OSError as error:
        raise storage_error(error, folder) from error


def remove(path: Path) -> None:
    """Remove a file that the caller knows to be ours; it may be gone already."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, path) from error


def make_folder(folder: Path) -> None:
    """Make a folder for results, with its parents."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, folder) from error


def is_partial(path: Path) -> bool:
    """Tell a file that an interrupted ``whole_file`` left behind."""
    return path.name.startswith(".") and path.name.endswith(PARTIAL_SUFFIX)


def discard_live_partials() -> None:
    """Remove what is being written at this moment: the process is about to end at once."""
    for path in tuple(_live):
        _remove_quietly(path)


def _remove_quietly(path: Path) -> None:
    with contextlib.suppress(OSError):  # the error that brought us here is the one to report
        path.unlink(missing_ok=True)
