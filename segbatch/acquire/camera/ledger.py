"""What a run took, wrote and lost: counted once, told to whoever watches, kept in its records."""

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
    now,
    write_record,
)
from segbatch.log import get_logger

if TYPE_CHECKING:
    from typing import Literal

    from segbatch.acquire.camera.camera import Batch
    from segbatch.acquire.camera.core import Shot
    from segbatch.acquire.camera.files import Sink
    from segbatch.acquire.camera.hold import Hold

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

    def after(self, before: Counts) -> Counts:
        """Return these counts with the frames of what came before."""
        return msgspec.structs.replace(
            self,
            taken=before.taken + self.taken,
            written=before.written + self.written,
            dropped=before.dropped + self.dropped,
        )


class Part:
    """One folder of a run: its record, its writer, its lock, and how many frames it is to hold."""

    def __init__(
        self,
        folder: Path,
        record: CameraRecord,
        sink: Sink,
        frames: int,
        held: Hold | None = None,
    ) -> None:
        self.folder = folder
        self.record = record
        self.sink = sink
        self.frames = frames
        self.held = held
        self.ended = False
        self.unsaved = False  # something was found out since it ended

    @property
    def left(self) -> int:
        """Frames that may still go into it."""
        return max(self.frames - self.record.taken, 0)

    def let_go(self, *, is_final: bool = False) -> None:
        """Give up the lock; the next start looks at a folder whose record is not final."""
        if self.held is not None:
            (self.held.release if is_final else self.held.leave)()


