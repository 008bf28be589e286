"""Counts what the service does and remembers the little that its pages show."""

from __future__ import annotations

import bisect
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

import msgspec

from segbatch.service.monitor import recent
from segbatch.service.record.names import printable
from segbatch.service.record.schema import Outcome, QcRecord, Reason, Timing

STAGES: Final = Timing.__struct_fields__
STAGE_BUCKETS_S: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
REFUSED_KEPT = 24
# Frames that a page was told of and may still ask the pictures of.
_SHOWN_KEPT = 16
_SHOW_EVERY_S = 1.0
_EXPOSURE = {"overexposed", "underexposed"}


@dataclass(frozen=True, slots=True)
class Shot:
    """A frame that can be shown: where its pixels and its mask are, none of them in memory.

    ``id`` is what pages call it. ``mask`` is None where there is none.
    ``stretch`` holds the counts to be shown black and white: for a refused
    frame those of the last accepted one, so that a dark frame looks dark.
    """

    id: str
    raw: Path
    page: int
    record: QcRecord
    mask: Path | None
    stretch: tuple[float, float] | None


class StageTimes(msgspec.Struct, frozen=True):
    """Frames by how long a stage took: one count for each bucket and one above the last."""

    counts: tuple[int, ...]
    total_s: float


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """All counts at one moment.

    ``frames`` and ``reasons`` name every outcome and reason there is, also at
    0. ``frames_per_s`` is that of the last minute. ``last_frame_unix_s`` is 0
    and ``last_frame`` and ``last_frame_at`` (UTC, ISO 8601) are None before
    the first frame.
    """

    frames: dict[str, int]
    reasons: dict[str, int]
    stages: dict[str, StageTimes]
    frames_per_s: float
    last_frame: str | None
    last_frame_at: str | None
    last_frame_unix_s: float


class Monitor:
    """Is told of every frame and answers the pages; thread-safe.

    ``note`` costs some microseconds and memory stays the same however many
    frames pass.

    Parameters
    ----------
    clock
        Seconds that never run backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._frames: dict[str, int] = dict.fromkeys(get_args(Outcome), 0)
        self._reasons: dict[str, int] = dict.fromkeys(get_args(Reason), 0)
        self._stage_counts = {stage: [0] * (len(STAGE_BUCKETS_S) + 1) for stage in STAGES}
        self._stage_total_s = dict.fromkeys(STAGES, 0.0)
        self._rate = recent.Rate()
        self._quality = recent.QualityHour()
        self._last: tuple[Path, str, float] | None = None
        # Names of frames never come twice, not even from a service started anew.
        self._series, self._number = secrets.token_hex(4), 0
        self._segmented: Shot | None = None
        self._shown: OrderedDict[str, Shot] = OrderedDict()
        self._shown_at = -_SHOW_EVERY_S
        self._refused: deque[Shot] = deque(maxlen=REFUSED_KEPT)

    def note(self, raw: Path, record: QcRecord, mask_folder: Path) -> None:
        """Take in one frame's outcome, once for each frame.

        Parameters
        ----------
        raw
            The raw file.
        record
            As it was written: with the mask's file and page.
        mask_folder
            The folder that the mask lies in.
        """
        now = self._clock()
        with self._guard:
            self._frames[record.outcome] += 1
            for reason in record.reasons:
                self._reasons[reason] += 1
            for stage in STAGES:
                taken_s = getattr(record.timing_ms, stage) / 1e3
                if taken_s > 0:  # 0: the stage was not taken
                    slot = bisect.bisect_left(STAGE_BUCKETS_S, taken_s)
                    self._stage_counts[stage][slot] += 1
                    self._stage_total_s[stage] += taken_s
            self._rate.add(now)
            refused = record.outcome != "segmented"
            self._quality.add(now, record.quality, refused=refused)
            self._last = (raw, record.written_at, time.time())
            shot = self._shot(raw, record, mask_folder)
            if refused:
                self._refused.appendleft(shot)
            else:
                self._segmented = shot

    def totals(self) -> Totals:
        """Return all counts as they are now."""
        now = self._clock()
        with self._guard:
            raw, written_at, unix_s = self._last or (None, None, 0.0)
            return Totals(
                frames=dict(self._frames),
                reasons=dict(self._reasons),
                stages={
                    stage: StageTimes(tuple(self._stage_counts[stage]), self._stage_total_s[stage])
                    for stage in STAGES
                },
                frames_per_s=self._rate.per_s(now),
                last_frame=printable(str(raw)) if raw is not None else None,
                last_frame_at=written_at,
                last_frame_unix_s=unix_s,
            )

    def shown(self) -> Shot | None:
        """Return the last segmented frame, another one at most once a second.

        However many pages are open, they ask for the pictures of the same frames.
        """
        now = self._clock()
        with self._guard:
            newest = self._segmented
            if newest is not None and now - self._shown_at >= _SHOW_EVERY_S:
                self._shown[newest.id] = newest
                self._shown_at = now
                if len(self._shown) > _SHOWN_KEPT:
                    self._shown.popitem(last=False)
            return next(reversed(self._shown.values()), None)

    def refused(self) -> list[Shot]:
        """Return the frames that were rejected or failed last, newest first."""
        with self._guard:
            return list(self._refused)

    def find(self, shot_id: str) -> Shot | None:
        """Return a frame that pages were told of, None where it is no longer kept."""
        with self._guard:
            return self._shown.get(shot_id) or next(
                (shot for shot in self._refused if shot.id == shot_id), None
            )

    def curves(self) -> dict[str, Any]:
        """Return the last hour's quality, as ``recent.curves`` says."""
        with self._guard:
            seconds = self._quality.copy()
        return recent.curves(seconds, self._clock())

    def _shot(self, raw: Path, record: QcRecord, mask_folder: Path) -> Shot:
        self._number += 1
        mask = mask_folder / record.mask.file if record.mask and record.mask.file else None
        like, accepted = record, self._segmented
        if record.outcome != "segmented" and accepted is not None:
            known = accepted.record
            of_its_kind = known.quality.get("group") == record.quality.get("group")
            if of_its_kind or not _EXPOSURE.isdisjoint(record.reasons):
                like = known
        low, high = like.quality.get("p01"), like.quality.get("p999")
        stretch = (low, high) if low is not None and high is not None else None
        return Shot(f"{self._series}-{self._number}", raw, record.frame.page, record, mask, stretch)
