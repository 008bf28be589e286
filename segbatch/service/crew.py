"""The threads that take frames on their journeys, and what they do when something gives way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from segbatch import log
from segbatch.acquire.source import Source
from segbatch.errors import EngineError
from segbatch.service.journey import Journey, RawChangedError
from segbatch.service.pipeline import Pipeline
from segbatch.service.plan import PlannedFile
from segbatch.service.record.recorder import Recorder
from segbatch.service.record.schema import QcRecord

MAX_ENGINE_ERRORS = 5  # in a row: then the engine, not the frame, is at fault
WAIT_S = 0.2
DRAIN_WORD_EVERY_S = 10.0
_logger = log.get_logger(__name__)


@dataclass(slots=True)
class OpenFile:
    """A raw file under way, shared by the journeys of its frames.

    ``outstanding`` frames are not through yet; the last of them finishes the
    file. ``spoiled`` is set when the raw changed meanwhile: then nothing is
    finished and the file is taken up again. ``keeps_recorder`` is set where the
    recorder goes on to the frames that the stack's writer adds later.
    """

    planned: PlannedFile
    source: Source | None
    recorder: Recorder
    outstanding: int
    spoiled: bool = False
    keeps_recorder: bool = False
    _closed: bool = False
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def one_through(self) -> bool:
        """Count one frame as through; return whether it was the last."""
        with self._guard:
            self.outstanding -= 1
            return self.outstanding == 0

    def close(self) -> None:
        """Let go of the file, once; what was recorded stays."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
        if not self.keeps_recorder:
            self.recorder.close()
        if self.source is not None:
            self.source.close()


@dataclass(frozen=True, slots=True)
class Assignment:
    """A journey to make, the file it belongs to, and the bytes its frame takes in memory."""

    journey: Journey
    file: OpenFile
    frame_bytes: int


class ByteBudget:
    """Bounds the frames in memory; one that is larger than the whole budget goes alone."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._taken = 0
        self._changed = threading.Condition()

    def take(self, count: int) -> None:
        """Return when ``count`` bytes fit."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken == 0 or self._taken + count <= self._limit)
            self._taken += count

    def give_back(self, count: int) -> None:
        """Return ``count`` bytes."""
        with self._changed:
            self._taken -= count
            self._changed.notify_all()


class Crew:
    """Runs journeys in threads until there are no more, a stop, or a failure that ends the run.

    Parameters
    ----------
    memory_bytes
        Bound of the frames in memory together.
    on_record
        Called with each journey's record, in any thread.
    on_file
        Called by the thread that brought a file's last frame through.
    mark
        Opened around each journey.
    begin
        Called in each thread before its first journey.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        memory_bytes: int,
        stop: threading.Event,
        on_record: Callable[[Journey, QcRecord], None],
        on_file: Callable[[OpenFile], None],
        mark: Callable[[Journey], AbstractContextManager[None]],
        begin: Callable[[], None],
    ) -> None:
        self._mark, self._begin = mark, begin
        self._pipeline = pipeline
        self._budget = ByteBudget(memory_bytes)
        self._stop = stop
        self._on_record, self._on_file = on_record, on_file
        self._issuing = threading.Lock()
        self._counting = threading.Lock()
        self._open: dict[int, OpenFile] = {}
        self._under_way: dict[int, Journey] = {}
        self._failure: BaseException | None = None
        self._engine_errors_in_a_row = 0

    def run(
        self,
        assignments: Iterator[Assignment],
        threads: int,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        """Make every journey, ``threads`` at once; return when the last one is through.

        ``meanwhile`` is called by the waiting thread, every now and then.

        Raises
        ------
        StorageError, EngineError
            The first failure that ended the run.
        """
        crew = [
            threading.Thread(target=self._work, args=(assignments,), name=f"journey-{number}")
            for number in range(threads)
        ]
        for thread in crew:
            thread.start()
        try:
            self._wait_for(crew, meanwhile)
        except BaseException as error:  # noqa: BLE001 - raised below
            self._failure = self._failure or error  # nothing more is begun
            for thread in crew:  # nobody may let go of what these still work on
                thread.join()
        for file in self._open.values():
            file.close()
        if self._failure is not None:
            raise self._failure

    def _wait_for(self, crew: list[threading.Thread], meanwhile: Callable[[], None] | None) -> None:
        """Wait in short steps, so that signals are heard everywhere, and tell of a long drain."""
        next_word = float("inf")
        for thread in crew:
            while thread.is_alive():
                thread.join(WAIT_S)
                if meanwhile is not None:
                    meanwhile()
                if self._stop.is_set() and next_word == float("inf"):
                    next_word = time.monotonic()
                if time.monotonic() >= next_word and self._under_way:
                    next_word = time.monotonic() + DRAIN_WORD_EVERY_S
                    _logger.warning(
                        "stopping: frames under way are finished first; once more to stop at once",
                        frames=len(self._under_way),
                    )

    def _work(self, assignments: Iterator[Assignment]) -> None:
        try:
            self._begin()
            while (assignment := self._next(assignments)) is not None:
                journey = assignment.journey
                self._under_way[journey.ticket] = journey
                try:
                    with self._mark(journey):
                        self._make(assignment)
                finally:
                    self._under_way.pop(journey.ticket, None)
                    self._budget.give_back(assignment.frame_bytes)
                    self._pipeline.turns.passed(journey.ticket)
        except BaseException as error:  # noqa: BLE001 - handed to the caller of run()
            if self._failure is None:
                self._failure = error

    def _next(self, assignments: Iterator[Assignment]) -> Assignment | None:
        # One at a time: tickets are taken up in order, and so is memory, or a
        # frame could wait for the turn of one that waits for its memory.
        with self._issuing:
            if self._failure is not None or self._stop.is_set():
                return None
            assignment = next(assignments, None)
            if assignment is not None:
                self._open[id(assignment.file)] = assignment.file
                self._budget.take(assignment.frame_bytes)
            return assignment

    def _make(self, assignment: Assignment) -> None:
        journey, file = assignment.journey, assignment.file
        try:
            if not file.spoiled:
                record = self._pipeline.run(journey)
                self._watch_engine(record)
                self._on_record(journey, record)
        except RawChangedError:
            file.spoiled = True
        if file.one_through():
            self._on_file(file)
            self._open.pop(id(file), None)

    def _watch_engine(self, record: QcRecord) -> None:
        """End the run when frame after frame fails and the engine fails on a blank one too."""
        with self._counting:
            failed = "engine-error" in record.reasons
            self._engine_errors_in_a_row = self._engine_errors_in_a_row + 1 if failed else 0
            if self._engine_errors_in_a_row < MAX_ENGINE_ERRORS:
                return
            self._engine_errors_in_a_row = 0
        if not self._pipeline.engine_works():
            raise EngineError(
                f"the engine failed on {MAX_ENGINE_ERRORS} frames in a row: {record.error}",
                "an engine that runs",
                "run segbatch doctor, or try --engine onnxruntime",
            )
