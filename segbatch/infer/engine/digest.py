"""Files by the hash of their content, and their content only where the hash is right."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from segbatch.errors import EngineError

if TYPE_CHECKING:
    from pathlib import Path


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits.

    Raises
    ------
    OSError
        It cannot be read.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_verified(
    file: Path,
    sha256: str = "",
    *,
    kind: str = "network",
    remedy: str = "put back the file its manifest was written for, or export it again",
) -> bytes:
    """Return a file's content, so that what was verified is what a library is given.

    Parameters
    ----------
    file
        A network or an engine.
    sha256
        Of the content that is meant; empty where nobody knows.
    kind, remedy
        What the file is, and what to do where it is not that; for errors.

    Raises
    ------
    EngineError
        It cannot be read, or is another.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise EngineError(f"{kind} {file}: {error.strerror}", "a readable file", remedy) from error
    found = hashlib.sha256(content).hexdigest() if sha256 else ""
    if found != sha256:
        raise EngineError(f"{kind} {file} has SHA-256 {found}", sha256, remedy)
    return content
