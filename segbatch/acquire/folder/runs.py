"""What is known of the runs of one tree: open ones by file, ended ones by a fingerprint."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from segbatch.acquire.folder.complete import Candidate
from segbatch.acquire.naming import natural_key


@dataclass(frozen=True, slots=True)
class Arrival:
    """A raw file that is complete, or a stack with more complete frames than before.

    Attributes
    ----------
    run
        Folder of the run that the file belongs to.
    frames
        Complete frames of a stack; None: the whole file, whatever it holds.
    closed
        False for a stack whose writer is at work: more frames will come.
    """

    raw: Path
    run: Path
    frames: int | None
    closed: bool
    size_bytes: int
    mtime_ns: int


@dataclass(slots=True)
class Run:
    """An open run: its files by their names below its folder.

    ``taken`` are files that were handed over to their end, with size and time
    stamp; ``waiting`` are all others.
    """

    folder: str
    changed_at: float
    taken: dict[str, tuple[int, int]] = field(default_factory=dict)
    waiting: dict[str, Candidate] = field(default_factory=dict)

    def name(self, path: str) -> str:
        """Return the name of one of its files."""
        return path[len(self.folder) :].lstrip(os.sep)

    @property
    def names(self) -> list[str]:
        """Names of all its files."""
        return [*self.taken, *self.waiting]


@dataclass(slots=True)
class Ended:
    """A released run: what its raw files were, and when that was last compared."""

    fingerprint: str
    compared_at: float


class Ready:
    """Arrivals that wait to be taken, in natural order within their run."""

    def __init__(self) -> None:
        self._runs: dict[str, dict[str, Arrival]] = {}
        self._order: dict[str, list[tuple[object, str]]] = {}

    def __len__(self) -> int:
        return sum(len(arrivals) for arrivals in self._runs.values())

    def put(self, run: str, name: str, arrival: Arrival) -> None:
        """Add an arrival; one of the same file that was not taken yet gives way to it."""
        arrivals = self._runs.setdefault(run, {})
        if name not in arrivals:
            heapq.heappush(self._order.setdefault(run, []), (natural_key(Path(name)), name))
        arrivals[name] = arrival

    def discard(self, run: str, name: str | None = None) -> None:
        """Take back the arrival of one file, or all of a run."""
        if name is None:
            self._runs.pop(run, None)
            self._order.pop(run, None)
        else:
            self._runs.get(run, {}).pop(name, None)

    def take(self, limit: int) -> Iterator[Arrival]:
        """Remove and yield up to ``limit`` arrivals, run after run."""
        for run in list(self._runs):
            arrivals, order = self._runs[run], self._order[run]
            while order and limit > 0:
                _, name = heapq.heappop(order)
                arrival = arrivals.pop(name, None)
                if arrival is not None:
                    limit -= 1
                    yield arrival
            if not order:
                self.discard(run)


class Due:
    """When each candidate is to be looked at again."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Run, str, Candidate]] = []
        self._number = 0

    def add(self, run: Run, name: str, file: Candidate, at: float) -> None:
        """Look at ``file`` at a moment; an earlier appointment for it is void."""
        file.next_look = at
        self._number += 1
        heapq.heappush(self._heap, (at, self._number, run, name, file))

    def next(self, now: float) -> tuple[Run, str, Candidate] | None:
        """Remove and return the first that is due, None where none is."""
        self._tidy()
        if not self._heap or self._heap[0][0] > now:
            return None
        _, _, run, name, file = heapq.heappop(self._heap)
        file.next_look = -1.0
        return run, name, file

    @property
    def first_at(self) -> float:
        """The earliest moment."""
        self._tidy()
        return self._heap[0][0] if self._heap else float("inf")

    def _tidy(self) -> None:
        """Drop appointments that are void, or of files that are no longer waited for."""
        while self._heap:
            at, _, run, name, file = self._heap[0]
            if file.next_look == at and run.waiting.get(name) is file:
                return
            heapq.heappop(self._heap)
