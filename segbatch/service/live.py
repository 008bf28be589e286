"""A run that is still growing: its frames are recorded as they arrive."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from segbatch import log
from segbatch.acquire.folder.intake import Arrival
from segbatch.acquire.source import Source
from segbatch.errors import StorageError
from segbatch.infer.engine.manifest import Model
from segbatch.infer.quality.observers import Observers
from segbatch.infer.segment import Segmenter
from segbatch.service.crew import Assignment, OpenFile
from segbatch.service.plan import PlannedFile
from segbatch.service.progress import Listener
from segbatch.service.record.names import Register, is_mask_of_ours
from segbatch.service.record.stack import StackRecorder
from segbatch.service.under_way import UnderWay
from segbatch.service.work import MAX_ATTEMPTS, Work
from segbatch.settings import Settings

# Frames of one stack that are taken at once: other runs wait no longer than for these.
PAGES_AT_ONCE = 128
# Stacks that stay open between two of their frames: each holds up to four files.
MOST_OPEN_STACKS = 64
_logger = log.get_logger(__name__)


class LiveRun(Work):
    """One run whose files are handed over when they are complete, and stacks while they grow.

    Verdicts are provisional where few frames are known; the run is judged as
    a whole when it is over. Results of other settings or models are kept.

    One thread adds and plans; the crew's threads take files up and finish them.
    A file that is in ``_taken`` is the crew's, with its recorder; every other is
    the planner's. ``_guard`` is held to hand one over, either way, and while
    files are planned.

    Parameters
    ----------
    root, out_root
        The run's folder and that of its results.

    The others are those of ``Work``.
    """

    def __init__(
        self,
        root: Path,
        out_root: Path,
        model: Model,
        settings: Settings,
        segmenter: Callable[[], Segmenter],
        observers: Observers,
        stop: threading.Event,
        progress: Listener,
        under_way: UnderWay,
    ) -> None:
        super().__init__(
            root,
            out_root,
            model,
            settings,
            segmenter,
            observers,
            stop,
            progress,
            keep_other=True,
            under_way=under_way,
        )
        self._registers: dict[Path, Register] = {}
        self._by_raw: dict[Path, PlannedFile] = {}
        self._todo: deque[PlannedFile] = deque()
        self._recorders: dict[Path, StackRecorder] = {}
        self._guard = threading.RLock()
        self._taken: set[Path] = set()
        self._more: dict[Path, Arrival] = {}

    @property
    def backlog(self) -> int:
        """Files with frames that wait to be worked on."""
        return len(self._todo)

    @property
    def root(self) -> Path:
        """The run's folder."""
        return self._root

    def add(self, arrivals: Iterable[Arrival]) -> None:
        """Plan what is left to do of files that are complete, and of stacks that have grown.

        Raises
        ------
        StorageError
            The folder of the results cannot be written.
        """
        for arrival in arrivals:
            with self._guard:
                if arrival.raw in self._taken:
                    self._more[arrival.raw] = arrival  # when those under way are through
                else:
                    self._plan(arrival)

    def work(self, enough: Callable[[], bool], meanwhile: Callable[[], None]) -> list[Path]:
        """Take frames on their journeys until none is left or ``enough()``.

        Returns
        -------
        Raw files that changed while they were read: to be handed over again when they are
        complete.

        Raises
        ------
        StorageError, EngineError
            As ``Batch.execute``.
        """
        suspects = [file for file in self._todo if self._is_suspect(file)]
        if suspects:
            for file in suspects:
                self._todo.remove(file)
            self._run(self._slices(deque(suspects), enough), 1, meanwhile)
        self._run(self._slices(self._todo, enough), self._crew_size(), meanwhile)
        changed = [file.raw for file in self._again]
        self._again.clear()
        return changed

    def close(self) -> None:
        """Let go of open stacks; they go on where they stopped."""
        with ExitStack() as closing:  # each, whatever another says
            for recorder in self._recorders.values():
                closing.callback(recorder.close)
            self._recorders.clear()

    def _is_suspect(self, file: PlannedFile) -> bool:
        return self._under_way is not None and self._under_way.is_suspect(file.raw)

    def _plan(self, arrival: Arrival) -> None:
        raw = arrival.raw
        planned = self._by_raw.get(raw)
        if planned is not None and raw in self._recorders:
            planned.still_written = not arrival.closed  # it goes on where its recorder stands
            if planned not in self._todo:
                self._todo.append(planned)
            return
        planned = self._first_seen(raw) if planned is None else self._anew(planned)
        if planned is None:
            return
        planned.still_written = not arrival.closed
        self._look_up(planned)
        self._tidy_file(planned)
        if planned.unreadable:
            _logger.warning("left as it is", file=str(raw), why=planned.unreadable)
        elif not planned.complete:
            self._todo.append(planned)

    def _first_seen(self, raw: Path) -> PlannedFile | None:
        folder = self._folder_for(raw)
        # One that was taken away since must not bring back the folder of its results.
        if not os.path.lexists(raw) or is_mask_of_ours(raw, folder):
            return None
        if folder not in self._registers:
            self._tidy_folder(folder)
            self._registers[folder] = Register(folder)
        try:
            names = self._registers[folder].add([raw])[raw]
        except StorageError as error:
            _logger.error("left without results", file=str(raw), why=str(error))
            return None
        planned = PlannedFile(raw, len(self.files), names)
        self.files.append(planned)
        self._by_raw[raw] = planned
        return planned

    def _anew(self, planned: PlannedFile) -> PlannedFile:
        """Return a file that changed since it was planned as if it were seen first."""
        if planned in self._todo:
            self._todo.remove(planned)
        self._forget(planned.index)
        fresh = PlannedFile(planned.raw, planned.index, planned.names, attempts=planned.attempts)
        self.files[planned.index] = self._by_raw[planned.raw] = fresh
        return fresh

    def _slices(self, todo: deque[PlannedFile], enough: Callable[[], bool]) -> Iterator[Assignment]:
        while not enough():
            with self._guard:
                if not todo:
                    return
                planned = todo.popleft()
                self._taken.add(planned.raw)
            file, first_page, error = self._open_file(planned)
            if error is not None and not os.path.lexists(planned.raw):
                self._drop(planned)
                continue
            if error is not None and planned.raw in self._recorders:
                # Its frames were read before: perhaps it is the disk that fails, not the file.
                planned.attempts += 1
                if planned.attempts < MAX_ATTEMPTS:
                    _logger.warning("cannot be read now; tried again", file=str(planned.raw))
                    with self._guard:
                        self._taken.discard(planned.raw)
                        self._again.append(planned)
                    continue
                self._recorders.pop(planned.raw).close()
            file.outstanding = min(file.outstanding, PAGES_AT_ONCE)
            pages = range(first_page, first_page + file.outstanding)
            if not pages:
                self._finish(file)
            for page in pages:
                yield self._assign(file, page, open_error=error)

    def _drop(self, planned: PlannedFile) -> None:
        """Forget a file that somebody took away before it was read: it has no outcome."""
        self._require_same_folder()
        _logger.info("gone before it was read", file=str(planned.raw))
        recorder = self._recorders.pop(planned.raw, None)
        if recorder is not None:
            recorder.close()
        with self._guard:
            self._forget(planned.index, planned.frames_done)
            self._taken.discard(planned.raw)
            more = self._more.pop(planned.raw, None)
            if more is not None:  # another has taken its name
                self._plan(more)

    def _open_stack(self, planned: PlannedFile, source: Source) -> StackRecorder:
        recorder = self._recorders.get(planned.raw)
        if recorder is None:
            return super()._open_stack(planned, source)
        if not self._is_same_stack(planned.raw, source, recorder.records):
            self._forget(planned.index)
            recorder.rewind(0)
        return recorder

    def _finish(self, file: OpenFile) -> None:
        """Publish a stack when its last frame is through, and let it wait for more before."""
        raw, recorder = file.planned.raw, file.recorder
        left = 0
        if (
            isinstance(recorder, StackRecorder)
            and file.source is not None
            and not file.spoiled
            and (
                (left := file.source.frame_count - recorder.next_page)
                or file.planned.still_written
                or raw in self._more
            )
        ):
            file.keeps_recorder = True
            file.close()
            self._keep(raw, recorder)
        else:
            if isinstance(recorder, StackRecorder) and file.source and file.source.may_grow:
                recorder.settle_on(*file.source.size_and_mtime_ns)
            self._recorders.pop(raw, None)
            super()._finish(file)
        with self._guard:
            self._taken.discard(raw)
            more = self._more.pop(raw, None)
            if more is not None:
                self._plan(more)
            elif left:
                self._todo.append(file.planned)

    def _keep(self, raw: Path, recorder: StackRecorder) -> None:
        """Keep a recorder open for the frames to come; those not used for longest make room."""
        with self._guard:
            self._recorders.pop(raw, None)
            idle = [other for other in self._recorders if other not in self._taken]
            for other in idle[: len(self._recorders) + 1 - MOST_OPEN_STACKS]:
                self._recorders.pop(other).close()
            self._recorders[raw] = recorder
