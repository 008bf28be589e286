"""Files that appear whole or not at all, and what is told where they cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from segbatch.errors import StorageError


@contextlib.contextmanager
def whole_file(temporary: Path, final: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """Open ``temporary``, which takes the name ``final`` when the block ends without an error.

    Parameters
    ----------
    temporary, final
        In one folder; ``final`` may be there already, and is replaced.
    sync
        Flush the bytes to the disk before the rename, so that no power cut leaves the name
        without them. ``sync_folder`` makes the rename itself last.

    Raises
    ------
    OSError
        The file cannot be written; nothing is left behind.
    """
    with _taking_the_name(temporary.open("w+b"), temporary, final, sync) as handle:
        yield handle


def write_whole(final: Path, content: bytes, *, mode: int = 0o644, sync: bool = True) -> None:
    """Write ``content`` under ``final``, whole or not at all, whoever else writes it meanwhile.

    Parameters
    ----------
    final
        May be there already, and is replaced.
    mode
        Of the file, where the system knows modes.
    sync
        See ``whole_file``.

    Raises
    ------
    OSError
        The file cannot be written; nothing is left behind.
    """
    descriptor, name = tempfile.mkstemp(dir=final.parent, prefix=f".{final.name}.")
    with _taking_the_name(os.fdopen(descriptor, "w+b"), Path(name), final, sync) as handle:
        handle.write(content)
        Path(name).chmod(mode)


@contextlib.contextmanager
def _taking_the_name(
    handle: BinaryIO, temporary: Path, final: Path, sync: bool
) -> Iterator[BinaryIO]:
    """Lend an open file, which gets its name when the block ends without an error."""
    try:
        with handle:
            yield handle
            handle.flush()
            if sync:
                os.fsync(handle.fileno())
        temporary.replace(final)
    except BaseException:
        with contextlib.suppress(OSError):  # the error that brought us here is the one to report
            temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make the renames in ``folder`` survive a power cut, where the platform can.

    Raises
    ------
    OSError
        The folder cannot be opened, or the disk is gone.
    """
    if os.name == "nt":  # NTFS journals renames, and folders cannot be opened
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # shares that cannot sync a folder
            raise


def storage_error(error: OSError, path: Path, wanted: str, remedy: str) -> StorageError:
    """Say what the operating system said of ``path``, what was wanted, and what can be done."""
    return StorageError(f"cannot write {path}: {error.strerror or error}", wanted, remedy)
