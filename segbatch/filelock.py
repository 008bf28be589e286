"""The operating system's lock on an open file, which ends with the process that holds it."""

from __future__ import annotations

import sys
from typing import BinaryIO

if sys.platform == "win32":
    import msvcrt

    # What is locked cannot be read: lock one byte far behind what a lock file tells.
    _LOCKED_BYTE = 1 << 30

    def try_lock(handle: BinaryIO) -> bool:
        """Lock an open file; return False where another process, or another handle, holds it."""
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

    def try_lock(handle: BinaryIO) -> bool:
        """Lock an open file; return False where another process, or another handle, holds it."""
        try:
            fcntl.flock(handle.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
