"""One short text for all raw files of a run: equal as long as none of them changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

RUN_FILE = "segbatch_run.json"
_MODULUS = 1 << 128


class Fingerprint:
    """Adds up raw files in any order, without keeping them."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = 0

    def add(self, name: str, size_bytes: int, mtime_ns: int) -> None:
        """Add one raw file; ``name`` is relative to the run, with ``/`` between its parts."""
        line = b"%d %d " % (size_bytes, mtime_ns) + os.fsencode(name)
        digest = hashlib.blake2b(line, digest_size=16).digest()
        self._sum = (self._sum + int.from_bytes(digest, "big")) % _MODULUS
        self.count += 1

    def __str__(self) -> str:
        return f"{self.count}-{self._sum:032x}"


def fingerprint(raws: Iterable[tuple[str, int, int]]) -> str:
    """Return the fingerprint of raw files, each given as to ``Fingerprint.add``."""
    total = Fingerprint()
    for name, size_bytes, mtime_ns in raws:
        total.add(name, size_bytes, mtime_ns)
    return str(total)


class _RunFile(msgspec.Struct):
    state: str = ""
    raws_fingerprint: str | None = None


def fingerprint_of_results(folder: Path) -> str | None:
    """Return the fingerprint of the raw files that a complete run's results answer for.

    None where ``folder`` holds no run file, or one of a run that is not complete.
    """
    try:
        found = msgspec.json.decode((folder / RUN_FILE).read_bytes(), type=_RunFile)
    except (OSError, msgspec.DecodeError):
        return None
    return found.raws_fingerprint if found.state == "complete" else None
