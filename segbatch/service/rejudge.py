"""The end of a run: every frame judged again with the whole run's statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import msgspec

from segbatch.infer.quality.verdict import Verdict
from segbatch.service.record.schema import QcRecord, Reason, now

Key = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Standing:
    """What the record on disk says of a frame, as far as judging it again needs."""

    outcome: str
    reasons: tuple[str, ...]
    provisional: bool

    @classmethod
    def of(cls, record: QcRecord) -> Standing:
        """Return the standing of a frame with this record."""
        provisional = bool(record.quality.get("provisional", False))
        return cls(record.outcome, tuple(record.reasons), provisional)

    def differs_from(self, verdict: Verdict) -> bool:
        """Tell whether the record must be written anew for the final verdict."""
        if self.outcome == "failed":
            return False
        return (
            self.provisional
            or verdict.accepted != (self.outcome == "segmented")
            or verdict.reasons != self.reasons
        )


def changed(
    verdicts: Mapping[Key, Verdict], standing: Mapping[Key, Standing]
) -> dict[int, dict[int, Verdict]]:
    """Return the final verdicts that the records do not hold yet: by file, then by page."""
    found: dict[int, dict[int, Verdict]] = {}
    for key, verdict in verdicts.items():
        if key in standing and standing[key].differs_from(verdict):
            found.setdefault(key[0], {})[key[1]] = verdict
    return found


def amend(record: QcRecord, verdict: Verdict) -> QcRecord:
    """Return a record with the final verdict in the place of the provisional one."""
    quality = record.quality | {
        "provisional": verdict.provisional,
        "rules": msgspec.to_builtins(verdict.rules),
    }
    return msgspec.structs.replace(
        record,
        outcome="segmented" if verdict.accepted else "rejected",
        reasons=[cast("Reason", reason) for reason in verdict.reasons],
        quality=quality,
        mask=record.mask if verdict.accepted else None,
        model=record.model if verdict.accepted else None,
        written_at=now(),
    )
