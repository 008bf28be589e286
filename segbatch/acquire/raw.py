"""One raw file, read by position through one descriptor, and what can go wrong with it.

A raw file is opened once and read by position, so that several threads can
read one file without sharing a file pointer, and so that size and
modification time are those of the very bytes that were read.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import stat
import struct
import threading
import zlib
from typing import TYPE_CHECKING

from segbatch.errors import ChangedFrameError, UnreadableFrameError, UnsupportedFrameError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# What decoders and parsers raise on content that is not what it says it is
# (imagecodecs' errors are RuntimeErrors). Anything else is a fault of the program.
CONTENT_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    lzma.LZMAError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


def unreadable(path: Path, what: str, wanted: str = "", remedy: str = "") -> UnreadableFrameError:
    """Return the error that says why ``path`` cannot be read."""
    return UnreadableFrameError(f"{path}: {what}", wanted, remedy)


@contextlib.contextmanager
def content_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn what a decoder raises inside the block into ``UnreadableFrameError``.

    Parameters
    ----------
    path
        The file whose content is being decoded.
    doing
        What is being decoded, as in ``strip 3``.
    """
    try:
        yield
    except CONTENT_ERRORS as error:
        text = str(error) or type(error).__name__
        remedy = "free memory" if isinstance(error, MemoryError) else "copy or acquire it again"
        raise unreadable(path, f"{doing} cannot be decoded ({text})", remedy=remedy) from error


class RawFile:
    """A raw file, open for reading by position. Safe to read from several threads.

    Parameters
    ----------
    path
        A regular file, or a link to one.

    Raises
    ------
    UnsupportedFrameError
        ``path`` is a folder, a device, a pipe or a socket.
    UnreadableFrameError
        The operating system refuses to open it; its words are in the message.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Opening a pipe would wait for a writer, so ask for the kind first.
            if not stat.S_ISREG(path.stat().st_mode):
                raise UnsupportedFrameError(
                    f"{path}: not a regular file", "an image file", "name the files inside it"
                )
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise unreadable(
                path, f"cannot be opened ({error.strerror or error})", remedy="check path and mode"
            ) from error
        self._lock = threading.Lock()
        self.opened = os.fstat(self._file.fileno())

    @property
    def size(self) -> int:
        """Size of the file in bytes, as it was opened."""
        return self.opened.st_size

    def refresh(self) -> None:
        """Take the size the file has now: what names its frames was read after it was opened."""
        self.opened = os.fstat(self._file.fileno())

    def close(self) -> None:
        """Let go of the descriptor; closing twice is harmless."""
        self._file.close()

    def read(self, offset: int, count: int) -> bytes:
        """Return exactly ``count`` bytes at ``offset``.

        Raises
        ------
        UnreadableFrameError
            They do not lie inside the file (checked before anything is
            allocated), or the file ended early.
        """
        if offset < 0 or count < 0 or offset + count > self.size:
            raise unreadable(
                self.path,
                f"names {count} bytes at {offset}, the file has {self.size}",
                "content that lies inside the file",
                "it is truncated or corrupt: copy or acquire it again",
            )
        buffer = bytearray(count)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_some(self, offset: int, count: int) -> bytes:
        """Return up to ``count`` bytes at ``offset``, fewer where the file ends."""
        return self.read(offset, max(0, min(count, self.size - offset)))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` (bytes, writable) from ``offset``.

        Raises
        ------
        UnreadableFrameError
            The file ended early, or the operating system reports an error.
        """
        done = 0
        while done < len(buffer):
            try:
                got = self._read_once(offset + done, buffer[done:])
            except OSError as error:
                raise unreadable(
                    self.path, f"cannot be read ({error.strerror or error})"
                ) from error
            if not got:
                raise unreadable(
                    self.path,
                    f"ended at byte {offset + done} while it was being read",
                    f"{len(buffer) - done} bytes more",
                    "it shrank meanwhile: wait until its writer has finished, and run again",
                )
            done += got

    def _read_once(self, offset: int, buffer: memoryview) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [buffer], offset)
        with self._lock:  # Windows has no read by position
            self._file.seek(offset)
            return self._file.readinto(buffer) or 0

    def check_unchanged(self, *, may_grow: bool = False) -> os.stat_result:
        """Return the descriptor's stat; raise if the file is no longer the one opened.

        Parameters
        ----------
        may_grow
            Accept a new size and modification time: for formats whose writer
            says which frames are complete and never touches those again.

        Raises
        ------
        UnreadableFrameError
            The file changed, vanished or was replaced since it was opened.
        """
        now = os.fstat(self._file.fileno())
        before = self.opened
        remedy = "wait until its writer has finished, and run again"
        if not may_grow and (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            verb = "shrank" if now.st_size < before.st_size else "changed"
            raise ChangedFrameError(f"{self.path}: {verb} while it was being read", "", remedy)
        try:
            named = self.path.stat()
        except FileNotFoundError as error:
            raise unreadable(
                self.path, "vanished while it was being read", remedy="put it back, and run again"
            ) from error
        except OSError as error:
            raise unreadable(self.path, f"cannot be found ({error.strerror or error})") from error
        if (named.st_dev, named.st_ino) != (before.st_dev, before.st_ino):
            raise ChangedFrameError(
                f"{self.path}: was replaced while it was being read", "", remedy
            )
        return now
