"""One run over a folder: plan, journeys in parallel, every frame judged again at the end."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from segbatch import log
from segbatch.errors import FrameError
from segbatch.infer.engine.manifest import Model
from segbatch.infer.quality.observers import Observers
from segbatch.infer.quality.verdict import Verdict
from segbatch.infer.segment import Segmenter
from segbatch.service.crew import Assignment, OpenFile
from segbatch.service.plan import PlannedFile, plan_files, read_records
from segbatch.service.progress import Listener
from segbatch.service.record.recorder import Keep, Recorder
from segbatch.service.record.single import SingleRecorder
from segbatch.service.record.stack import StackPatcher
from segbatch.service.rejudge import Standing, amend, changed
from segbatch.service.under_way import UnderWay
from segbatch.service.work import MAX_ATTEMPTS, Work
from segbatch.settings import Settings

MAX_ROUNDS = 2 * MAX_ATTEMPTS + 2  # of journeys and renewals, which may call for each other
_logger = log.get_logger(__name__)


class Batch(Work):
    """One folder's run, over files that are all there when it begins.

    Parameters
    ----------
    raws
        All raw files of the folder, in the order in which they are judged.
    only
        Those that are to be processed; None for all.

    The others are those of ``Work``.
    """

    def __init__(
        self,
        raws: Sequence[Path],
        only: Collection[Path] | None,
        root: Path,
        out_root: Path,
        model: Model,
        settings: Settings,
        segmenter: Callable[[], Segmenter],
        observers: Observers,
        stop: threading.Event,
        progress: Listener,
        *,
        keep_other: bool = False,
        under_way: UnderWay | None = None,
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
            keep_other=keep_other,
            under_way=under_way,
        )
        self._raws, self._only = raws, only
        self.verdicts_changed: Counter[str] = Counter()

    @property
    def frames_done(self) -> int:
        """How many frames had a valid outcome before the run."""
        return sum(file.frames_done for file in self.files)

    @property
    def stale(self) -> Counter[str]:
        """Why earlier results did not count, and for how many files."""
        return Counter(file.stale for file in self.files if file.stale is not None)

    @property
    def todo(self) -> list[PlannedFile]:
        """The files that have frames without a valid outcome."""
        return [file for file in self.files if self._is_asked_for(file) and not file.complete]

    def plan(self) -> None:
        """Find out what is left to do; reads results and, where in doubt, raw files."""
        self.files = plan_files(self._raws, self._folder_for, self._only, self._progress.alive)
        for number, file in enumerate(self.files):
            file.index = number
            if self._stop.is_set():
                return
            self._progress.alive()
            self._look_up(file)

    def execute(self) -> None:
        """Do what is left to do.

        Raises
        ------
        StorageError
            Results cannot be written any more. What was recorded stays.
        EngineError
            The engine cannot be opened, or fails on one frame after another.
        """
        self._tidy()
        pending, threads = self.todo, 1
        self._observers.expect(len(pending))
        for _ in range(MAX_ROUNDS):
            if pending:
                threads = self._crew_size()
                self._run(self._journeys(pending), threads)
            if not self._again:
                changes = changed(self._judge.settle(), self.standing)
                if self._stop.is_set() or not (changes or self._to_retry()):
                    return
                self._run(self._renewals(changes), threads)
            pending, self._again = self._again, []

    def _to_retry(self) -> list[PlannedFile]:
        """Return the finished stacks with frames that failed before this run."""
        return [
            file
            for file in self.files
            if file.retry and file.complete and not file.unreadable and self._is_asked_for(file)
        ]

    def _is_asked_for(self, file: PlannedFile) -> bool:
        return self._only is None or file.raw in self._only

    def _tidy(self) -> None:
        """Clear away what an interrupted run left, and bring touched records up to date."""
        for folder in {file.names.folder for file in self.files}:
            self._tidy_folder(folder)
        for file in self.files:
            self._progress.alive()
            if self._is_asked_for(file):
                self._tidy_file(file)

    def _renewals(self, changes: dict[int, dict[int, Verdict]]) -> Iterator[Assignment]:
        """Bring the records to the final verdicts: most are amended, some frames go again."""
        to_retry = self._to_retry()
        for file in self.files:
            retry = set(file.retry) if file in to_retry else set()
            if file.index in changes or retry:
                yield from self._renew(file, changes.get(file.index, {}), retry)

    def _renew(
        self, planned: PlannedFile, verdicts: dict[int, Verdict], retry: set[int]
    ) -> Iterator[Assignment]:
        self._progress.alive()
        published = read_records(planned.names) or []
        records = {page: published[page] for page in verdicts}
        del published  # a file that is open cannot be replaced everywhere
        for page, verdict in verdicts.items():
            before, after = records[page], amend(records[page], verdict)
            if (before.outcome, before.reasons) != (after.outcome, after.reasons):
                told_of = (" ".join(r.reasons) or "segmented" for r in (before, after))
                self.verdicts_changed[" -> ".join(told_of)] += 1
        again = retry | {
            page
            for page, verdict in verdicts.items()
            if verdict.accepted and records[page].outcome == "rejected"
        }
        try:
            source = self.open_raw(planned.raw) if again else None
        except FrameError as error:
            _logger.warning(
                "verdicts not brought up to date", file=str(planned.raw), why=str(error)
            )
            return
        recorder: Recorder = SingleRecorder(planned.names)
        if planned.names.qc_lines.is_file():
            recorder = StackPatcher(planned.names)
        file = OpenFile(planned, source, recorder, len(again))
        for page, verdict in verdicts.items():
            if page not in again:
                amended = amend(records[page], verdict)
                recorder.commit(page, amended, Keep.PRODUCTS if verdict.accepted else None)
                self.standing[planned.index, page] = Standing.of(amended)
        if not again:
            self._finish(file)
        for page in sorted(again):
            wanted = records[page].frame.pixel_hash if page in verdicts else None
            yield self._assign(file, page, verdict=verdicts.get(page), pixel_hash=wanted)
        planned.retry = {}
