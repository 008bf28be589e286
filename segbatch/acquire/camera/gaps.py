"""Frames that never came: holes in the time stamps of a camera that runs freely.

Micro-Manager counts the images that reach it, so a frame lost on the cable
leaves no hole in any number, only one in ``ElapsedTime-ms`` (the adapter of
the Zelux publishes no counter of the camera's own). Those are times of the
host: an image may be stamped late, never early. So a hole counts only where
the images behind it stay late; where they catch up, it was jitter.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass, field

HOLE_PERIODS = 1.5  # between two images, from which one may be missing
WARM_UP = 21  # intervals before there is a period
MEMORY = 101  # intervals whose median is the period
# A camera that runs by its own clock comes back whole periods later, or more where the host stamps
# late, and never less. What stays late by a part of a period is a clock that stood still: a
# simulated camera's on a busy machine.
IN_DOUBT = 0.15  # periods, by which jitter may hide how late images are
CATCH_UP = 6  # images within which a late one has caught up
LONGEST_DOUBT = 60


@dataclass(frozen=True, slots=True)
class Gap:
    """A hole: it lies before image ``before`` of the run, which came ``late_ms`` too late."""

    before: int
    late_ms: float
    dropped: int


@dataclass(slots=True)
class _Doubt:
    expected_ms: float  # when the first image behind the hole should have come
    before: int
    late: list[float] = field(default_factory=list)
    since_hole: int = 0
    seen_before: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether it is one hole, with enough images on either side to know where they belong."""
        return self.seen_before == CATCH_UP and self.since_hole == len(self.late) == CATCH_UP


class GapWatch:
    """Counts the images that are missing from a row of time stamps, ms."""

    def __init__(self) -> None:
        self._intervals: deque[float] = deque(maxlen=MEMORY)
        self._recent: deque[float] = deque(maxlen=CATCH_UP)
        self._waiting: list[float] = []
        self._judged = 0
        self._doubt: _Doubt | None = None
        self._period = 0.0

    @property
    def period_ms(self) -> float | None:
        """Median time between two images; None before there is one."""
        return self._period or None

    @property
    def count(self) -> int:
        """Time stamps taken so far."""
        return self._judged + len(self._waiting)

    @property
    def settled(self) -> int:
        """Time stamps before which no further hole will be found."""
        return self._judged if self._doubt is None else self._doubt.before

    def add(self, stamp_ms: float) -> list[Gap]:
        """Take the next image's time; return the holes that are certain now."""
        if self._period:
            return self._judge(stamp_ms)
        self._waiting.append(stamp_ms)
        return self._begin() if len(self._waiting) > WARM_UP else []

    def finish(self) -> list[Gap]:
        """Return the hole that was still in doubt: nothing comes that could catch up."""
        found = self._begin() if len(self._waiting) > 2 else []
        return found + self._settle()

    def _begin(self) -> list[Gap]:
        pairs = zip(self._waiting, self._waiting[1:], strict=False)
        self._intervals.extend(late - early for early, late in pairs)
        self._period = statistics.median(self._intervals)
        waiting, self._waiting = self._waiting, []
        if self._period <= 0:  # stamps that stand still tell nothing
            self._period = 0.0
            self._intervals.clear()
            return []
        return [gap for stamp in waiting for gap in self._judge(stamp, learn=False)]

    def _judge(self, stamp_ms: float, *, learn: bool = True) -> list[Gap]:
        found: list[Gap] = []
        if self._recent:
            interval = stamp_ms - self._recent[-1]
            hole = interval > HOLE_PERIODS * self._period
            if hole and self._doubt is None:
                self._doubt = _Doubt(self._expected(), self._judged, seen_before=len(self._recent))
            if self._doubt is not None:
                found = self._weigh(stamp_ms, hole=hole)
            if learn and not hole:
                self._intervals.append(interval)
                self._period = max(statistics.median(self._intervals), 1e-6)
        self._recent.append(stamp_ms)
        self._judged += 1
        return found

    def _expected(self) -> float:
        """When the next image is due, by the earliest of the recent ones: none is early."""
        behind = enumerate(reversed(self._recent), 1)
        return min(stamp + steps * self._period for steps, stamp in behind)

    def _weigh(self, stamp_ms: float, *, hole: bool) -> list[Gap]:
        doubt = self._doubt
        assert doubt is not None  # noqa: S101 - the caller has just looked
        doubt.late.append(stamp_ms - doubt.expected_ms - len(doubt.late) * self._period)
        doubt.since_hole = 1 if hole else doubt.since_hole + 1
        if doubt.since_hole < CATCH_UP and len(doubt.late) < LONGEST_DOUBT:
            return []
        return self._settle()

    def _settle(self) -> list[Gap]:
        doubt, self._doubt = self._doubt, None
        if doubt is None:
            return []
        late = min(doubt.late[-doubt.since_hole :])
        known = doubt.is_plain and len(self._intervals) == MEMORY
        dropped = math.floor(late / self._period + (IN_DOUBT if known else 0.5))
        self._recent.clear()  # what came before the hole is no measure for what comes behind
        self._recent.append(doubt.expected_ms + (len(doubt.late) - 1) * self._period + late)
        return [Gap(doubt.before, late, dropped)] if dropped > 0 else []
