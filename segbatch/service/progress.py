"""How far a run is: a live line on a terminal, a quiet log line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Protocol, Self

from segbatch import log
from segbatch.service.record.schema import QcRecord

LINE_EVERY_S = 10.0
_logger = log.get_logger(__name__)


class Listener(Protocol):
    """Is told of a run's frames while they are worked on; called from several threads."""

    def begin(self, title: str, total: int) -> None:
        """Hear that work begins on ``total`` frames, as far as is known."""

    def grow(self, by: int) -> None:
        """Hear that there are ``by`` frames more than was thought."""

    def recorded(self, raw: Path, folder: Path, record: QcRecord, *, renewed: bool) -> None:
        """Hear of a record that was committed; ``folder`` is that of its mask and log.

        ``renewed``: the frame had an outcome before, and its verdict changed.
        """

    def alive(self) -> None:
        """Hear that something was done which records nothing."""


class Progress:
    """Counts frames as they are recorded and shows where the run stands, on stderr.

    A context manager; ``note`` may be called from several threads.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._counts: Counter[str] = Counter()
        self._done = 0
        self._total = 0
        self._started = time.monotonic()
        self._last_line = self._started
        self._guard = threading.Lock()
        self._bar: Any = None
        self._task: Any = None
        if not quiet and sys.stderr.isatty():
            self._bar = _bar()

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, title: str, total: int) -> None:
        """Start counting towards ``total`` frames."""
        with self._guard:
            self._counts.clear()
            self._done, self._total = 0, total
            self._started = self._last_line = time.monotonic()
            if self._bar is not None:
                self._task = self._bar.add_task(title, total=total, outcomes="")

    def grow(self, by: int) -> None:
        """Correct the total when a file turns out to hold more frames than one."""
        with self._guard:
            self._total += by
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, total=self._total)

    def recorded(self, raw: Path, folder: Path, record: QcRecord, *, renewed: bool) -> None:
        """Count one frame's outcome."""
        self.note(record)

    def alive(self) -> None:
        """Do nothing: a person sees the line move with each frame."""

    def note(self, record: QcRecord) -> None:
        """Count one frame's outcome."""
        with self._guard:
            self._done += 1
            self._counts[record.outcome] += 1
            for reason in record.reasons:
                self._counts[reason] += 1
            if self._bar is not None:
                self._bar.update(self._task, completed=self._done, outcomes=self._outcomes())
            elif time.monotonic() - self._last_line >= LINE_EVERY_S:
                self._last_line = time.monotonic()
                _logger.info("progress", **self._line())

    @property
    def done(self) -> int:
        """Frames recorded since ``begin``."""
        return self._done

    @property
    def rate_per_s(self) -> float:
        """Frames recorded per second since ``begin``."""
        return self._done / max(time.monotonic() - self._started, 1e-9)

    def _outcomes(self) -> str:
        order = ("segmented", "rejected", "failed")
        return "  ".join(f"{self._counts[name]} {name}" for name in order if self._counts[name])

    def _line(self) -> dict[str, Any]:
        rate = self.rate_per_s
        left = max(self._total - self._done, 0)
        return {
            "done": self._done,
            "of": self._total,
            "frames_per_s": round(rate, 2),
            "left_s": round(left / rate) if rate else None,
            **{name: self._counts[name] for name in ("segmented", "rejected", "failed")},
        }


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import (
        Progress as RichProgress,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """Frames per second."""

        def render(self, task: Any) -> Text:
            return Text(f"{task.speed:.1f} frames/s" if task.speed else "", style="cyan")

    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[outcomes]}"),
        console=Console(stderr=True),
    )
