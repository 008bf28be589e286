"""One frame's journey: read, judge, segment, record."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from segbatch import __version__, log
from segbatch.errors import (
    ChangedFrameError,
    EngineError,
    FrameError,
    SegbatchError,
    UnreadableFrameError,
    UnsupportedFrameError,
)
from segbatch.frame import Frame
from segbatch.infer.quality.measures import Measures
from segbatch.infer.quality.observe import Observation
from segbatch.infer.quality.verdict import Judge
from segbatch.infer.segment import Segmentation, Segmenter
from segbatch.service.journey import (
    Journey,
    Judged,
    RawChangedError,
    faults_of_one_frame,
    frame_info,
    group_of,
    mask_info,
    quality_of,
)
from segbatch.service.record.names import printable
from segbatch.service.record.products import LABEL_DTYPE, Products, page_of
from segbatch.service.record.schema import (
    ModelInfo,
    QcRecord,
    Reason,
    Timing,
    now,
)
from segbatch.service.turns import Turns

Observe = Callable[[NDArray[Any], int | None], Observation]
_logger = log.get_logger(__name__)
_TRIAL_SHAPE = (64, 64)
SOFTWARE = f"segbatch {__version__}"


class Pipeline:
    """The steps of a journey with what they share: judge, segmenter, settings.

    Journeys may run in several threads; frames are judged in the order of
    their tickets.
    """

    def __init__(
        self,
        judge: Judge,
        segmenter: Callable[[], Segmenter],
        observe: Observe,
        settings_sha256: str,
        require_folder: Callable[[], None],
    ) -> None:
        self.turns = Turns()
        self._judge = judge
        self._judging = threading.Lock()
        self._depths_warned_of: set[int] = set()
        self._segmenter = segmenter
        self._observe = observe
        self._settings_sha256 = settings_sha256
        self._require_folder = require_folder

    def run(self, journey: Journey) -> QcRecord:
        """Take one frame from its file to its outcome on disk, and return the record.

        Raises
        ------
        StorageError
            The outcome could not be written.
        RawChangedError
            The raw file was replaced or grew on the way; nothing was recorded.
        """
        frame: Frame | None = None
        judged: Judged | None = None
        try:
            if journey.set_aside is not None:
                raise journey.set_aside
            frame = self._read(journey)
            judged = self._judge_frame(journey, frame)
            segmentation = self._segment(journey, frame, judged)
            products = _compress(journey, frame, segmentation)
        except ChangedFrameError as error:
            raise RawChangedError(str(error)) from error
        except (FrameError, EngineError) as error:
            return self._record_failure(journey, frame, judged, error)
        finally:
            self.turns.passed(journey.ticket)
        return self._record(journey, frame, judged, segmentation, products)

    def engine_works(self) -> bool:
        """Tell whether the engine still segments a frame that cannot be at fault."""
        try:
            self._segmenter().segment(np.zeros(_TRIAL_SHAPE, np.uint16), 16)
        except SegbatchError as error:
            _logger.error("the engine fails on a blank frame", why=str(error))
            return False
        except Exception:
            _logger.exception("the engine fails on a blank frame")
            return False
        return True

    def forget(self, keys: Iterable[tuple[int, int]]) -> None:
        """Take frames out of the run's statistics: their file is another now."""
        with self._judging:
            self._judge.forget(keys)

    def remember(self, key: tuple[int, int], record: QcRecord, measures: Measures | None) -> None:
        """Take a frame that was recorded before into the run's statistics."""
        if record.frame.pixel_hash is None or record.outcome == "failed" or measures is None:
            return
        group = record.quality.get("group", "")
        with self._judging:
            self._judge.judge(key, measures, record.frame.pixel_hash, group)

    def _read(self, journey: Journey) -> Frame:
        with journey.timed("read"):
            if journey.source is None:
                raise journey.open_error or UnreadableFrameError(f"{journey.raw} is not open")
            try:
                return journey.source.read(journey.page)
            except MemoryError as error:
                raise UnsupportedFrameError(
                    f"{journey.raw}: not enough memory to read frame {journey.page}",
                    "a frame that fits into memory",
                    "close other programs, or process it on a larger machine",
                ) from error

    def _judge_frame(self, journey: Journey, frame: Frame) -> Judged:
        with journey.timed("judge"), faults_of_one_frame(journey):
            seen = self._observe(frame.pixels, frame.ceiling)
            measures, pixel_hash = seen.measures, seen.pixel_hash
            if journey.pixel_hash not in (None, pixel_hash):
                raise RawChangedError(f"{journey.raw} has other pixels than were judged")
            if measures.ceiling_exceeded:
                self._warn_of_depth(frame, measures)
            verdict = journey.verdict
            if verdict is None:
                self.turns.wait(journey.ticket)
                with self._judging:
                    verdict = self._judge.judge(journey.key, measures, pixel_hash, group_of(frame))
                self.turns.passed(journey.ticket)
            quality = quality_of(msgspec.to_builtins(measures), verdict, group_of(frame))
            return Judged(verdict, pixel_hash, quality)

    def _warn_of_depth(self, frame: Frame, measures: Measures) -> None:
        """Say once for each depth that pixels contradict it: exposure cannot be judged then."""
        with self._judging:
            if frame.bit_depth in self._depths_warned_of:
                return
            self._depths_warned_of.add(frame.bit_depth)
        _logger.warning(
            "pixels above the ceiling of the stated bit depth; saturation is not judged",
            file=str(frame.id.file),
            bit_depth=frame.bit_depth,
            ceiling=frame.ceiling,
            maximum=measures.maximum,
            remedy="give the camera's --bit-depth, or its --profile",
        )

    def _segment(self, journey: Journey, frame: Frame, judged: Judged) -> Segmentation | None:
        if not judged.verdict.accepted:
            return None
        with journey.timed("segment"), faults_of_one_frame(journey):
            return self._segmenter().segment(
                frame.pixels,
                frame.bit_depth,
                probabilities=journey.probabilities,
                labels=journey.labels,
            )

    def _record(
        self,
        journey: Journey,
        frame: Frame,
        judged: Judged,
        segmentation: Segmentation | None,
        products: Products | None,
    ) -> QcRecord:
        self._require_unchanged(journey, frame)
        record = QcRecord(
            frame=frame_info(journey, frame, judged),
            outcome="segmented" if segmentation is not None else "rejected",
            reasons=[cast("Reason", reason) for reason in judged.verdict.reasons],
            quality=judged.quality,
            mask=mask_info(segmentation) if segmentation is not None else None,
            model=self._model_info() if segmentation is not None else None,
            settings_sha256=self._settings_sha256,
            software=SOFTWARE,
            written_at=now(),
            timing_ms=Timing(**journey.timing_ms),
        )
        return journey.recorder.commit(journey.page, record, products)

    def _require_unchanged(self, journey: Journey, frame: Frame) -> None:
        if journey.source is not None and journey.source.may_grow:
            return
        try:
            there = frame.id.file.stat()
        except OSError:  # moved away since: its pixels were read whole, so their outcome stands
            self._require_folder()
            return
        if (there.st_size, there.st_mtime_ns) != (frame.size_bytes, frame.mtime_ns):
            raise RawChangedError(str(frame.id.file))

    def _record_failure(
        self,
        journey: Journey,
        frame: Frame | None,
        judged: Judged | None,
        error: FrameError | EngineError,
    ) -> QcRecord:
        self._require_folder()
        previous = journey.previous
        text = printable(str(error))
        if previous is not None and previous.error == text:
            return previous
        reason: Reason = error.reason if isinstance(error, FrameError) else "engine-error"
        record = QcRecord(
            frame=frame_info(journey, frame, judged),
            outcome="failed",
            reasons=[reason],
            error=text,
            quality=judged.quality if judged is not None else {},
            model=self._model_info() if isinstance(error, EngineError) else None,
            settings_sha256=self._settings_sha256,
            software=SOFTWARE,
            written_at=now(),
            timing_ms=Timing(**journey.timing_ms),
        )
        return journey.recorder.commit(journey.page, record, None)

    def _model_info(self) -> ModelInfo:
        info = self._segmenter().info
        return ModelInfo(
            name=info.name,
            sha256=info.sha256,
            engine=info.engine,
            precision=info.precision,
            manifest_sha256=info.manifest_sha256,
        )


def _compress(journey: Journey, frame: Frame, segmentation: Segmentation | None) -> Products | None:
    if segmentation is None:
        return None
    with journey.timed("record"), faults_of_one_frame(journey):
        return _products_of(frame, segmentation)


def _products_of(frame: Frame, segmentation: Segmentation) -> Products:
    probabilities, labels = segmentation.probabilities, segmentation.labels
    return Products(
        mask=page_of(segmentation.mask),
        probabilities=page_of(probabilities) if probabilities is not None else None,
        labels=page_of(labels.astype(LABEL_DTYPE)) if labels is not None else None,
        pixel_size_um=frame.acquisition.pixel_size_um,
    )
