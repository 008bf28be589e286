"""What the service remembers of its frames: counts that add up, and little more."""

from __future__ import annotations

import itertools
import math
import os
import re
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from segbatch.errors import SettingsError
from segbatch.service.monitor.address import parse_listen, url_of
from segbatch.service.monitor.monitor import REFUSED_KEPT, Monitor
from segbatch.service.monitor.recent import MEASURES
from segbatch.service.record.schema import FrameInfo, MaskInfo, QcRecord, Timing


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time, seconds."""
        return self.now


def record(outcome: Any = "segmented", **quality: Any) -> QcRecord:
    """Return the record of a frame; one that is not segmented is blurred."""
    mask = MaskInfo(
        file="a_mask.tif", page=0, foreground_fraction=0.1, object_count=3,
        object_area_px_median=9.0, mean_confidence=0.9, mean_entropy=0.1,
    )  # fmt: skip
    good = outcome == "segmented"
    return QcRecord(
        frame=FrameInfo(file="a.tif", page=0),
        outcome=outcome,
        reasons=[] if good else ["blurred"],
        quality=quality,
        mask=mask if good else None,
        settings_sha256="",
        software="",
        written_at="2026-03-12T09:00:00.000+00:00",
        timing_ms=Timing(read=2.0, judge=20.0, segment=120.0 if good else 0.0, record=1e6),
    )


RAW = Path("/data/a.tif")


def test_frames_are_counted_by_outcome_and_reason() -> None:
    """Every frame is counted once by its outcome, and refused ones by their reasons."""
    monitor = Monitor()
    for outcome in ("segmented", "segmented", "rejected", "failed"):
        monitor.note(RAW, record(outcome), RAW.parent)
    totals = monitor.totals()

    assert totals.frames == {"segmented": 2, "rejected": 1, "failed": 1}
    assert {reason: count for reason, count in totals.reasons.items() if count} == {"blurred": 2}
    assert totals.last_frame == str(RAW)


def test_stages_that_were_not_taken_are_not_timed() -> None:
    """A refused frame adds nothing to the time of segmentation; no time is too long to count."""
    monitor = Monitor()
    for outcome in ("segmented", "rejected"):
        monitor.note(RAW, record(outcome), RAW.parent)
    stages = monitor.totals().stages

    assert {name: sum(times.counts) for name, times in stages.items()} == {
        "read": 2, "judge": 2, "segment": 1, "record": 2,
    }  # fmt: skip
    assert stages["segment"].total_s == pytest.approx(0.12)
    assert stages["record"].counts[-1] == 2


def test_nothing_is_lost_between_threads() -> None:
    """Frames that are noted from several threads at once are all counted."""
    monitor = Monitor()

    def work() -> None:
        for _ in range(500):
            monitor.note(RAW, record(), RAW.parent)
            monitor.curves()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert monitor.totals().frames["segmented"] == 2000


def test_the_rate_is_that_of_the_last_minute() -> None:
    """Frames count towards the rate for a minute, and a young service is not called slow."""
    clock = Clock()
    monitor = Monitor(clock)
    rates = [monitor.totals().frames_per_s]
    for _ in range(20):
        monitor.note(RAW, record(), RAW.parent)
        clock.now += 0.5
    rates.append(monitor.totals().frames_per_s)
    clock.now += 40
    rates.append(monitor.totals().frames_per_s)
    clock.now += 40
    rates.append(monitor.totals().frames_per_s)

    assert rates == [0.0, pytest.approx(2.0), pytest.approx(0.4), 0.0]


def test_memory_does_not_grow_with_frames() -> None:
    """Once the last hour is full, further hours take no more memory."""
    clock = Clock()
    monitor = Monitor(clock)
    quality = dict.fromkeys(MEASURES, 1.5)

    def pass_hours(hours: int) -> None:
        for second in range(hours * 3600):
            clock.now += 1
            for outcome in ("segmented", "rejected"):
                monitor.note(RAW, record(outcome, **quality), RAW.parent)
            if second % 60 == 0:
                monitor.shown()

    tracemalloc.start()
    try:
        pass_hours(1)
        pass_hours(2)
        before = tracemalloc.get_traced_memory()[0]
        pass_hours(1)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()

    assert after < before * 1.01
    assert len(monitor.refused()) == REFUSED_KEPT
    assert len(monitor.curves()["ago_s"]) <= 241


def test_curves_part_accepted_frames_from_others() -> None:
    """A curve follows the accepted frames alone, with their spread; others stand beside it."""
    clock = Clock()
    monitor = Monitor(clock)
    for value in (1.0, 3.0):
        monitor.note(RAW, record(focus=value), RAW.parent)
    monitor.note(RAW, record("rejected", focus=-9.0), RAW.parent)
    curves = monitor.curves()

    assert curves["span_s"] == 120
    assert curves["focus"] == {"mean": [2.0], "low": [1.0], "high": [3.0], "refused": [-9.0]}
    assert curves["noise_sigma"]["mean"] == [None]


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "high"])
def test_measures_that_are_no_numbers_are_left_out(value: Any) -> None:
    """A frame without a measure leaves no point in its curve."""
    monitor = Monitor()
    monitor.note(RAW, record(focus=value), RAW.parent)

    assert monitor.curves()["focus"]["mean"] == [None]


def test_curves_forget_after_an_hour() -> None:
    """Points older than an hour are gone, and times stay in order."""
    clock = Clock()
    monitor = Monitor(clock)
    for _ in range(500):
        clock.now += 11
        monitor.note(RAW, record(focus=1.0), RAW.parent)
    curves = monitor.curves()

    assert curves["span_s"] == 3600
    assert all(older > newer for older, newer in itertools.pairwise(curves["ago_s"]))
    assert curves["ago_s"][0] <= 3600 + curves["step_s"]


def test_the_shown_frame_changes_once_a_second() -> None:
    """Pages that ask at the same time are told of the same frame, and can still ask for it."""
    clock = Clock()
    monitor = Monitor(clock)
    assert monitor.shown() is None
    monitor.note(RAW, record(), RAW.parent)
    first = monitor.shown()
    monitor.note(RAW, record(), RAW.parent)
    assert first is not None
    assert monitor.shown() is first
    clock.now += 1
    second = monitor.shown()

    assert second is not None
    assert second.id != first.id
    assert monitor.find(first.id) is first


def test_names_of_frames_do_not_come_twice() -> None:
    """Two services, one after the other, never call two frames the same."""
    ids = set()
    for _ in range(3):
        monitor = Monitor()
        monitor.note(RAW, record("rejected"), RAW.parent)
        ids |= {shot.id for shot in monitor.refused()}

    assert len(ids) == 3


def test_bytes_that_are_no_text_are_told_escaped() -> None:
    """A file whose name is no UTF-8 is told in characters that any program can print."""
    monitor = Monitor()
    monitor.note(Path(os.fsdecode(b"/data/\xff.tif")), record(), RAW.parent)

    assert monitor.totals().last_frame == "/data/\\xff.tif"


@pytest.mark.parametrize(
    ("listen", "parts", "url"),
    [
        ("127.0.0.1:9417", ("127.0.0.1", 9417), "http://127.0.0.1:9417/"),
        ("[::1]:0", ("::1", 0), "http://[::1]:0/"),
        ("0.0.0.0:80", ("0.0.0.0", 80), "http://127.0.0.1:80/"),  # noqa: S104 - only read
        ("[::]:9417", ("::", 9417), "http://[::1]:9417/"),
        ("scope-pc:9417", ("scope-pc", 9417), "http://scope-pc:9417/"),
    ],
)
def test_addresses_are_read(listen: str, parts: tuple[str, int], url: str) -> None:
    """An address and a port are parted; one for all networks is asked on loopback."""
    assert parse_listen(listen) == parts
    assert url_of(listen) == url


@pytest.mark.parametrize("listen", ["", "9417", ":9417", "::1:9417", "127.0.0.1:70000", "a b:1"])
def test_other_addresses_are_refused(listen: str) -> None:
    """What is no address and port is refused with an example."""
    with pytest.raises(SettingsError, match=re.escape("127.0.0.1:9417")):
        parse_listen(listen)
