"""What one frame carries on its journey, and what its record says of it."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from segbatch import log
from segbatch.acquire.source import Source
from segbatch.errors import EngineError, FrameError, SegbatchError
from segbatch.frame import Frame
from segbatch.infer.quality.verdict import Verdict
from segbatch.infer.segment import Segmentation
from segbatch.service.record.names import told
from segbatch.service.record.recorder import Recorder
from segbatch.service.record.schema import FrameInfo, MaskInfo, QcRecord

_logger = log.get_logger(__name__)


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


def frame_info(journey: Journey, frame: Frame | None, judged: Judged | None) -> FrameInfo:
    """Return what the record says of a frame, as far as it was read and judged."""
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


def mask_info(segmentation: Segmentation) -> MaskInfo:
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
def faults_of_one_frame(journey: Journey) -> Iterator[None]:
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
