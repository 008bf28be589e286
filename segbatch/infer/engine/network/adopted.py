"""The models that were taken in: one in use stays, one that nobody uses any more goes.

Each has a folder of its own below ``models`` in the user's cache folder. The time of that
folder says when it was used last.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

from segbatch.errors import StorageError
from segbatch.filelock import try_lock
from segbatch.infer.engine.cache import cache_folder
from segbatch.infer.engine.made.artifact import SUFFIX
from segbatch.log import get_logger

if TYPE_CHECKING:
    from pathlib import Path

BEING_MADE: Final = ".taking-in-"
BEING_REMOVED: Final = ".removed-"
UNUSED_S: Final = 90 * 86400.0
# Of all of them; those that were used last stay.
MOST_BYTES: Final = 20 << 30
# After which nobody can still be making or removing one, where no lock tells.
LEFT_BEHIND_S: Final = 86400.0
LOCK_NAME: Final = ".lock"
_LOCK_TEXT: Final = b"of segbatch, which takes a model in: removed with its folder once unlocked\n"
log = get_logger(__name__)
# Open while this process runs, by device and inode.
_held: dict[tuple[int, int], int] = {}


def hold(manifest_file: Path) -> bool:
    """Mark a model as used now, and in use until this process ends.

    Returns
    -------
    held
        False where its network is not there, or is being removed.
    """
    try:
        handle = os.open(manifest_file.with_suffix(".onnx"), os.O_RDONLY)
    except OSError:
        return False
    found = os.fstat(handle)
    if (found.st_dev, found.st_ino) in _held:
        os.close(handle)
    else:
        if not _shared(handle):
            os.close(handle)
            return False
        _held[found.st_dev, found.st_ino] = handle
    with suppress(OSError):  # a cache that may only be read is not tidied either
        os.utime(manifest_file.parent)
    return True


def unwritten(why: str) -> StorageError:
    """Return what a person is told where the cache folder cannot be written."""
    return StorageError(
        f"cache folder {cache_folder()} cannot be written: {why}",
        "a cache folder with room for the model",
        "make room there, set XDG_CACHE_HOME to another folder, or write a model beside your "
        "data: python -m segbatch.learn.intake SOURCE FOLDER",
    )


def mark_being_made(folder: Path, ends: ExitStack) -> None:
    """Mark a folder as one that this process works in, until ``ends`` or the process does.

    Raises
    ------
    OSError
        It cannot be written.
    """
    handle = ends.enter_context((folder / LOCK_NAME).open("wb", buffering=0))
    with suppress(OSError):  # no locks on this file system: by its age it is told
        if try_lock(handle):
            handle.write(_LOCK_TEXT)


def sweep() -> None:
    """Remove what processes that were ended left behind."""
    now = time.time()
    with suppress(OSError):
        for folder in (cache_folder() / "models").iterdir():
            _sweep(folder, now)


def tidy(added: Path) -> None:
    """Remove what nobody uses, now that the model of manifest ``added`` was added.

    That is what was not used for ``UNUSED_S``, and beyond ``MOST_BYTES`` in all what was used
    least lately; but none that a process holds, and for want of room none with an engine.
    """
    now, left = time.time(), MOST_BYTES
    with suppress(OSError):
        for used, entry in sorted(_entries(), reverse=True):
            files = list(entry.iterdir())
            left -= sum(file.stat().st_size for file in files)
            engines = sorted(file.name for file in files if file.name.endswith(SUFFIX))
            old = now - used > UNUSED_S
            if entry != added.parent and (old or (left < 0 and not engines)):
                _remove(entry, engines, "not used for 90 days" if old else "room is needed")
    sweep()


def _entries() -> list[tuple[float, Path]]:
    return [
        (entry.stat().st_mtime, entry)
        for entry in (cache_folder() / "models").glob("*/*")
        if entry.is_dir() and not entry.name.startswith(".")
    ]


def _remove(entry: Path, engines: list[str], why: str) -> None:
    """Remove one model, whole or not at all."""
    going = entry.with_name(f"{BEING_REMOVED}{entry.name}")
    with ExitStack() as locks, suppress(OSError):
        for network in entry.glob("*.onnx"):
            if not _exclusive(network, locks):
                return
        # On Windows this fails where one of its files is open.
        entry.rename(going)
        shutil.rmtree(going, ignore_errors=True)
        (log.warning if engines else log.info)(
            "model that was taken in is removed from the cache folder",
            folder=str(entry),
            why=why,
            engines=engines,
        )


def _sweep(folder: Path, now: float) -> None:
    """Remove what processes that were ended left in the folder of a source."""
    for each in folder.glob(".*"):
        if each.name.startswith((BEING_MADE, BEING_REMOVED)):
            with suppress(OSError):
                if _is_left(each, now):
                    shutil.rmtree(each, ignore_errors=True)
    with suppress(OSError):
        if now - folder.stat().st_mtime > LEFT_BEHIND_S:
            folder.rmdir()  # only where it is empty


def _is_left(folder: Path, now: float) -> bool:
    """Tell whether nobody works in a folder any more."""
    lock = folder / LOCK_NAME
    with suppress(OSError):
        if lock.stat().st_size:  # it is written to once it is locked
            with lock.open("rb+", buffering=0) as handle:
                return try_lock(handle)
    return now - folder.stat().st_mtime > LEFT_BEHIND_S


if sys.platform == "win32":

    def _shared(_handle: int) -> bool:
        """Return True: a file that is open cannot be renamed."""
        return True

    def _exclusive(network: Path, _locks: ExitStack) -> bool:
        """Return whether a file may be renamed; trying it will tell."""
        return network.is_file()
else:
    import fcntl

    def _shared(handle: int) -> bool:
        """Lock a file that others may use, too; False where it is being removed."""
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # no locks on this file system, where nothing is removed either
            return True
        return True

    def _exclusive(network: Path, locks: ExitStack) -> bool:
        """Lock a file that is to be removed; False where somebody uses it, or may."""
        try:
            handle = locks.enter_context(network.open("rb+"))
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
