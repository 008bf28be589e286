"""Hears of every frame: feeds the watchdog, the counters and the log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from segbatch import log
from segbatch.service.monitor.monitor import Monitor
from segbatch.service.record.schema import QcRecord

_logger = log.get_logger(__name__)


class Beat:
    """The service's ``Listener``.

    Parameters
    ----------
    monitor
        Counts the frames.
    alive
        Called whenever work was done; it feeds the watchdog, so that a service
        whose work stands still is ended although its threads live.
    """

    def __init__(self, monitor: Monitor, alive: Callable[[], None]) -> None:
        self._monitor, self._alive = monitor, alive

    def begin(self, title: str, total: int) -> None:
        """Feed the watchdog."""
        self._alive()

    def grow(self, by: int) -> None:
        """Feed the watchdog."""
        self._alive()

    def alive(self) -> None:
        """Feed the watchdog."""
        self._alive()

    def recorded(self, raw: Path, folder: Path, record: QcRecord, *, renewed: bool) -> None:
        """Count a frame, and write its line into the log."""
        self._alive()
        if not renewed:
            self._monitor.note(raw, record, folder)
        _logger.info(
            "verdict renewed" if renewed else "frame",
            file=str(raw),
            page=record.frame.page,
            outcome=record.outcome,
            reasons=record.reasons,
            error=record.error,
            objects=record.mask.object_count if record.mask is not None else None,
            ms=round(sum(getattr(record.timing_ms, step) for step in STEPS), 1),
        )


STEPS = ("read", "judge", "segment", "record")
