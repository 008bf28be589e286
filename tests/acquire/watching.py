"""A watched tree in a test: its arrivals are collected until something holds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from segbatch.acquire.folder.intake import Arrival, Intake
from tests.acquire.live_writers import is_numbered
from tests.acquire.making import opened

SETTLE_S, RESCAN_S = 0.15, 0.3
PATIENCE_S = 60.0


class Watched:
    """An intake that is driven as the service drives it."""

    def __init__(self, root: Path, *, run_depth: int = 1, **options: Any) -> None:
        self.root = root
        self._woken = threading.Event()
        options = {"settle_s": SETTLE_S, "rescan_s": RESCAN_S, **options}
        self.intake = Intake(root, run_depth=run_depth, wake=self._woken.set, **options)
        self.arrivals: list[Arrival] = []

    def __enter__(self) -> Self:
        self.intake.start()
        self.until_watched()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.intake.stop()

    @property
    def names(self) -> list[str]:
        """Names of what arrived, below the root, in the order of arrival."""
        return [arrival.raw.relative_to(self.root).as_posix() for arrival in self.arrivals]

    def step(self, limit: int = 1000) -> None:
        """Take what is there, and wait a little for more."""
        self.arrivals += self.intake.take(limit)
        if due_s := self.intake.due_in_s:
            self._woken.wait(min(due_s, 0.05))
            self._woken.clear()

    def until(self, holds: Callable[[], bool]) -> None:
        """Go on until something holds, but not for ever."""
        end = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < end, f"{self.names[-20:]}, {self.intake.pending} pending"
            self.step()

    def until_watched(self) -> None:
        """Go on until the observer is at work, or cannot be; what arrives stays in the intake."""
        end = time.monotonic() + PATIENCE_S
        while not self.is_settled:
            assert time.monotonic() < end, self.intake.why
            self.intake.take(0)
            self._woken.wait(0.005)

    @property
    def is_settled(self) -> bool:
        """Whether it is known how the tree is watched."""
        told = self.intake.error or "no events" in self.intake.why
        return self.intake.observer != "none" or bool(told)

    def gather(self, count: int) -> None:
        """Go on until so many files are ready, and take none of them."""
        end = time.monotonic() + PATIENCE_S
        while len(self.intake._book.ready) < count:
            assert time.monotonic() < end
            self.intake.take(0)

    def until_arrived(self, *names: str) -> None:
        """Go on until these names, and no others, have arrived."""
        self.until(lambda: set(names) <= set(self.names))
        assert sorted(self.names) == sorted(names), self.names

    def rest(self, seconds: float = 4 * SETTLE_S) -> None:
        """Go on for a time in which nothing is to happen."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.step()


def assert_frames_are_their_own(arrival: Arrival) -> None:
    """Read the frames that an arrival promises: each must be the whole frame of its number."""
    assert arrival.frames is not None
    with opened(arrival.raw) as source:
        assert source.frame_count >= arrival.frames
        for page in range(arrival.frames):
            assert is_numbered(source.read(page).pixels, page)
