"""Small facts found out once per machine, kept in the user's cache folder.

Nothing depends on them being there: a folder that cannot be written, or was
emptied, costs the time to find them out again.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TypeVar

import msgspec

from segbatch.log import get_logger
from segbatch.wholefile import write_whole

T = TypeVar("T")


def cache_folder() -> Path:
    r"""Return the folder, whether it exists or not.

    ``$XDG_CACHE_HOME/segbatch`` (``~/.cache/segbatch``), on macOS
    ``~/Library/Caches/segbatch``, on Windows ``%LOCALAPPDATA%\segbatch\cache``.
    """
    stated = os.environ.get("XDG_CACHE_HOME", "")
    if stated and Path(stated).is_absolute():
        return Path(stated) / "segbatch"
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home raises without a home
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home) / "segbatch" / "cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "segbatch"
    return home / ".cache" / "segbatch"


def recall(name: str, kind: type[T]) -> T | None:
    """Return what was kept under ``name``, None where there is nothing of that kind."""
    try:
        return msgspec.json.decode((cache_folder() / name).read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError):
        return None


def keep(name: str, value: object) -> None:
    """Keep ``value`` under ``name`` where the folder can be written."""
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_whole(cache_folder() / name, msgspec.json.encode(value))
    except OSError as error:
        get_logger(__name__).debug(
            "cache not written", folder=str(cache_folder()), error=str(error)
        )
