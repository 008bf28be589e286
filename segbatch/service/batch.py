"""One run over a folder: plan, journeys in parallel, every frame judged again at the end."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from segbatch import log
from segbatch.acquire.source import Source, open_source
from segbatch.errors import FrameError, UnreadableFrameError
from segbatch.infer.engine.manifest import Model
from segbatch.infer.quality.verdict import Judge, Verdict
from segbatch.infer.segment import Segmenter
from segbatch.service.crew import Assignment, Crew, OpenFile
from segbatch.service.pipeline import Journey, Pipeline
from segbatch.service.plan import Ledger, PlannedFile, remove_partial_files
from segbatch.service.progress import Progress
from segbatch.service.record.atomic import make_folder
from segbatch.service.record.recorder import Keep, Recorder
from segbatch.service.record.schema import QcRecord
from segbatch.service.record.single import SingleRecorder
from segbatch.service.record.stack import StackPatcher, StackRecorder, discard_hidden
from segbatch.service.rejudge import Key, Standing, amend, changed, records_of
from segbatch.settings import Settings

MAX_ATTEMPTS = 3  # on a raw file that changes while it is read
FRAME_AND_MASK = 1.5  # memory of a 16-bit frame and its 8-bit mask, in frames
_logger = log.get_logger(__name__)


class Batch:
    """One folder's run.

    Parameters
    ----------
    raws
        The raw files, in the order in which they are judged.
    root, out_root
        The folder they lie in, and the one that mirrors it for the results
        (the same one unless ``--out`` was given). The caller holds its lock.
    segmenter
        Opens the engine when it is first needed.
    stop
        Set from outside to end the run early: what is under way is finished,
        nothing more is begun.
    progress
        Told of every frame that is found and every record that is committed.
    """

    def __init__(
        self,
        raws: Sequence[Path],
        root: Path,
        out_root: Path,
        model: Model,
        settings: Settings,
        segmenter: Callable[[], Segmenter],
        stop: threading.Event,
        progress: Progress,
    ) -> None:
        self._root, self._out_root = root, out_root
        self._settings, self._segmenter = settings, segmenter
        self._stop, self._progress = stop, progress
        self._products = {
            "probabilities": settings.save_probabilities,
            "labels": settings.save_labels,
        }
        self._judge = Judge(settings.quality)
        self._pipeline = Pipeline(
            self._judge, segmenter, settings.result_sha256(), **self._products
        )
        self._ledger = Ledger(model, settings, self.open_raw)
        self._tickets = 0
        self._standing: dict[Key, Standing] = {}
        self._again: list[PlannedFile] = []
        self.files = self._ledger.plan(raws, self._folder_for)
        self.stale = Counter(file.stale for file in self.files if file.stale is not None)

    def open_raw(self, raw: Path) -> Source:
        """Open a raw file as the settings say."""
        return open_source(
            raw,
            bit_depth=self._settings.bit_depth,
            profile=self._settings.profile,
            max_file_gib=self._settings.max_file_gib,
        )

    @property
    def frames_done(self) -> int:
        """How many frames had a valid outcome before the run."""
        return sum(len(file.records) for file in self.files if file.complete)

    @property
    def todo(self) -> list[PlannedFile]:
        """The files that have frames without a valid outcome."""
        return [file for file in self.files if not file.complete]

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
        for file in self.files:
            for page, record in enumerate(file.records):
                self._remember((file.index, page), record)
        pending = self.todo
        while pending and not self._stop.is_set():
            self._segmenter()
            self._run(self._journeys(pending))
            pending, self._again = self._again, []
        if not self._stop.is_set():
            self._run(self._renewals(changed(self._judge.settle(), self._standing)))

    def _folder_for(self, raw: Path) -> Path:
        return self._out_root / raw.parent.relative_to(self._root)

    def _tidy(self) -> None:
        for folder in {file.names.folder for file in self.files}:
            make_folder(folder)
            removed = remove_partial_files(folder)
            if removed:
                _logger.info("removed what an interrupted run was writing", files=removed)
        for file in self.files:
            if file.complete:
                discard_hidden(file.names)

    def _remember(self, key: Key, record: QcRecord) -> None:
        self._standing[key] = Standing.of(record)
        self._pipeline.remember(key, record)

    def _run(self, assignments: Iterator[Assignment]) -> None:
        crew = Crew(
            self._pipeline,
            self._segmenter().streams + 2 if self.todo else 1,
            int(self._settings.memory_gib * 2**30),
            self._stop,
            self._note,
            self._finish,
        )
        open_files: dict[int, OpenFile] = {}

        def noted() -> Iterator[Assignment]:
            for assignment in assignments:
                open_files[id(assignment.file)] = assignment.file
                yield assignment

        try:
            crew.run(noted())
        finally:
            for file in open_files.values():
                file.close()

    def _note(self, journey: Journey, record: QcRecord) -> None:
        self._standing[journey.key] = Standing.of(record)
        self._progress.note(record)

    def _journeys(self, pending: Sequence[PlannedFile]) -> Iterator[Assignment]:
        for planned in pending:
            file, first_page, error = self._open_file(planned)
            if file.outstanding == 0:
                self._finish(file)
                file.close()
                continue
            for page in range(first_page, first_page + file.outstanding):
                yield self._assign(file, page, open_error=error)

    def _open_file(self, planned: PlannedFile) -> tuple[OpenFile, int, FrameError | None]:
        """Open a raw and the recorder of its results; say where to go on."""
        single = SingleRecorder(planned.names)
        try:
            if planned.attempts >= MAX_ATTEMPTS:
                raise UnreadableFrameError(
                    f"{planned.raw.name} changed {planned.attempts} times while it was read",
                    "a file that nobody writes to any more",
                    "run again when it is complete",
                )
            source = self.open_raw(planned.raw)
        except FrameError as error:
            return OpenFile(planned, None, single, 1), 0, error
        if not source.is_stack:
            return OpenFile(planned, source, single, source.frame_count), 0, None
        recorder = StackRecorder(planned.names, **self._products)
        stale = self._ledger.why_stale(planned, recorder.records, published=False)
        if stale is not None or recorder.next_page > source.frame_count:
            recorder.rewind(0)
        for page, record in enumerate(recorder.records):
            self._remember((planned.index, page), record)
        first = recorder.next_page
        self._progress.grow(source.frame_count - first - 1)
        return OpenFile(planned, source, recorder, source.frame_count - first), first, None

    def _assign(
        self,
        file: OpenFile,
        page: int,
        *,
        open_error: FrameError | None = None,
        verdict: Verdict | None = None,
    ) -> Assignment:
        planned = file.planned
        journey = Journey(
            raw=planned.raw,
            source=file.source,
            page=page,
            key=(planned.index, page),
            ticket=self._tickets,
            recorder=file.recorder,
            verdict=verdict,
            previous=planned.failure,
            open_error=open_error,
        )
        self._tickets += 1
        frame_bytes = file.source.frame_bytes(page) if file.source is not None else 0
        return Assignment(journey, file, int(frame_bytes * FRAME_AND_MASK))

    def _finish(self, file: OpenFile) -> None:
        """Make a file's results whole, or have it taken up again if its raw changed."""
        planned = file.planned
        if file.spoiled or (isinstance(file.recorder, StackRecorder) and self._grew(file)):
            planned.attempts += 1
            _logger.warning("raw file changed while it was read", file=str(planned.raw))
            file.close()
            discard_hidden(planned.names)
            self._again.append(planned)
            return
        axes = file.source.grid_axes() if file.source is not None else None
        file.recorder.finish(axes)
        file.close()

    def _grew(self, file: OpenFile) -> bool:
        records = file.recorder.records if isinstance(file.recorder, StackRecorder) else []
        return self._ledger.why_stale(file.planned, records, published=False) is not None

    def _renewals(self, changes: dict[int, dict[int, Verdict]]) -> Iterator[Assignment]:
        """Bring the records to the final verdicts: most are amended, some frames go again."""
        for index, verdicts in changes.items():
            planned = self.files[index]
            records = records_of(planned)
            again = [
                page
                for page, verdict in verdicts.items()
                if verdict.accepted and records[page].outcome != "segmented"
            ]
            file = OpenFile(
                planned,
                self.open_raw(planned.raw) if again else None,
                self._renewing_recorder(planned),
                len(again),
            )
            for page, verdict in verdicts.items():
                if page not in again:
                    amended = amend(records[page], verdict)
                    kept = Keep.PRODUCTS if verdict.accepted else None
                    file.recorder.commit(page, amended, kept)
                    self._standing[index, page] = Standing.of(amended)
            if not again:
                self._finish(file)
            for page in again:
                yield self._assign(file, page, verdict=verdicts[page])

    def _renewing_recorder(self, planned: PlannedFile) -> Recorder:
        if planned.names.qc_lines.is_file():
            return StackPatcher(planned.names, **self._products)
        return SingleRecorder(planned.names)
