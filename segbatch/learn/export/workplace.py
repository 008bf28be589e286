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
import threading
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from segbatch.errors import StorageError
from segbatch.filelock import try_lock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

PREFIX, LOCK_NAME = ".export-", ".lock"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
    with _hidden(folder) as made:
        yield made


def require_writable(folder: Path) -> None:
    """Make sure that files can be written into a folder, or into where it would be made.

    Raises
    ------
    StorageError
        They cannot.
    """
    there = folder
    try:
        while not there.exists():
            there = there.parent
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
        From where to where, on one file system; only the last may take the place of another.

    Raises
    ------
    OSError
        One cannot be moved; all is as it was.
    """
    done: list[tuple[Path, Path]] = []
    with signals_held():
        try:
            for made, place in moves:
                made.replace(place)
                done.append((made, place))
        except OSError:
            for made, place in reversed(done):
                with suppress(OSError):
                    place.replace(made)
            raise


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
    """Make a hidden folder that goes when the block ends; remove those that were left behind."""
    _remove_left_behind(folder)
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
        except OSError:
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
        with suppress(OSError):  # another user's, or gone by now
            # Ours is locked, or its export ended before it had a file.
            ours = (left / LOCK_NAME).is_file() or not any(left.iterdir())
            if left.is_symlink() or not ours:
                continue
            if (handle := _locked(left)) is not None:
                with handle:
                    shutil.rmtree(left, ignore_errors=True)
                shutil.rmtree(left, ignore_errors=True)  # Windows keeps an open file


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
                return handle
    except BaseException:
        handle.close()
        raise
    handle.close()
    return None