class Ledger:
    """The counts of one run, in all its folders.

    ``wrote``, ``ended`` and ``save`` come from the writers' threads, all else from one other.

    Parameters
    ----------
    listener
        Is told the folder that is written to and the counts of all.
    counts_holes
        Whether a hole in the time stamps is a dropped frame.
    """

    def __init__(
        self, listener: Callable[[Path, Counts], None] | None, *, counts_holes: bool
    ) -> None:
        self.taken = 0
        self._listener = listener
        self._counts_holes = counts_holes
        self._parts: list[Part] = []  # the one that is written to, and those with open questions
        self._guard = threading.Lock()
        self._written = self._dropped = 0
        self._watch = GapWatch()
        self._period_ms: float | None = None
        self._start_ms = 0.0
        self._last_ms = 0.0
        self._after_overflow = False
        self._ring_used = self._ring_capacity = 0
        self._told = self._recorded = 0.0

    @property
    def part(self) -> Part:
        """The folder that is written to."""
        return self._parts[-1]

    @property
    def parts(self) -> list[Part]:
        """The folders in which something may still be found."""
        return list(self._parts)

    @property
    def counts(self) -> Counts:
        """Return where the run stands."""
        with self._guard:
            ring = self._ring_used, self._ring_capacity
            return Counts(self.taken, self._written, self._dropped, *ring)

    def open(self, part: Part) -> None:
        """Count in a new folder from now; those in which nothing can be found any more are let go.

        A hole is certain some images behind it: by then, they may lie in the next folder.
        """
        settled = self.taken - self._watch.count + self._watch.settled
        with self._guard:
            self._parts = [
                each
                for each in self._parts
                if not each.ended or each.unsaved or _end(each.record) > settled
            ]
            self._parts.append(part)
        self._recorded = 0.0  # whoever finds the folder cut off wants to know what took it

    def sequence_starts(self) -> None:
        """Time stamps count from now."""
        self._start_ms = 1000 * time.monotonic()

    def took(self, shot: Shot) -> int:
        """Count a frame that left the camera; return its index in its folder."""
        record = self.part.record
        index = record.taken
        with self._guard:
            record.taken += 1
            self.taken += 1
        stamp = _elapsed_ms(shot)
        at_ms = 1000 * time.monotonic() if stamp is None else self._start_ms + stamp
        if self._after_overflow:
            self._after_overflow = False
            self._count_overflow(self.taken - 1, at_ms)
        if stamp is not None and record.gaps_watched:
            self._note_gaps(self._watch.add(at_ms))
        self._last_ms = at_ms
        return index

    def wrote(self, part: Part, *, synced: bool) -> bool:
        """Count a frame that is on the disk; return whether it was the last of a full folder."""
        record = part.record
        with self._guard:
            record.written += 1
            record.unsynced += not synced
            self._written += 1
            return not part.left and record.written == record.taken

    def ring(self, batch: Batch) -> None:
        """Note the ring buffer's state."""
        record = self.part.record
        self._ring_used = batch.left
        record.ring_capacity = self._ring_capacity = batch.capacity
        record.ring_most_used = max(record.ring_most_used, batch.left + len(batch.shots))

    def overflowed(self) -> None:
        """Note that the ring buffer was full and the camera stopped."""
        self._note_gaps(self._watch.finish())
        self._period_ms = self._watch.period_ms or self._period_ms
        self._watch = GapWatch()
        self.part.record.ring_overflows += 1
        self._after_overflow = True

    def missed(self, count: int, late_ms: float) -> None:
        """Count frames whose turn passed, of a run that is taken by the clock."""
        self._add(self.taken, count, late_ms, "late")

    def left_in_ring(self, count: int) -> None:
        """Count frames that the camera took and nobody could save."""
        with self._guard:
            self.taken += count
            self.part.record.taken += count
            if count:
                self.part.ended = False  # it was full, or so it seemed

    def ended(
        self, part: Part, state: Literal["complete", "stopped", "failed"], error: str | None
    ) -> None:
        """Note that nothing more comes into a folder."""
        record = part.record
        with self._guard:
            record.period_ms = self._watch.period_ms or self._period_ms
            record.not_written = record.taken - record.written
            record.ended_at, record.state, record.error = now(), state, error
            part.ended = part.unsaved = True

    def end(self) -> list[Part]:
        """Settle what was in doubt; return the folders that have not ended."""
        if self._after_overflow:
            self._after_overflow = False
            self._count_overflow(self.taken, 1000 * time.monotonic())
        self._note_gaps(self._watch.finish())
        self._ring_used = 0
        return [part for part in self._parts if not part.ended]

    def tell(self, *, now: bool = False) -> None:
        """Tell the listener, if it is time."""
        moment = time.monotonic()
        if self._listener is not None and (now or moment - self._told >= TELL_EVERY_S):
            self._told = moment
            self._listener(self.part.folder, self.counts)

    def record_is_due(self) -> bool:
        """Tell whether the record on the disk is old; it is taken as written anew."""
        moment = time.monotonic()
        due = moment - self._recorded >= RECORD_EVERY_S
        if due:
            self._recorded = moment
        return due

    def save(self) -> None:
        """Write the records that are not final on the disk; an ``OSError`` where it cannot be.

        A folder whose record is final is let go.
        """
        with self._guard:
            due = [part for part in self._parts if not part.ended or part.unsaved]
        for part in due:
            if not part.ended:
                part.record.period_ms = self._watch.period_ms or self._period_ms
            is_final = part.ended  # asked before it is written
            part.unsaved = False  # before it is read: what comes in between is written next time
            try:
                write_record(part.folder, part.record)
            except OSError:
                part.unsaved = True
                raise
            if is_final:
                part.let_go(is_final=True)

    def _count_overflow(self, before: int, at_ms: float) -> None:
        """Count the frames that the camera could have taken while it stood."""
        period = self._period_ms or self.part.record.exposure_ms or 1.0
        late_ms = max(at_ms - self._last_ms - period, 0.0)
        self._add(before, max(1, round(late_ms / period)), late_ms, "ring overflow")

    def _note_gaps(self, gaps: list[Gap]) -> None:
        first = self.taken - self._watch.count
        for gap in gaps if self._counts_holes else ():
            self._add(first + gap.before, gap.dropped, gap.late_ms, "time gap")

    def _add(
        self,
        before: int,
        dropped: int,
        late_ms: float,
        why: Literal["time gap", "ring overflow", "late"],
    ) -> None:
        """Count dropped frames in the folder of the frame that came behind them."""
        with self._guard:
            holding = (each for each in reversed(self._parts) if each.record.taken)
            part = next(
                (each for each in holding if each.record.first_frame <= before), self._parts[0]
            )
            record = part.record
            gap = GapRecord(before - record.first_frame, dropped, round(late_ms, 3), why)
            record.dropped += dropped
            record.gaps = [*record.gaps[1 - GAPS_KEPT :], gap]
            part.unsaved = True
            self._dropped += dropped
        _logger.warning(
            "frames dropped",
            run=str(part.folder),
            frames=dropped,
            before_frame=gap.before_frame,
            why=why,
            late_ms=round(late_ms, 1),
        )


def _end(record: CameraRecord) -> int:
    return record.first_frame + record.taken


def _elapsed_ms(shot: Shot) -> float | None:
    try:
        return float(shot.tags["ElapsedTime-ms"])
    except (KeyError, TypeError, ValueError):
        return None
