"""The room on the disk of the camera: looked at before a run and while it goes on."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from segbatch.acquire.camera.errors import NoRoomError
from segbatch.acquire.camera.files import storage_error


def free_bytes(folder: Path) -> int | None:
    """Return the room on the disk of ``folder``; None where that cannot be told."""
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free
    return None


def require_room(folder: Path, needed: int) -> None:
    """Make sure that the disk of ``folder`` has so many bytes left.

    Raises
    ------
    NoRoomError
        It has not.
    StorageError
        The folder is not there.
    """
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise storage_error(error, folder) from error
    if free < needed:
        raise no_room(folder, free, needed)


def no_room(folder: Path, free: int, needed: int) -> NoRoomError:
    """Say how much room is left."""
    return NoRoomError(
        f"the disk of {folder} has {free / 2**20:,.0f} MiB left",
        f"at least {needed / 2**20:,.0f} MiB (serve.min_free_gib, and frames to begin with)",
        "free some room, or let the camera write elsewhere: set camera.out",
    )
