"""What is kept of the last minute and the last hour, in bounded memory whatever the rate."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

MEASURES: Final = ("noise_sigma", "focus", "saturated_fraction", "background")
HOUR_S = 3600
_RATE_S = 60
_BINS = 240
_SHORTEST_SPAN_S = 120.0
_SPANS_S = (_SHORTEST_SPAN_S, 300.0, 600.0, 1200.0, 1800.0, float(HOUR_S))


class Rate:
    """Frames over the last minute, counted by the second."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, int]] = deque(maxlen=_RATE_S + 1)
        self._first: float | None = None

    def add(self, now: float) -> None:
        """Count one frame at ``now``, seconds of a clock that never runs backwards."""
        if self._first is None:
            self._first = now
        second, count = int(now), 1
        if self._seconds and self._seconds[-1][0] == second:
            count += self._seconds.pop()[1]
        self._seconds.append((second, count))

    def per_s(self, now: float) -> float:
        """Return frames per second over the last minute, or since the first if that is less."""
        if self._first is None:
            return 0.0
        frames = sum(count for second, count in self._seconds if second > now - _RATE_S)
        return frames / min(max(now - self._first, 1.0), _RATE_S)


@dataclass(slots=True)
class Spread:
    """Mean, lowest and highest of some values."""

    count: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, value: float) -> None:
        """Take in one value."""
        self.count += 1
        self.total += value
        self.low = min(self.low, value)
        self.high = max(self.high, value)

    def merge(self, other: Spread) -> None:
        """Take in the values of another."""
        self.count += other.count
        self.total += other.total
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)


def _spreads() -> tuple[Spread, ...]:
    return tuple(Spread() for _ in MEASURES)


@dataclass(slots=True)
class _Interval:
    """The frames of one second, or of several together: accepted ones, and all others."""

    at: float
    accepted: tuple[Spread, ...] = field(default_factory=_spreads)
    refused: tuple[Spread, ...] = field(default_factory=_spreads)

    def merge(self, other: _Interval) -> None:
        for mine, others in zip(self.accepted, other.accepted, strict=True):
            mine.merge(others)
        for mine, others in zip(self.refused, other.refused, strict=True):
            mine.merge(others)


class QualityHour:
    """The quality of the last hour's frames, a point for each second in which there were some."""

    def __init__(self) -> None:
        self._seconds: deque[_Interval] = deque(maxlen=HOUR_S)

    def add(self, now: float, quality: Mapping[str, Any], *, refused: bool) -> None:
        """Take in one frame's measures; those that it does not have are left out."""
        second = math.floor(now)
        if not self._seconds or self._seconds[-1].at != second:
            self._seconds.append(_Interval(second))
        point = self._seconds[-1]
        for name, spread in zip(
            MEASURES, point.refused if refused else point.accepted, strict=True
        ):
            value = quality.get(name)
            if isinstance(value, int | float) and math.isfinite(value):
                spread.add(value)

    def copy(self) -> list[_Interval]:
        """Return the points, oldest first; further frames do not change them."""
        seconds = list(self._seconds)
        if seconds:  # only the newest is still added to
            newest = _Interval(seconds[-1].at)
            newest.merge(seconds[-1])
            seconds[-1] = newest
        return seconds


def curves(seconds: list[_Interval], now: float) -> dict[str, Any]:
    """Reduce the points of the last hour to what a page can draw.

    Parameters
    ----------
    seconds
        As ``QualityHour.copy`` returned them.
    now
        Of the same clock.

    Returns
    -------
    dict
        ``span_s``, the time that the curves cover (2 min to 1 h, in steps);
        ``step_s``, the width of a point; ``ago_s``, the age of each point;
        and for each measure ``mean``, ``low`` and ``high`` of the accepted
        frames and ``refused``, the mean of all others; None where there is none.
    """
    seconds = [point for point in seconds if point.at > now - HOUR_S]
    age = now - seconds[0].at if seconds else 0.0
    span = next((span for span in _SPANS_S if age <= span), _SPANS_S[-1])
    step = span / _BINS
    points: list[_Interval] = []
    for second in seconds:
        start = math.floor(second.at / step) * step
        if not points or points[-1].at != start:
            points.append(_Interval(start))
        points[-1].merge(second)
    drawn: dict[str, Any] = {
        "span_s": span,
        "step_s": step,
        "ago_s": [round(max(now - point.at, 0.0), 1) for point in points],
    }
    for index, name in enumerate(MEASURES):
        accepted = [point.accepted[index] for point in points]
        refused = [point.refused[index] for point in points]
        drawn[name] = {
            "mean": [_short(s.total / s.count) if s.count else None for s in accepted],
            "low": [_short(s.low) if s.count else None for s in accepted],
            "high": [_short(s.high) if s.count else None for s in accepted],
            "refused": [_short(s.total / s.count) if s.count else None for s in refused],
        }
    return drawn


def _short(value: float) -> float:
    """Round to the five digits that a curve can show."""
    return float(f"{value:.5g}")
