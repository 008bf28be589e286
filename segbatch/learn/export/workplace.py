"""Where an export works, and how what it made is put in place: all of it, or nothing.

Everything is written into a hidden folder inside the one that it is meant for, and moved from
there. The hidden folder goes with its export; what one that was killed left is removed by the
next. A lock tells them apart, which the system takes from a process that ends.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import threading
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from segbatch.errors import StorageError
from segbatch.filelock import try_lock
from segbatch.wholefile import sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

PREFIX, LOCK_NAME = ".export-", ".lock"
# In the lock file, so that nobody's folder of that name is taken for ours.
_OURS = b"of segbatch export-engine: removed by the next one unless it is locked\n"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What file systems answer that know no locks.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """Make ``folder`` and a hidden folder inside it, which goes when the block ends.

    What exports that ended without that left beside it is removed.

    Raises
    ------
    OSError
        It cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_left_behind(folder)
    with _hidden(folder) as made:
        yield made


def require_writable(folder: Path) -> None:
    """Make sure that files can be written into a folder, or into where it would be made.

    Raises
    ------
    StorageError
        They cannot.
    """
    try:
        there = next((each for each in (folder, *folder.absolute().parents) if each.exists()), None)
        if there is None:  # a drive, or a share's server
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        with _hidden(there) as tried:
            (tried / "tried").write_bytes(b"\0")
    except OSError as error:
        raise storage_error(error, folder) from error


def storage_error(error: OSError, folder: Path) -> StorageError:
    """Return what a person is told of a write that failed on the way into ``folder``."""
    full = error.errno in _FULL
    said = f"{folder} cannot be written: {error.strerror or error}"
    if error.filename and Path(error.filename) != folder:
        said += f" ({error.filename})"
    return StorageError(
        said,
        "room for model and engine; nothing was changed" if full else "a folder to write to",
        "free some room there, or name another folder with --out DIR"
        if full
        else "name another folder with --out DIR",
    )


def write_staged(file: Path, content: bytes) -> None:
    """Write a file that is to be moved, so that a full disk is met here and not later."""
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    file.chmod(0o644)


def put_in_place(moves: list[tuple[Path, Path]]) -> None:
    """Move files, one after the other; where one cannot be moved, move all back.

    Parameters
    ----------
    moves
        From where to where, on one file system; only the last may take the place of one that is
        whole. Of it there is the old or the new one, whenever the process ends.

    Raises
    ------
    OSError
        One cannot be moved; all is as it was.
    """
    done: list[tuple[Path, Path]] = []
    with signals_held():
        try:
            for made, place in moves:
                if (made, place) == moves[-1]:
                    sync_folder(place.parent)  # what it names has to outlive a power cut with it
                made.replace(place)
                done.append((made, place))
        except OSError:
            for made, place in reversed(done):
                with suppress(OSError):
                    place.replace(made)
            raise


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Let other exports that move files into a folder wait, where the system locks folders."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def signals_held() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait until the block has run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def remember(number: int, _frame: Any) -> None:
        came.append(number)

    before = {each: signal.signal(each, remember) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


@contextmanager
def _hidden(folder: Path) -> Iterator[Path]:
    """Make a hidden folder that goes when the block ends."""
    held = ExitStack()
    try:
        with signals_held():
            made = _own(folder, held)
        yield made
    finally:
        with signals_held():
            held.close()


def _own(folder: Path, held: ExitStack) -> Path:
    """Make a hidden folder and lock it."""
    while True:
        made = TemporaryDirectory(dir=folder, prefix=PREFIX, ignore_cleanup_errors=True)
        try:
            handle = _locked(Path(made.name))
        except OSError as error:
            if error.errno in _NO_LOCKS:  # then no export removes what another left
                held.callback(made.cleanup)
                return Path(made.name)
            made.cleanup()
            raise
        if handle is None:  # taken for one that was left behind, between making and locking it
            made.cleanup()
            continue
        held.callback(made.cleanup)
        held.callback(handle.close)  # first, as an open file cannot be removed on Windows
        return Path(made.name)


def _remove_left_behind(folder: Path) -> None:
    for left in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's, gone by now, or nobody can say if it is locked
            if left.is_symlink() or not _is_ours(left):
                continue
            if (handle := _locked(left)) is not None:
                with handle:
                    shutil.rmtree(left, ignore_errors=True)
                shutil.rmtree(left, ignore_errors=True)  # Windows keeps an open file


def _is_ours(left: Path) -> bool:
    """Tell a folder of ours by what its lock file says; one that ended before is empty."""
    names = {entry.name for entry in left.iterdir()}
    if names <= {LOCK_NAME} and not any(entry.stat().st_size for entry in left.iterdir()):
        return True
    return LOCK_NAME in names and (left / LOCK_NAME).read_bytes() == _OURS


def _locked(folder: Path) -> BinaryIO | None:
    """Lock a hidden folder; None where another has it, or removed it meanwhile."""
    file = folder / LOCK_NAME
    try:
        handle = os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
    except FileNotFoundError:
        return None
    try:
        with suppress(FileNotFoundError):
            if try_lock(handle) and os.path.samestat(file.stat(), os.fstat(handle.fileno())):
                handle.seek(0)
                handle.write(_OURS)
                handle.flush()
                return handle
    except BaseException:
        handle.close()
        raise
    handle.close()
    return None
