"""One run: from the ring buffer to the disk, nothing else in between.

The thread that asks the core copies images out of the ring buffer into a
short queue; writers empty it. Where the disk is too slow the queue fills,
then the ring; then the camera stops, what the ring holds is saved, and the
camera starts again: that loss is counted.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from segbatch.acquire.camera.camera import WITHOUT_END, Batch, Camera, Facts
from segbatch.acquire.camera.core import Shot
from segbatch.acquire.camera.errors import CameraBusyError, CameraError, CameraSilentError
from segbatch.acquire.camera.files import Sink, frame_metadata, open_sink, storage_error
from segbatch.acquire.camera.ledger import Counts, Ledger
from segbatch.acquire.camera.properties import apply
from segbatch.acquire.camera.record import CameraRecord, leave_if_empty, now
from segbatch.acquire.camera.writing import DEPTH, Writers
from segbatch.errors import SegbatchError, StorageError
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
        What to set, how many frames, how often.
    folder
        Makes the folder of the run; called when all else is ready.
    listener
        Is told the counts, a few times a second at most.
    sink
        Makes the writer of raw frames; by default that of ``settings.format``.
    """

    def __init__(
        self,
        camera: Camera,
        settings: CameraSettings,
        folder: Callable[[], Path],
        listener: Callable[[Path, Counts], None] | None = None,
        sink: Callable[[str, Path, Facts], Sink] = open_sink,
    ) -> None:
        self._camera = camera
        self._settings = settings
        self._make_folder = folder
        self._listener = listener
        self._make_sink = sink
        self.folder: Path | None = None
        self.record: CameraRecord | None = None

    def take(self, stop: threading.Event) -> CameraRecord:
        """Take frames until there are enough or ``stop`` is set; return the run's record.

        ``folder`` and ``record`` are also there where it fails, once they exist.

        Raises
        ------
        SettingsError
            The camera has no such property, or refuses a value; nothing was written.
        CameraBusyError
            Somebody else's acquisition is under way; nothing was touched.
        CameraError
            The camera failed or fell silent; what was taken is written.
        StorageError
            The disk is full, gone or stuck; the record and the counts say what is lost.
        """
        if self._camera.busy():
            raise CameraBusyError(
                f"camera {self._camera.label} is acquiring for somebody else",
                "a camera at rest",
                "wait until that acquisition (or the live view) is over",
            )
        properties = apply(self._camera, self._settings)
        self._facts = facts = self._camera.facts()
        folder = self._make_folder()
        record = CameraRecord(
            started_at=now(),
            backend=facts.backend,
            camera=facts.label,
            device=f"{facts.library}/{facts.device}",
            format=self._settings.format,
            frames_asked=self._settings.frames,
            gaps_watched=not facts.hardware_triggered,
            bit_depth=facts.bit_depth,
            width=facts.width,
            height=facts.height,
            exposure_ms=facts.exposure_ms,
            gain=facts.gain,
            pixel_size_um=facts.pixel_size_um or None,
            properties=properties,
        )
        self.folder, self.record = folder, record
        self._ledger = Ledger(folder, record, self._listener)
        self._require_room(folder)
        self._sink = self._make_sink(self._settings.format, folder, facts)
        self._writers = Writers(self._sink.threads)
        _logger.info("acquisition begins", run=str(folder), camera=facts.label)
        failure: SegbatchError | None = None
        try:
            by_the_clock = self._settings.interval_ms > facts.exposure_ms
            (self._take_by_the_clock if by_the_clock else self._take_sequence)(stop)
        except SegbatchError as error:
            failure = error
        finally:
            failure = self._finish(failure, stopped=stop.is_set())
        if failure is not None:
            raise failure
        return record

    @property
    def _left(self) -> int:
        """Frames still to take."""
        if not self._settings.frames:
            return WITHOUT_END
        return self._settings.frames - self._ledger.record.taken

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
            self._raise_storage_failure()
            batch = self._take_in()
            waited_s = time.monotonic() - heard
            if batch.shots:
                heard = time.monotonic()
            elif batch.left:
                self._require_disk(waited_s)
                stop.wait(LOOK_S)
            elif batch.running:
                self._require_frames(waited_s)
                stop.wait(LOOK_S)
            elif batch.overflowed:
                self._require_disk(waited_s)
                if self._writers.room > DEPTH // 2:
                    self._ledger.overflowed()
                    self._camera.stop()
                    self._start_sequence()
                stop.wait(LOOK_S)
            else:
                raise CameraError(
                    f"camera {self._camera.label} stopped by itself after "
                    f"{self._ledger.record.taken} frames",
                    f"{self._settings.frames or 'frames without end'}",
                    "check the camera's cable and power",
                )

    def _start_sequence(self) -> None:
        self._camera.start(self._left)
        self._ledger.sequence_starts()

    def _take_in(self) -> Batch:
        """Copy what is in the ring, as far as there is room before the disk."""
        batch = self._camera.drain(min(self._writers.room, AT_ONCE, self._left))
        for shot in batch.shots:
            self._keep(shot)
        self._ledger.ring(batch)
        self._ledger.tell()
        if self._writers.room and self._ledger.record_is_due():
            self._writers.put(self._ledger.save)
        return batch

    def _keep(self, shot: Shot) -> None:
        index = self._ledger.took(shot)
        # A disk that falls behind is not made to wait for the platter as well: a frame in the
        # system's cache is safer than one in a full ring.
        sync = not self._writers.behind
        self._writers.put(partial(self._write, index, shot, sync=sync))

    def _write(self, index: int, shot: Shot, *, sync: bool) -> None:
        meta = frame_metadata(self._facts, shot.tags, index)
        self._sink.write(index, shot.pixels, meta, sync=sync)
        self._ledger.wrote(synced=sync)

    def _take_by_the_clock(self, stop: threading.Event) -> None:
        """One image at a time, each at its turn; a turn that has passed is a dropped frame."""
        interval_s = self._settings.interval_ms / 1000
        begun = time.monotonic()
        turn = 0
        while not stop.is_set() and self._left:
            self._raise_storage_failure()
            due = begun + turn * interval_s
            if stop.wait(max(due - time.monotonic(), 0.0)):
                break
            if not self._writers.room:
                self._require_disk(time.monotonic() - due)
                stop.wait(LOOK_S)
                continue
            late_s = time.monotonic() - due
            if (passed := int(late_s / interval_s)) > 0:
                self._ledger.missed(self._ledger.record.taken, passed, 1000 * late_s)
                turn += passed
            shot = self._camera.snap(self._facts.exposure_ms)
            elapsed_ms = 1000 * (time.monotonic() - begun)
            self._keep(Shot(shot.pixels, {**shot.tags, "ElapsedTime-ms": round(elapsed_ms, 3)}))
            turn += 1
            self._ledger.tell()
            if self._ledger.record_is_due():
                self._writers.put(self._ledger.save)

    def _finish(self, failure: SegbatchError | None, *, stopped: bool) -> SegbatchError | None:
        """Save what can be saved, write the record; return what the run failed of, if it did."""
        deadline = time.monotonic() + FINISH_S
        record = self._ledger.record
        if not self._camera.calls.silent:
            try:
                self._camera.stop()
                self._empty_ring(deadline)
            except CameraError as error:
                failure = failure or error
        in_time = self._writers.close(max(deadline - time.monotonic(), 1.0))
        failure = failure or self._storage_failure()
        if in_time:
            try:
                self._sink.close()
                if record.unsynced and hasattr(os, "sync"):
                    os.sync()
            except OSError as error:
                failure = failure or storage_error(error, self._ledger.folder)
        else:
            failure = failure or self._stuck()
        self._ledger.end()
        record.ended_at = now()
        record.state = "failed" if failure else "stopped" if stopped and self._left else "complete"
        record.error = str(failure) if failure else None
        self._say_end()
        try:
            self._ledger.save()
        except OSError as error:
            failure = failure or storage_error(error, self._ledger.folder)
        if not record.written:
            leave_if_empty(self._ledger.folder)
        return failure

    def _empty_ring(self, deadline: float) -> None:
        batch = Batch(running=False, left=1)
        while batch.left and self._left and time.monotonic() < deadline:
            if self._writers.failure is not None:
                break
            batch = self._take_in()
            time.sleep(0 if batch.shots else LOOK_S)
        if self._left:
            self._ledger.left_in_ring(self._camera.drain(0).left)

    def _say_end(self) -> None:
        record = self._ledger.record
        say = _logger.error if record.state == "failed" else _logger.info
        say(
            "acquisition ended",
            run=str(self._ledger.folder),
            state=record.state,
            error=record.error,
            taken=record.taken,
            written=record.written,
            not_written=record.not_written,
            dropped=record.dropped,
        )

    def _require_room(self, folder: Path) -> None:
        facts = self._facts
        needed = ROOM_FRAMES * facts.width * facts.height * facts.bytes_per_pixel
        try:
            free = shutil.disk_usage(folder).free
        except OSError as error:
            raise storage_error(error, folder) from error
        if free < needed:
            leave_if_empty(folder)
            raise StorageError(
                f"{folder.parent} has {free / 2**20:.0f} MiB left",
                f"room for {ROOM_FRAMES} frames, {needed / 2**20:.0f} MiB, to begin with",
                "free some room, or let the camera write elsewhere",
            )

    def _require_frames(self, silent_s: float) -> None:
        patience_s = self._settings.timeout_s + 2 * self._facts.exposure_ms / 1000
        if silent_s > patience_s and not self._facts.hardware_triggered:
            raise CameraSilentError(
                f"no frame from camera {self._camera.label} for {silent_s:.1f} s",
                f"one every {self._facts.exposure_ms:g} ms or so",
                "check the camera's cable, power and trigger",
            )

    def _require_disk(self, waited_s: float) -> None:
        if waited_s > self._settings.timeout_s:
            raise self._stuck()

    def _stuck(self) -> StorageError:
        return StorageError(
            f"{self._ledger.folder}: the disk takes no more frames",
            "a disk as fast as the camera",
            "look at the drive or the share",
        )

    def _raise_storage_failure(self) -> None:
        failure = self._storage_failure()
        if failure is not None:
            raise failure

    def _storage_failure(self) -> StorageError | None:
        error = self._writers.failure
        return storage_error(error, self._ledger.folder) if error is not None else None
