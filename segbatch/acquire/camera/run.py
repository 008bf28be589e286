"""One run: from the ring buffer to the disk, nothing else in between.

The thread that asks the core copies images out of the ring buffer into a
short queue; writers empty it. Where the disk is too slow the queue fills,
then the ring; then the camera stops, what the ring holds is saved, and the
camera starts again: that loss is counted. A run that is long goes on from
folder to folder while the camera runs.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from segbatch.acquire.camera.camera import WITHOUT_END, Batch, Camera, Facts
from segbatch.acquire.camera.core import Shot
from segbatch.acquire.camera.disk import RunDisk, text_of
from segbatch.acquire.camera.errors import (
    CameraBusyError,
    CameraError,
    CameraSilentError,
    NoRoomError,
)
from segbatch.acquire.camera.files import Sink, frame_metadata, open_sink
from segbatch.acquire.camera.hold import hold
from segbatch.acquire.camera.ledger import Counts, Ledger, Part
from segbatch.acquire.camera.properties import apply
from segbatch.acquire.camera.record import CameraRecord, leave_if_empty, new_record
from segbatch.acquire.camera.room import require_room
from segbatch.acquire.camera.waits import DiskWaits
from segbatch.acquire.camera.writing import DEPTH
from segbatch.log import get_logger

if TYPE_CHECKING:
    from segbatch.settings.sections import CameraSettings

AT_ONCE = 16  # images copied by one question to the core
LOOK_S = 0.003  # between two looks at an empty ring
FINISH_S = 20.0  # for the ring and the queue, when a run ends
ROOM_FRAMES = 64  # that must fit on the disk for a run to begin
_logger = get_logger(__name__)


class Run:
    """Take one run with an open camera.

    Parameters
    ----------
    camera
        Open, and nobody else's at the moment.
    settings
        What to set, how many frames, how often, how many of them in one folder.
    folder
        Makes the folder of the run; called when all else is ready, and again for each further
        folder.
    listener
        Is told the folder that is written to and the counts of all: of each folder before its first
        frame, then a few times a second at most.
    sink
        Makes the writer of raw frames; by default that of ``settings.format``.
    on_folder
        Is handed each folder with its record, which fills as the run goes on.
    min_free_gib
        Room on the disk below which the run does not begin, or ends.
    waits
        Is told of every question that the disk may hang on.
    """

    def __init__(
        self,
        camera: Camera,
        settings: CameraSettings,
        folder: Callable[[], Path],
        listener: Callable[[Path, Counts], None] | None = None,
        sink: Callable[[str, Path, Facts], Sink] = open_sink,
        *,
        on_folder: Callable[[Path, CameraRecord], None] | None = None,
        min_free_gib: float = 0.0,
        waits: DiskWaits | None = None,
    ) -> None:
        self._camera = camera
        self._settings = settings
        self._make_folder = folder
        self._listener = listener
        self._make_sink = sink
        self._min_free = round(min_free_gib * 2**30)
        self._waits = waits or DiskWaits()
        self._on_folder = on_folder
        self.folder: Path | None = None
        self.record: CameraRecord | None = None

    def take(self, stop: threading.Event) -> CameraRecord:
        """Take frames until there are enough or ``stop`` is set; return the last folder's record.

        ``folder`` and ``record``, of the last folder, are also there where it fails, once they
        exist.

        Raises
        ------
        SettingsError
            The camera has no such property, or refuses a value; nothing was written.
        CameraBusyError
            Somebody else's acquisition is under way; nothing was touched.
        CameraError
            The camera failed or fell silent; what was taken is written.
        NoRoomError
            The disk has less room than is to be left free; what was taken is written.
        StorageError
            The disk is full, gone or stuck; the record and the counts say what is lost.
        """
        if self._camera.busy():
            raise CameraBusyError(
                f"camera {self._camera.label} is acquiring for somebody else",
                "a camera at rest",
                "wait until that acquisition (or the live view) is over",
            )
        self._properties = apply(self._camera, self._settings)
        self._facts = facts = self._camera.facts()
        by_the_clock = self._settings.interval_ms > facts.exposure_ms
        # A turn that passed is counted when it passes; the hole that it leaves is no second one.
        self._ledger = Ledger(self._listener, counts_holes=not by_the_clock)
        record = self._open_part()
        self._disk = RunDisk(
            self._ledger.part.sink.threads,
            lambda: self._ledger.part.folder,
            min_free=self._min_free,
            timeout_s=self._settings.timeout_s,
            waits=self._waits,
        )
        self._writers = self._disk.writers
        failure: BaseException | None = None
        try:
            (self._take_by_the_clock if by_the_clock else self._take_sequence)(stop)
        except BaseException as error:  # noqa: BLE001 - it is raised when the frames are safe
            failure = error
        failure = self._finish(failure, stopped=stop.is_set())
        if failure is not None:
            raise failure
        return self.record or record

    @property
    def _left(self) -> int:
        """Frames still to take."""
        if not self._settings.frames:
            return WITHOUT_END
        return self._settings.frames - self._ledger.taken

    def _open_part(self) -> CameraRecord:
        """Begin a new folder."""
        with self._waits.on("to begin a run's folder"):
            return self._begin_part()

    def _begin_part(self) -> CameraRecord:
        facts = self._facts
        folder = self._make_folder()
        if self.folder is None:  # later it is watched
            frame = facts.width * facts.height * facts.bytes_per_pixel
            try:
                require_room(folder, self._min_free + ROOM_FRAMES * frame)
            except NoRoomError:
                leave_if_empty(folder)
                raise
        record = new_record(facts, self._settings, self._properties, self._ledger.taken)
        sink = self._make_sink(self._settings.format, folder, facts)
        frames = self._settings.frames_per_run or WITHOUT_END
        self._ledger.open(Part(folder, record, sink, frames, hold(folder)))
        self.folder, self.record = folder, record
        if self._on_folder is not None:
            self._on_folder(folder, record)
        self._ledger.tell(now=True)
        _logger.info(
            "acquisition goes on in a new folder" if record.first_frame else "acquisition begins",
            run=str(folder),
            camera=facts.label,
        )
        return record

    def _take_sequence(self, stop: threading.Event) -> None:
        """Let the camera set the pace; the ring holds what the disk cannot take at once."""
        if self._settings.interval_ms:
            _logger.warning(
                "interval not longer than the exposure: as fast as the camera goes",
                interval_ms=self._settings.interval_ms,
                exposure_ms=self._facts.exposure_ms,
            )
        self._start_sequence()
        heard = time.monotonic()
        while not stop.is_set() and self._left:
            self._disk.require()
            batch = self._take_in()
            waited_s = time.monotonic() - heard
            if batch.shots:
                heard = time.monotonic()
            elif batch.left:
                self._disk.require_in_time(waited_s)
                stop.wait(LOOK_S)
            elif batch.running:
                self._require_frames(waited_s)
                stop.wait(LOOK_S)
            elif batch.overflowed:
                self._disk.require_in_time(waited_s)
                if self._writers.room > DEPTH // 2:
                    self._ledger.overflowed()
                    self._camera.stop()
                    self._start_sequence()
                stop.wait(LOOK_S)
            else:
                raise CameraError(
                    f"camera {self._camera.label} stopped by itself after "
                    f"{self._ledger.taken} frames",
                    f"{self._settings.frames or 'frames without end'}",
                    "check the camera's cable and power",
                )

    def _start_sequence(self) -> None:
        self._camera.start(self._left)
        self._ledger.sequence_starts()

    def _take_in(self) -> Batch:
        """Copy what is in the ring, as far as there is room before the disk and in the folder."""
        if not self._ledger.part.left:
            batch = self._camera.drain(0)
            if not batch.left:
                return self._after(batch)
            self._open_part()  # before anything leaves the ring: it may fail
        limit = min(self._writers.room, AT_ONCE, self._left, self._ledger.part.left)
        batch = self._camera.drain(limit)
        for shot in batch.shots:
            self._keep(shot)
        return self._after(batch)

    def _after(self, batch: Batch) -> Batch:
        self._ledger.ring(batch)
        self._tend()
        return batch

    def _tend(self) -> None:
        """Do what is due now and then; what asks the disk is the writers' work."""
        self._ledger.tell()
        if self._writers.room and self._ledger.record_is_due():
            self._writers.put(self._ledger.save)
        self._disk.look_at_room()

    def _keep(self, shot: Shot) -> None:
        part, index = self._ledger.part, self._ledger.took(shot)
        # A disk that falls behind is not made to wait for the platter as well: a frame in the
        # system's cache is safer than one in a full ring.
        sync = not self._writers.behind
        self._writers.put(partial(self._write, part, index, shot, sync=sync))

    def _write(self, part: Part, index: int, shot: Shot, *, sync: bool) -> None:
        meta = frame_metadata(self._facts, shot.tags, index)
        part.sink.write(index, shot.pixels, meta, sync=sync)
        if self._ledger.wrote(part, synced=sync):
            self._close(part)
            self._ledger.ended(part, "complete", None)
            self._ledger.save()

    @staticmethod
    def _close(part: Part) -> None:
        part.sink.close()
        if part.record.unsynced and hasattr(os, "sync"):
            os.sync()

    def _take_by_the_clock(self, stop: threading.Event) -> None:
        """One image at a time, each at its turn; a turn that has passed is a dropped frame."""
        interval_s = self._settings.interval_ms / 1000
        begun = time.monotonic()
        turn = 0
        while not stop.is_set() and self._left:
            self._disk.require()
            due = begun + turn * interval_s
            if stop.wait(max(due - time.monotonic(), 0.0)):
                break
            if not self._writers.room:
                self._disk.require_in_time(time.monotonic() - due)
                stop.wait(LOOK_S)
                continue
            late_s = time.monotonic() - due
            if (passed := int(late_s / interval_s)) > 0:
                self._ledger.missed(passed, 1000 * late_s)
                turn += passed
            if not self._ledger.part.left:
                self._open_part()
            shot = self._camera.snap(self._facts.exposure_ms)
            elapsed_ms = 1000 * (time.monotonic() - begun)
            self._keep(Shot(shot.pixels, {**shot.tags, "ElapsedTime-ms": round(elapsed_ms, 3)}))
            turn += 1
            self._tend()

    def _finish(self, failure: BaseException | None, *, stopped: bool) -> BaseException | None:
        """Save what can be saved, write the record; return what the run failed of, if it did."""
        deadline = time.monotonic() + FINISH_S
        if self._camera.has_started and not self._camera.calls.silent:
            for step in (self._camera.stop, partial(self._empty_ring, deadline)):
                try:
                    step()
                except Exception as error:  # noqa: BLE001 - as above
                    failure = failure or error
        in_time = self._writers.close(max(deadline - time.monotonic(), 1.0))
        lost = self._disk.failure or (None if in_time else self._disk.stuck())
        if failure is None or (lost and isinstance(failure, NoRoomError)):
            failure = lost
        with self._waits.on("to end a run"):
            return self._end_parts(failure, stopped=stopped, in_time=in_time)

    def _end_parts(
        self, failure: BaseException | None, *, stopped: bool, in_time: bool
    ) -> BaseException | None:
        """Bring the folders to their end; ``in_time``: the disk has taken all it was handed."""
        for part in self._ledger.end():
            if in_time:
                failure = self._disk.attempt(partial(self._close, part), failure)
            self._end(part, failure, stopped=stopped)
        save = self._save if in_time else partial(self._disk.do_if_it_answers, self._save)
        failure = self._disk.attempt(save, failure)
        self._ledger.tell(now=True)
        if in_time:  # else a thread of ours may still write there, when the disk is back
            for part in self._ledger.parts:
                part.let_go()
        return failure

    def _save(self) -> None:
        try:
            self._ledger.save()
        finally:
            for part in self._ledger.parts:
                if not part.record.written:
                    leave_if_empty(part.folder)

    def _end(self, part: Part, failure: BaseException | None, *, stopped: bool) -> None:
        record = part.record
        lost = record.taken > record.written
        if failure is not None and (lost or not isinstance(failure, NoRoomError)):
            state: Literal["complete", "stopped", "failed"] = "failed"
        elif failure is not None or (stopped and self._left):
            state = "stopped"
        else:
            state = "complete"
        self._ledger.ended(part, state, text_of(failure) if failure is not None else None)
        say = _logger.error if state == "failed" else _logger.info
        say(
            "acquisition ended",
            run=str(part.folder),
            state=state,
            error=record.error,
            taken=record.taken,
            written=record.written,
            not_written=record.not_written,
            dropped=record.dropped,
        )

    def _empty_ring(self, deadline: float) -> None:
        batch = Batch(running=False, left=1)
        try:
            while batch.left and self._left and time.monotonic() < deadline:
                if self._writers.failure is not None:
                    break
                batch = self._take_in()
                time.sleep(0 if batch.shots else LOOK_S)
        finally:
            if self._left:
                self._ledger.left_in_ring(self._camera.drain(0).left)

    def _require_frames(self, silent_s: float) -> None:
        patience_s = self._settings.timeout_s + 2 * self._facts.exposure_ms / 1000
        if silent_s > patience_s and not self._facts.hardware_triggered:
            raise CameraSilentError(
                f"no frame from camera {self._camera.label} for {silent_s:.1f} s",
                f"one every {self._facts.exposure_ms:g} ms or so",
                "check the camera's cable, power and trigger",
            )
