"""The errors a caller can act on, each named by what the caller does next.

Every message says what was found, what was wanted and what to do about it.
The command line maps the classes to exit codes in one place (``exit_code``).
"""

from __future__ import annotations

from typing import Literal


class SegbatchError(Exception):
    """Base of every error that is reported without a traceback.

    Parameters
    ----------
    got
        What was found, with the value and the file or key it belongs to.
    wanted
        What would have been right; may be empty where ``got`` says it all.
    remedy
        What the person can do now.
    """

    exit_code = 1

    def __init__(self, got: str, wanted: str = "", remedy: str = "") -> None:
        self.got = got
        self.wanted = wanted
        self.remedy = remedy
        super().__init__(got, wanted, remedy)

    def as_dict(self) -> dict[str, str | int]:
        """Return what ``--json`` says of the error."""
        return {
            "got": self.got,
            "wanted": self.wanted,
            "remedy": self.remedy,
            "exit_code": self.exit_code,
        }

    def __str__(self) -> str:
        parts = [self.got]
        if self.wanted:
            parts.append(f"wanted: {self.wanted}")
        if self.remedy:
            parts.append(f"remedy: {self.remedy}")
        return "; ".join(parts)


class UsageError(SegbatchError):
    """The command or its arguments cannot be carried out as given."""

    exit_code = 2


class SettingsError(UsageError):
    """A setting is unknown, of the wrong type or out of range."""


class ModelError(SegbatchError):
    """A model or its manifest cannot be used."""

    exit_code = 3


class EngineError(ModelError):
    """An engine cannot be opened, or failed while it ran."""


class StorageError(SegbatchError):
    """Results cannot be written: full, read-only, gone, or locked."""

    exit_code = 4


class FrameError(SegbatchError):
    """One frame cannot be used; the run goes on with the next.

    ``reason`` is the reason recorded for the failed frame.
    """

    reason: Literal["unreadable", "unsupported"] = "unreadable"


class UnreadableFrameError(FrameError):
    """The file is corrupt, truncated, gone, or may not be read."""


class ChangedFrameError(UnreadableFrameError):
    """The file was replaced, shortened or written to while it was read: take it up again."""


class UnsupportedFrameError(FrameError):
    """The file is sound but of a kind that segbatch does not read."""

    reason = "unsupported"
