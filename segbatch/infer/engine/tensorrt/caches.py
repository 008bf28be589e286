"""What a library learns while it builds or runs, kept for the next time.

Full TensorRT keeps how fast each kernel was on this GPU (timing cache), the RTX flavour the
kernels that it compiled (runtime cache). Both hold for one version of the library and one GPU,
and both are read by a native library that trusts them: the folder is the user's alone (0700),
and a file that others may write to is not read.
"""

from __future__ import annotations

import hashlib
import os
import stat
from typing import TYPE_CHECKING, Final

from segbatch.infer.engine.cache import cache_folder, replace
from segbatch.log import get_logger

if TYPE_CHECKING:
    from pathlib import Path

FOLDER_MODE: Final = 0o700
FILE_MODE: Final = 0o600
log = get_logger(__name__)


def cache_file(kind: str, *keys: str) -> Path:
    """Return the file of a cache.

    Parameters
    ----------
    kind
        ``timing`` or ``runtime``.
    keys
        All that it holds for: flavour, version, GPU, driver, engine.
    """
    digest = hashlib.sha256("\0".join(keys).encode()).hexdigest()[:24]
    return cache_folder() / "tensorrt" / f"{kind}-{digest}.cache"


def read_cache(file: Path) -> bytes:
    """Return what was kept; empty where there is nothing, or someone else may have written it."""
    try:
        for each in (file.parent, file):
            found = each.stat()
            if os.name == "posix" and (
                found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            ):
                log.warning("cache not read", file=str(file), why=f"others may write to {each}")
                return b""
        return file.read_bytes()
    except OSError:
        return b""


def write_cache(file: Path, content: bytes) -> None:
    """Keep ``content`` where the folder can be written; the folder is the user's alone."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
        file.parent.chmod(FOLDER_MODE)
        replace(file, content)
        file.chmod(FILE_MODE)
    except OSError as error:
        log.debug("cache not written", file=str(file), error=str(error))
