"""The run's folder, and what is written of the acquisition beside its frames."""

from __future__ import annotations

import contextlib
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from segbatch import __version__
from segbatch.acquire.camera.files import storage_error, whole_file
from segbatch.acquire.camera.hold import hold_left, hold_name, taken
from segbatch.errors import UsageError

if TYPE_CHECKING:
    from segbatch.acquire.camera.camera import Facts
    from segbatch.settings.sections import CameraSettings

SCHEMA = "segbatch.camera/1"
RECORD_NAME = "segbatch_camera.json"
GAPS_KEPT = 1000  # the newest; the counts are of all


class GapRecord(msgspec.Struct, frozen=True):
    """Frames that were not taken: how many, before which frame of the run, and why.

    ``why``: ``time gap`` (they never reached the core), ``ring overflow`` (the
    disk was slower than the camera), ``late`` (their turn had passed).
    """

    before_frame: int
    dropped: int
    late_ms: float
    why: Literal["time gap", "ring overflow", "late"]


class CameraRecord(msgspec.Struct, kw_only=True):
    """One run folder of an acquisition: ``segbatch_camera.json``.

    ``first_frame`` frames of the same acquisition lie in the folders before
    this one. ``taken`` frames left the camera; of these ``written`` are on
    the disk and ``not_written`` are lost. ``dropped`` were never taken.
    ``unsynced`` were handed to the system's cache when the disk was behind.
    """

    schema: str = SCHEMA
    state: Literal["acquiring", "complete", "stopped", "failed"] = "acquiring"
    error: str | None = None
    started_at: str = ""
    ended_at: str | None = None
    backend: str = ""
    camera: str = ""
    device: str = ""
    format: str = ""
    frames_asked: int = 0
    first_frame: int = 0
    taken: int = 0
    written: int = 0
    not_written: int = 0
    dropped: int = 0
    gaps: list[GapRecord] = []
    gaps_watched: bool = True
    unsynced: int = 0
    period_ms: float | None = None
    ring_capacity: int = 0
    ring_most_used: int = 0
    ring_overflows: int = 0
    bit_depth: int = 0
    width: int = 0
    height: int = 0
    exposure_ms: float = 0.0
    gain: str | None = None
    pixel_size_um: float | None = None
    properties: dict[str, dict[str, str]] = {}
    software: str = f"segbatch {__version__}"


def now() -> str:
    """Return the time, UTC, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def new_record(
    facts: Facts, settings: CameraSettings, properties: dict[str, dict[str, str]], first_frame: int
) -> CameraRecord:
    """Return the record of a folder that begins now."""
    return CameraRecord(
        started_at=now(),
        backend=facts.backend,
        camera=facts.label,
        device=f"{facts.library}/{facts.device}",
        format=settings.format,
        frames_asked=settings.frames,
        first_frame=first_frame,
        gaps_watched=not facts.hardware_triggered,
        bit_depth=facts.bit_depth,
        width=facts.width,
        height=facts.height,
        exposure_ms=facts.exposure_ms,
        gain=facts.gain,
        pixel_size_um=facts.pixel_size_um or None,
        properties=properties,
    )


_one_writer = threading.Lock()


def write_record(folder: Path, record: CameraRecord) -> None:
    """Write the record, whole or not at all; an ``OSError`` where it cannot be."""
    with _one_writer, whole_file(folder / RECORD_NAME, sync=True) as handle:
        handle.write(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def new_run_folder(parent: Path) -> Path:
    """Make and return a folder named by the time, ``2026-11-21_141503``, that was not there."""
    named = datetime.now().astimezone().strftime("%Y-%m-%d_%H%M%S")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            folder = parent / (named if number == 1 else f"{named}_{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        raise storage_error(error, parent) from error
    raise UsageError(f"{parent} has a thousand runs of {named}", "a new name", "try again")


def require_new(folder: Path) -> None:
    """Make sure that ``folder`` is not there yet, or holds nothing.

    Raises
    ------
    UsageError
        It holds files, or another process takes a run there.
    StorageError
        It cannot be read.
    """
    own = hold_name()
    try:
        held = {path.name for path in folder.iterdir()} if folder.exists() else set()
    except OSError as error:
        raise storage_error(error, folder) from error
    if own in held:
        left = hold_left(folder)
        if left is None:
            raise taken(folder)
        left.leave()
    if held - {own}:
        shown = min(held - {own}, key=lambda name: (name.startswith("."), name))
        raise UsageError(
            f"{folder} holds files already, such as {shown}",
            "a new or empty folder for a new run",
            "name another folder: a run is never overwritten",
        )


def claim_run_folder(folder: Path) -> Path:
    """Make ``folder`` if need be; it must not hold anything yet."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, folder) from error
    require_new(folder)
    return folder


def leave_if_empty(folder: Path) -> None:
    """Remove a run's folder, which is ours, that holds nothing, or its record and lock alone."""
    ours = {RECORD_NAME, hold_name()}
    with contextlib.suppress(OSError):
        if ours.issuperset(path.name for path in folder.iterdir()):
            for name in ours:
                (folder / name).unlink(missing_ok=True)
            folder.rmdir()
