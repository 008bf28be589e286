"""What native libraries made for this machine, kept for their next start.

OpenVINO's compiled graphs, the kernels that TensorRT for RTX compiled and the timings of full
TensorRT are read by libraries that trust them: they are code, or as good as it. So their folder
is the user's alone, what someone else may have written is not read, and what is read begins with
a hash of its name and content: a library that reads half a graph may end the process, and a
graph under another's name would be another network's. The libraries' own caches
(OpenVINO's ``CACHE_DIR``) write in place, where another process may be reading.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from segbatch.infer.engine.cache import cache_folder
from segbatch.log import get_logger
from segbatch.wholefile import write_whole

if TYPE_CHECKING:
    from pathlib import Path

FOLDER_MODE: Final = 0o700
FILE_MODE: Final = 0o600
# Of one library; what was not used for longest goes first.
MOST_BYTES: Final = 1 << 30
MOST_FILES: Final = 64
_HASH_BYTES: Final = 32
# Not through a link; nor blocking, as a pipe in the file's place would until somebody writes.
_READ_ONLY: Final = os.O_RDONLY | sum(
    getattr(os, flag, 0) for flag in ("O_BINARY", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK")
)
log = get_logger(__name__)


def kept_file(library: str, kind: str, *keys: object) -> Path:
    """Return where something is kept, whether it is there or not.

    Parameters
    ----------
    library
        ``openvino`` or ``tensorrt``, a folder each.
    kind
        ``graph``, ``runtime`` or ``timing``.
    keys
        All that it holds for: version, machine, network, shape.
    """
    digest = hashlib.sha256(json.dumps([str(key) for key in keys]).encode()).hexdigest()[:32]
    return cache_folder() / library / f"{kind}-{digest}.cache"


def read_kept(file: Path) -> bytes:
    """Return what was kept; empty where there is nothing whole that this user alone can write."""
    try:
        why = _why_not_ours(file.parent, file.parent.lstat()) or _why_not_ours(file, file.lstat())
        if not why:
            with os.fdopen(os.open(file, _READ_ONLY), "rb") as stream:
                # Once more, of what was opened.
                why = _why_not_ours(file, os.fstat(stream.fileno()))
                stated, content = stream.read(_HASH_BYTES), b"" if why else stream.read()
    except OSError:
        return b""
    if why:
        log.warning("cache not read", file=str(file), why=why)
        return b""
    if _hash(file, content) != stated:
        log.warning("a cache was damaged and is made again", file=str(file))
        return b""
    with suppress(OSError):
        os.utime(file)
    return content


def write_kept(file: Path, content: bytes) -> None:
    """Keep ``content`` where the folder is this user's, and drop what was used least lately."""
    folder = file.parent
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
        found = folder.lstat()
        why = _why_not_ours(folder, found, writable_by_others=True)
        if why:
            log.warning("cache not written", file=str(file), why=why)
            return
        folder.chmod(FOLDER_MODE)
        if len(content) > MOST_BYTES:
            log.debug("cache not written", file=str(file), bytes=len(content))
            return
        # The hash tells a file that a power cut left without its bytes; it may be a large one.
        write_whole(file, _hash(file, content) + content, mode=FILE_MODE, sync=False)
        _drop_oldest(file)
    except OSError as error:
        log.debug("cache not written", file=str(file), why=str(error))


def _why_not_ours(path: Path, found: os.stat_result, *, writable_by_others: bool = False) -> str:
    """Say why a file or folder is not this user's alone; empty where it is."""
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        return f"{path} is a link, or no file at all"
    if os.name != "posix":
        return ""  # a folder of the user's profile is the user's
    if found.st_uid != os.geteuid():
        return f"{path} is another user's"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not writable_by_others:
        return f"others may write to {path}"
    return ""


def _hash(file: Path, content: bytes) -> bytes:
    return hashlib.sha256(file.name.encode() + b"\0" + content).digest()


def _drop_oldest(newest: Path) -> None:
    """Remove files of a folder, those of writers that were ended too, until the rest is small."""
    left_bytes, left_files = MOST_BYTES, MOST_FILES
    others = [(path, path.lstat()) for path in newest.parent.iterdir() if path != newest]
    others.sort(key=lambda each: each[1].st_mtime_ns, reverse=True)
    left_bytes -= newest.stat().st_size
    left_files -= 1
    for path, found in others:
        left_bytes -= found.st_size
        left_files -= 1
        if left_bytes < 0 or left_files < 0:
            path.unlink(missing_ok=True)
