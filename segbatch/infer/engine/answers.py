"""Processes of our own that are asked something, and what they have answered."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import TypeVar

import msgspec

T = TypeVar("T")


def ask_apart(
    module: str, arguments: Sequence[str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run a module in a process of its own, which may die; its words are kept, whatever they are.

    Raises
    ------
    subprocess.TimeoutExpired
        It took longer than ``timeout_s``, and was ended.
    OSError
        It cannot be started.
    """
    return subprocess.run(  # noqa: S603 - our own interpreter and module
        # -P: not what lies in the current folder under a module's name.
        [sys.executable, "-P", "-m", module, *arguments],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout_s,
        check=False,
    )


def last_answer(said: str, kind: type[T]) -> T | None:
    """Return the last line that is an answer, None where none is.

    Libraries print what they like, also when the answer was given: some as they are unloaded.

    Parameters
    ----------
    said
        The process's whole standard output.
    kind
        What one line of JSON becomes.
    """
    for line in reversed(said.splitlines()):
        if line.startswith("{"):
            try:
                return msgspec.json.decode(line, type=kind)
            except msgspec.DecodeError:
                continue
    return None
