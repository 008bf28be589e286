"""One frame's journey: read, judge, segment, record."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from segbatch import __version__, log
from segbatch.acquire.source import Source
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
from segbatch.infer.quality.verdict import Judge, Verdict
from segbatch.infer.segment import Segmentation, Segmenter
from segbatch.service.record.names import printable, told
from segbatch.service.record.products import LABEL_DTYPE, Products, page_of
from segbatch.service.record.recorder import Recorder
from segbatch.service.record.schema import (
    FrameInfo,
    MaskInfo,
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


class RawChangedError(Exception):
    """The raw file is no longer the one the pixels were read from: take it up again."""


@dataclass(slots=True)
class Journey:
    """What one frame carries on its way.

    ``source`` is None, and ``open_error`` says why, where the file could not
    even be opened. ``key`` orders the frames of a run. ``verdict`` is given
    where the frame was judged before (at the end of a run). ``previous`` is
    the record of an earlier failure: the same failure again is not written a
    second time. ``set_aside`` is why the frame is not to be touched at all.
    ``pixel_hash`` is given where a verdict is: it holds for those
    pixels alone. ``probabilities`` and ``labels`` say what to keep besides the
    mask.
    """

    raw: Path
    source: Source | None
    page: int
    key: tuple[int, int]
    ticket: int
    recorder: Recorder
    verdict: Verdict | None = None
    pixel_hash: str | None = None
    probabilities: bool = False
    labels: bool = False
    previous: QcRecord | None = None
    open_error: FrameError | None = None
    set_aside: EngineError | None = None
    timing_ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Note how long a step took, in milliseconds of wall time."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timing_ms[step] = round((time.perf_counter() - start) * 1e3, 3)


@dataclass(frozen=True, slots=True)
class Judged:
    """A frame's verdict and what it was judged on, as the record keeps it."""

    verdict: Verdict
    pixel_hash: str
    quality: dict[str, object]


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
        with journey.timed("judge"), _faults_of_one_frame(journey):
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
        with journey.timed("segment"), _faults_of_one_frame(journey):
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
            frame=_frame_info(journey, frame, judged),
            outcome="segmented" if segmentation is not None else "rejected",
            reasons=[cast("Reason", reason) for reason in judged.verdict.reasons],
            quality=judged.quality,
            mask=_mask_info(segmentation) if segmentation is not None else None,
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
            frame=_frame_info(journey, frame, judged),
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
    with journey.timed("record"), _faults_of_one_frame(journey):
        return _products_of(frame, segmentation)


def _products_of(frame: Frame, segmentation: Segmentation) -> Products:
    probabilities, labels = segmentation.probabilities, segmentation.labels
    return Products(
        mask=page_of(segmentation.mask),
        probabilities=page_of(probabilities) if probabilities is not None else None,
        labels=page_of(labels.astype(LABEL_DTYPE)) if labels is not None else None,
        pixel_size_um=frame.acquisition.pixel_size_um,
    )


def _mask_info(segmentation: Segmentation) -> MaskInfo:
    """Return what the record says of a mask; its file and page are filled in when it is written."""
    return MaskInfo(
        file="",
        page=0,
        foreground_fraction=segmentation.foreground_fraction,
        object_count=segmentation.object_count,
        object_area_px_median=segmentation.object_area_px_median,
        mean_confidence=segmentation.mean_confidence,
        mean_entropy=segmentation.mean_entropy,
    )


def group_of(frame: Frame) -> str:
    """Name the frames that a frame is compared with: same channel, exposure, gain and format."""
    acquired = frame.acquisition
    parts = {
        "channel": acquired.channel,
        "exposure_ms": acquired.exposure_ms,
        "gain_db": acquired.gain_db,
        "shape": "x".join(map(str, frame.pixels.shape)),
        "dtype": frame.pixels.dtype.name,
    }
    return " ".join(f"{name}={value}" for name, value in parts.items() if value is not None)


def quality_of(measures: dict[str, object], verdict: Verdict, group: Hashable) -> dict[str, object]:
    """Return the record's ``quality``: measures, the rules that decided, and their standing."""
    return {
        **measures,
        "group": group,
        "provisional": verdict.provisional,
        "rules": msgspec.to_builtins(verdict.rules),
    }


@contextmanager
def _faults_of_one_frame(journey: Journey) -> Iterator[None]:
    """Let an error that nobody foresaw cost this frame, and say all that is known of it."""
    try:
        yield
    except (SegbatchError, RawChangedError):
        raise
    except Exception as error:
        _logger.exception("unexpected error", file=str(journey.raw), page=journey.page)
        raise EngineError(
            f"unexpected {type(error).__name__}: {error}",
            "a frame that can be judged and segmented",
            "report it with the log's traceback and the frame",
        ) from error


def _frame_info(journey: Journey, frame: Frame | None, judged: Judged | None) -> FrameInfo:
    if frame is None:
        size_bytes: int | None = None
        mtime_ns: int | None = None
        if journey.source is not None:
            size_bytes, mtime_ns = journey.source.size_and_mtime_ns
        else:
            with suppress(OSError):  # gone: the record says so in its error
                there = journey.raw.stat()
                size_bytes, mtime_ns = there.st_size, there.st_mtime_ns
        return FrameInfo(
            file=told(journey.raw),
            page=journey.page,
            size_bytes=size_bytes,
            mtime_ns=mtime_ns,
        )
    return FrameInfo(
        file=told(frame.id.file),
        page=journey.page,
        shape=list(frame.pixels.shape),
        dtype=frame.pixels.dtype.name,
        bit_depth=frame.bit_depth or None,
        size_bytes=frame.size_bytes,
        mtime_ns=frame.mtime_ns,
        pixel_hash=judged.pixel_hash if judged is not None else None,
        acquired_at=frame.acquisition.acquired_at,
        axes=frame.axes,
    )
