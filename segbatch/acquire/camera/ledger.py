"""What a run took, wrote and lost: counted once, told to whoever watches, kept in its record."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from segbatch.acquire.camera.gaps import Gap, GapWatch
from segbatch.acquire.camera.record import (
    GAPS_KEPT,
    CameraRecord,
    GapRecord,
    write_record,
)
from segbatch.log import get_logger

if TYPE_CHECKING:
    from segbatch.acquire.camera.camera import Batch
    from segbatch.acquire.camera.core import Shot

TELL_EVERY_S = 0.2
RECORD_EVERY_S = 2.0
_logger = get_logger(__name__)


class Counts(msgspec.Struct, frozen=True):
    """Where a run stands; ``ring_used`` of ``ring_capacity`` images wait in the ring buffer."""

    taken: int = 0
    written: int = 0
    dropped: int = 0
    ring_used: int = 0
    ring_capacity: int = 0


class Ledger:
    """The counts of one run. ``wrote`` comes from the writers' threads, all else from one other."""

    def __init__(
        self,
        folder: Path,
        record: CameraRecord,
        listener: Callable[[Path, Counts], None] | None,
    ) -> None:
        self.folder = folder
        self.record = record
        self._listener = listener
        self._guard = threading.Lock()
        self._watch = GapWatch()
        self._start_ms = 0.0
        self._last_ms = 0.0
        self._after_overflow = False
        self._ring_used = 0
        self._told = self._recorded = 0.0

    @property
    def counts(self) -> Counts:
        """Return where the run stands."""
        with self._guard:
            record = self.record
            return Counts(
                record.taken, record.written, record.dropped, self._ring_used, record.ring_capacity
            )

    def sequence_starts(self) -> None:
        """Time stamps count from now."""
        self._start_ms = 1000 * time.monotonic()

    def took(self, shot: Shot) -> int:
        """Count a frame that left the camera; return its index in the run."""
        index = self.record.taken
        self.record.taken += 1
        stamp = _elapsed_ms(shot)
        at_ms = 1000 * time.monotonic() if stamp is None else self._start_ms + stamp
        if self._after_overflow:
            self._after_overflow = False
            self._count_overflow(index, at_ms)
        if stamp is not None and self.record.gaps_watched:
            self._note_gaps(self._watch.add(at_ms))
        self._last_ms = at_ms
        return index

    def wrote(self, *, synced: bool) -> None:
        """Count a frame that is on the disk."""
        with self._guard:
            self.record.written += 1
            self.record.unsynced += not synced

    def ring(self, batch: Batch) -> None:
        """Note the ring buffer's state."""
        self._ring_used = batch.left
        self.record.ring_capacity = batch.capacity
        self.record.ring_most_used = max(self.record.ring_most_used, batch.left + len(batch.shots))

    def overflowed(self) -> None:
        """Note that the ring buffer was full and the camera stopped."""
        self._note_gaps(self._watch.finish())
        self.record.period_ms = self._watch.period_ms or self.record.period_ms
        self._watch = GapWatch()
        self.record.ring_overflows += 1
        self._after_overflow = True

    def missed(self, before: int, count: int, late_ms: float) -> None:
        """Count frames whose turn passed, of a run that is taken by the clock."""
        self._add(GapRecord(before, count, round(late_ms, 3), "late"))

    def left_in_ring(self, count: int) -> None:
        """Count frames that the camera took and nobody could save."""
        self.record.taken += count

    def end(self) -> None:
        """Settle what was in doubt."""
        if self._after_overflow:
            self._after_overflow = False
            self._count_overflow(self.record.taken, 1000 * time.monotonic())
        self._note_gaps(self._watch.finish())
        self.record.period_ms = self._watch.period_ms or self.record.period_ms
        self.record.not_written = self.record.taken - self.record.written
        self._ring_used = 0
        self.tell(now=True)

    def tell(self, *, now: bool = False) -> None:
        """Tell the listener, if it is time."""
        moment = time.monotonic()
        if self._listener is not None and (now or moment - self._told >= TELL_EVERY_S):
            self._told = moment
            self._listener(self.folder, self.counts)

    def record_is_due(self) -> bool:
        """Tell whether the record on the disk is old; it is taken as written anew."""
        moment = time.monotonic()
        due = moment - self._recorded >= RECORD_EVERY_S
        if due:
            self._recorded = moment
        return due

    def save(self) -> None:
        """Write the record; an ``OSError`` where it cannot be."""
        self.record.period_ms = self._watch.period_ms or self.record.period_ms
        write_record(self.folder, self.record)

    def _count_overflow(self, before: int, at_ms: float) -> None:
        """Count the frames that the camera could have taken while it stood."""
        period = self.record.period_ms or self.record.exposure_ms or 1.0
        late_ms = max(at_ms - self._last_ms - period, 0.0)
        lost = max(1, round(late_ms / period))
        self._add(GapRecord(before, lost, round(late_ms, 3), "ring overflow"))

    def _note_gaps(self, gaps: list[Gap]) -> None:
        first = self.record.taken - self._watch.count
        for gap in gaps:
            self._add(GapRecord(first + gap.before, gap.dropped, round(gap.late_ms, 3), "time gap"))

    def _add(self, gap: GapRecord) -> None:
        with self._guard:
            self.record.dropped += gap.dropped
            self.record.gaps = [*self.record.gaps[1 - GAPS_KEPT :], gap]
        _logger.warning(
            "frames dropped",
            run=str(self.folder),
            frames=gap.dropped,
            before_frame=gap.before_frame,
            why=gap.why,
            late_ms=round(gap.late_ms, 1),
        )


def _elapsed_ms(shot: Shot) -> float | None:
    try:
        return float(shot.tags["ElapsedTime-ms"])
    except (KeyError, TypeError, ValueError):
        return None
