"""Zip archives from anywhere: what they are, without unpacking what should not be unpacked."""

from __future__ import annotations

import zipfile
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from segbatch.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGEST_BYTES = 4 * 1024**3
MOST_FILES = 20_000
# Weights hardly shrink; text of a network's code does, tenfold.
LARGEST_RATIO = 200
SMALL_BYTES = 64 * 1024**2


@contextmanager
def opened(file: Path) -> Iterator[zipfile.ZipFile]:
    """Lend an archive whose members were looked at: names, sizes, kinds.

    Raises
    ------
    ModelError
        It is truncated, would unpack to far more than it is, or names files outside itself.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            _look(archive, file)
            yield archive
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise ModelError(f"{file}: {error}", "a whole zip archive", "copy it again") from error


def _look(archive: zipfile.ZipFile, file: Path) -> None:
    members = archive.infolist()
    total, packed = sum(m.file_size for m in members), file.stat().st_size
    if (
        len(members) > MOST_FILES
        or total > LARGEST_BYTES
        or total > max(SMALL_BYTES, LARGEST_RATIO * packed)
    ):
        raise ModelError(
            f"{file}: {len(members)} files that unpack to {total} bytes from {packed}",
            f"at most {MOST_FILES} files, {LARGEST_BYTES} bytes and {LARGEST_RATIO} times its size",
            "unpack it yourself, if you trust it, and give the network inside",
        )
    seen = set()
    for member in members:
        path = PurePosixPath(member.filename)
        sealed = bool(member.flag_bits & 1)
        link = (member.external_attr >> 16) & 0o170000 == 0o120000
        if (
            path.is_absolute()
            or ".." in path.parts
            or "\\" in member.filename
            or ":" in member.filename
            or link
            or sealed
            or member.filename in seen
        ):
            raise ModelError(
                f"{file}: member {member.filename!r}"
                + (", a link" if link else ", encrypted" if sealed else ""),
                "each file once, under a plain path inside the archive",
                "do not use this file: such names are made to write elsewhere",
            )
        seen.add(member.filename)


def text(archive: zipfile.ZipFile, name: str, file: Path, largest: int = 1 << 26) -> bytes:
    """Return a member's content, refusing one that is larger than it says or than ``largest``."""
    if archive.getinfo(name).file_size > largest:
        raise ModelError(f"{file}: {name} of {archive.getinfo(name).file_size} bytes", f"{largest}")
    return archive.read(name)
