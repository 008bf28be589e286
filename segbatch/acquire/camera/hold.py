"""Who takes a run: a lock on a file in its folder, held until the record there is final.

The operating system lets go of it however the process ends. A lock of another computer may not
be seen on a share; the file is named after its computer, and no other judges it.
"""

from __future__ import annotations

import contextlib
import re
import socket
import sys
from pathlib import Path
from typing import BinaryIO

from segbatch.errors import UsageError
from segbatch.filelock import try_lock
from segbatch.log import get_logger

_logger = get_logger(__name__)


def hold_name() -> str:
    """Return the name of the lock file of a run that this computer takes."""
    return f".segbatch-camera@{re.sub(r'[^A-Za-z0-9.-]', '_', socket.gethostname())}.lock"


class Hold:
    """A folder whose run this process takes, or settles."""

    def __init__(self, path: Path, handle: BinaryIO) -> None:
        self._path, self._handle = path, handle

    def release(self) -> None:
        """Let go, for good: the record is final."""
        if sys.platform == "win32":  # an open file cannot be removed there
            self._handle.close()
        # Elsewhere before it is unlocked: whoever opens it now is refused, not let in.
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        self._handle.close()

    def leave(self) -> None:
        """Let go; the file stays, and says that the record is not final."""
        self._handle.close()


def hold(folder: Path) -> Hold | None:
    """Hold a folder in which a run begins, before anything is written there.

    None where the file system cannot do that: no lock file stays there, and without one nobody
    takes the run for one that was cut off.

    Raises
    ------
    UsageError
        Another process takes a run there.
    """
    path = folder / hold_name()
    try:
        handle = path.open("a+b")
    except OSError as error:
        _logger.warning("no lock file can be written", run=str(folder), why=str(error))
        return None
    try:
        if try_lock(handle):
            return Hold(path, handle)
    except OSError as error:
        _logger.warning("no file can be locked on this disk", run=str(folder), why=str(error))
        handle.close()
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return None
    handle.close()
    raise taken(folder)


def hold_left(folder: Path) -> Hold | None:
    """Hold a folder whose run was cut off on this computer.

    None where a process still takes it, where no lock file of this computer lies, or where
    nobody can tell.
    """
    path = folder / hold_name()
    try:
        handle = path.open("r+b")
    except OSError:
        return None
    with contextlib.suppress(OSError):
        if try_lock(handle):
            return Hold(path, handle)
    handle.close()
    return None


def taken(folder: Path) -> UsageError:
    """Say that another process takes a run in a folder."""
    return UsageError(
        f"{folder} takes the run of another process at the moment",
        "a new or empty folder for a new run",
        "name another folder, or wait for that run to end",
    )
