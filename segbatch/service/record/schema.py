"""The QC record ``segbatch.qc/1``: one frame's outcome, as it stands on disk."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

SCHEMA: Final = "segbatch.qc/1"
Outcome = Literal["segmented", "rejected", "failed"]
Reason = Literal[
    "empty",
    "noisy",
    "overexposed",
    "underexposed",
    "blurred",
    "duplicate",
    "torn",
    "unreadable",
    "unsupported",
    "classifier",
    "engine-error",
]


class FrameInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Which frame the record answers for.

    ``file`` is the raw file's name, ``page`` the frame's index in it. A frame
    that could not be read has no shape, dtype, hash or axes.
    ``pixel_hash`` is ``blake3:`` and the hash of shape, dtype and pixels.
    """

    file: str
    page: int
    shape: list[int] | None = None
    dtype: str | None = None
    bit_depth: int | None = None
    size_bytes: int | None = None
    mtime_ns: int | None = None
    pixel_hash: str | None = None
    acquired_at: str | None = None
    axes: str | None = None


class MaskInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The mask that was written, and what it holds (areas in px, entropy in bits)."""

    file: str
    page: int
    foreground_fraction: float
    object_count: int
    object_area_px_median: float | None
    mean_confidence: float
    mean_entropy: float


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The network that drew the mask and the engine that ran it."""

    name: str
    sha256: str
    engine: str
    precision: str
    manifest_sha256: str


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds of wall time by step; 0 where the step was not taken."""

    read: float = 0.0
    judge: float = 0.0
    segment: float = 0.0
    record: float = 0.0


class QcRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One frame's outcome. ``quality`` holds measures, rules, group and ``provisional``."""

    schema: Literal["segbatch.qc/1"] = SCHEMA
    frame: FrameInfo
    outcome: Outcome
    reasons: list[Reason] = []
    error: str | None = None
    quality: dict[str, Any] = {}
    mask: MaskInfo | None = None
    model: ModelInfo | None = None
    settings_sha256: str
    software: str
    written_at: str
    timing_ms: Timing


def now() -> str:
    """Return the time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a QC record."""
    schema = msgspec.json.schema(QcRecord)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": SCHEMA,
        **schema,
    }


def encode(record: QcRecord) -> bytes:
    """Return a record as one line of JSON, newline included."""
    return msgspec.json.encode(record) + b"\n"


def encode_for_people(record: QcRecord) -> bytes:
    """Return a record as indented JSON, newline included."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def decode(content: bytes) -> QcRecord | None:
    """Read a record back; None where ``content`` is no whole, valid record."""
    try:
        return msgspec.json.decode(content, type=QcRecord)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
