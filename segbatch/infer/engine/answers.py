"""What a process that was asked something has answered."""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")


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
