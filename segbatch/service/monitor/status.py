"""What the service says of itself: one frozen value, also the JSON of ``/status``."""

from __future__ import annotations

from typing import Any, Final

import msgspec

STATES: Final = ("starting", "running", "paused", "reloading", "draining", "stopped")


class FolderStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One watched tree.

    Attributes
    ----------
    path
        The folder.
    observer, why
        How it is watched (``inotify``, ``polling`` or ``none``), and for what reason.
    pending
        Files that were seen and are not complete yet.
    backlog
        Complete files that were handed over and are not recorded yet.
    runs_open
        Runs that still get frames.
    takes_in
        Whether frames of this folder are taken in now.
    error
        What is wrong with the folder, or with a run in it; None where nothing is.
    disk_free_bytes
        Left on the disk of its results; None where that cannot be told.
    """

    path: str
    observer: str
    why: str
    pending: int
    backlog: int
    runs_open: int
    takes_in: bool
    error: str | None
    disk_free_bytes: int | None


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The engine that runs and the network that it runs."""

    name: str
    precision: str
    model: str
    model_sha256: str


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The service at one moment.

    Attributes
    ----------
    state
        One of ``STATES``.
    why
        For people: what a pause waits for; empty while all is well.
    started_at, last_frame_at
        UTC, ISO 8601.
    backlog
        Complete files that were handed over and are not recorded yet, and files pending.
    frames, reasons
        Counts since the start, by outcome and by reason.
    frames_per_s
        Over the last minute.
    dropped
        Frames that the camera lost.
    last_frame
        File of the frame that was recorded last.
    camera
        What the camera's session says of itself; None where none is driven.
    """

    state: str
    why: str
    pid: int
    version: str
    started_at: str
    uptime_s: float
    backlog: int
    frames: dict[str, int]
    reasons: dict[str, int]
    frames_per_s: float
    dropped: int
    last_frame_at: str | None
    last_frame: str | None
    folders: list[FolderStatus]
    engine: EngineStatus | None
    camera: dict[str, Any] | None
