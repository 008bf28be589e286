"""What every way through a run shares: raw files become journeys, and journeys results."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from segbatch import log
from segbatch.acquire.source import Source, open_source
from segbatch.errors import FrameError, StorageError, UnreadableFrameError
from segbatch.frame import hash_pixels
from segbatch.infer.engine.manifest import Model
from segbatch.infer.quality.observers import Observers
from segbatch.infer.quality.verdict import Judge, Verdict
from segbatch.infer.segment import Segmenter
from segbatch.service.crew import Assignment, Crew, OpenFile
from segbatch.service.journey import Journey
from segbatch.service.pipeline import Pipeline
from segbatch.service.plan import (
    Ledger,
    PlannedFile,
    brought_up_to_date,
    measures_of,
    read_records,
)
from segbatch.service.priority import give_way
from segbatch.service.progress import Listener
from segbatch.service.record.atomic import is_partial, make_folder, remove
from segbatch.service.record.names import retire
from segbatch.service.record.recorder import Keep
from segbatch.service.record.schema import QcRecord
from segbatch.service.record.single import SingleRecorder
from segbatch.service.record.stack import (
    StackPatcher,
    StackRecorder,
    copy_published,
    discard_hidden,
    hidden_files,
    is_hidden,
    rewrite_lines,
)
from segbatch.service.rejudge import Key, Standing
from segbatch.service.under_way import UnderWay
from segbatch.settings import Settings

MAX_ATTEMPTS = 3  # on a raw file that changes while it is read
SPARE_JOURNEYS = 2  # that are read or recorded meanwhile
FRAME_AND_MASK = 1.5  # memory of a 16-bit frame and its 8-bit mask, in frames
_logger = log.get_logger(__name__)


class Work:
    """The frames of one run on their way from raw files to results.

    Parameters
    ----------
    root, out_root
        The run's folder, and the one that mirrors it for the results (the
        same one unless ``--out`` was given). The caller holds its lock.
    segmenter
        Opens the engine when it is first needed.
    observers
        Measure the pixels of frames, and lend the memory for them.
    stop
        Set from outside to end early: what is under way is finished, nothing
        more is begun.
    progress
        Told of every frame that is found and every record that is committed.
    keep_other
        Leave results of other settings or of another model as they are.
    under_way
        Notes the frames under way, and knows those that ended the process before.
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
        *,
        keep_other: bool = False,
        under_way: UnderWay | None = None,
    ) -> None:
        self._under_way = under_way
        self._root, self._out_root = root, out_root
        self._settings, self._segmenter = settings, segmenter
        self._stop, self._progress = stop, progress
        self._observers = observers
        self._judge = Judge(settings.quality)
        self._pipeline = Pipeline(
            self._judge,
            segmenter,
            observers.observe,
            settings.result_sha256(),
            self._require_same_folder,
        )
        self._folder_id = _identity(root)
        self._ledger = Ledger(model, settings, self.open_raw, keep_other=keep_other)
        self._tickets = 0
        self._again: list[PlannedFile] = []
        self._half_done: set[Path] = set()
        self.standing: dict[Key, Standing] = {}
        self.done_now: set[Key] = set()
        self.files: list[PlannedFile] = []

    def open_raw(self, raw: Path) -> Source:
        """Open a raw file as the settings say."""
        return open_source(
            raw,
            bit_depth=self._settings.bit_depth,
            profile=self._settings.profile,
            max_file_gib=self._settings.max_file_gib,
            empty=self._observers.empty,
        )

    def _folder_for(self, raw: Path) -> Path:
        return self._out_root / raw.parent.relative_to(self._root)

    def _require_same_folder(self) -> None:
        """Raise StorageError where the folder is not the one that the run began in."""
        if _identity(self._root) != self._folder_id:
            raise StorageError(
                f"{self._root} is gone, or another folder stands in its place",
                "the folder that the run began in",
                "bring it back (is the drive or share still mounted?), then run again",
            )

    def _look_up(self, file: PlannedFile) -> None:
        """Find out what is known of a file, and take its frames into the run."""
        for page, record in enumerate(self._ledger.look_up(file)):
            if file.other is None:
                self._remember((file.index, page), record)
            else:  # judged by other rules: it counts, and is compared with nothing
                self.standing[file.index, page] = Standing.of(record)

    def _remember(self, key: Key, record: QcRecord) -> None:
        self.standing[key] = Standing.of(record)
        self._pipeline.remember(key, record, measures_of(record))

    def _forget(self, index: int, judged: int = 0) -> None:
        """Take the frames of a file out of the run: the file is another now.

        ``judged`` pages may have been judged without having been recorded.
        """
        keys = {key for key in list(self.standing) if key[0] == index}
        keys |= {(index, page) for page in range(judged)}
        for key in keys:
            self.standing.pop(key, None)
            self.done_now.discard(key)
        self._pipeline.forget(keys)

    def _tidy_folder(self, folder: Path) -> None:
        """Clear away what an interrupted run left in a folder, and note its half-done stacks."""
        make_folder(folder)
        names = list(folder.iterdir())
        self._half_done.update(path for path in names if is_hidden(path))
        partial = [path for path in names if is_partial(path)]
        for path in partial:
            remove(path)
        if partial:
            _logger.info("removed what an interrupted run was writing", files=len(partial))

    def _tidy_file(self, file: PlannedFile) -> None:
        """Retire superseded results of a file, and bring touched records up to date."""
        for old in file.names.superseded:
            retire(old)
            discard_hidden(old)
        left = not self._half_done.isdisjoint(hidden_files(file.names))
        if left and (self._settings.redo or file.complete):
            discard_hidden(file.names)
        if file.touched is not None and not file.grown:
            records = brought_up_to_date(file, read_records(file.names) or [])
            if file.names.qc_lines.is_file():
                rewrite_lines(file.names, records)
            else:
                SingleRecorder(file.names).commit(0, records[0], Keep.PRODUCTS)

    def _crew_size(self) -> int:
        """Journeys at once that keep the engine and the observers busy; opens the engine."""
        return self._segmenter().streams + self._observers.most + SPARE_JOURNEYS

    def _run(
        self,
        assignments: Iterator[Assignment],
        threads: int,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        crew = Crew(
            self._pipeline,
            int(self._settings.memory_gib * 2**30),
            self._stop,
            self._note,
            self._finish,
            self._mark,
            self._begin,
        )
        crew.run(assignments, threads, meanwhile)

    def _begin(self) -> None:
        """Prepare a thread of the crew."""
        if self._under_way is not None:  # in the service, which may drive a camera
            give_way()

    def _mark(self, journey: Journey) -> AbstractContextManager[None]:
        if self._under_way is None:
            return nullcontext()
        return self._under_way.mark(journey.raw, journey.page)

    def _note(self, journey: Journey, record: QcRecord) -> None:
        self.standing[journey.key] = Standing.of(record)
        if record is journey.previous:
            return  # failed before, and again
        self.done_now.add(journey.key)
        self._progress.recorded(
            journey.raw, journey.recorder.names.folder, record, renewed=journey.verdict is not None
        )

    def _journeys(self, pending: Iterable[PlannedFile]) -> Iterator[Assignment]:
        for planned in pending:
            file, first_page, error = self._open_file(planned)
            pages = range(first_page, first_page + file.outstanding)
            if not pages:
                self._finish(file)
            for page in pages:
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
            if not self._half_done.isdisjoint(hidden_files(planned.names)):
                discard_hidden(planned.names)  # of a time when it was a stack
            return OpenFile(planned, source, single, source.frame_count), 0, None
        recorder = self._open_stack(planned, source)
        first = recorder.next_page
        self._progress.grow(source.frame_count - first - 1)
        return OpenFile(planned, source, recorder, source.frame_count - first), first, None

    def _open_stack(self, planned: PlannedFile, source: Source) -> StackRecorder:
        """Go on with a stack where it stopped, or where its published results end."""
        if planned.grown:
            recorder, _ = copy_published(planned.names, {}, planned.touched)
        else:
            recorder = StackRecorder(
                planned.names,
                probabilities=self._settings.save_probabilities,
                labels=self._settings.save_labels,
            )
            if not self._goes_on(planned, source, recorder):
                recorder.rewind(0)
        for page, record in enumerate(recorder.records):
            self._remember((planned.index, page), record)
        return recorder

    def _goes_on(self, planned: PlannedFile, source: Source, recorder: StackRecorder) -> bool:
        """Tell whether the half-done results of a stack are those of the stack that is there now.

        One whose writer was at work meanwhile has another size and time
        stamp; it is the same where the last frame that was recorded is.
        """
        records = recorder.records
        if self._ledger.why_of_another_file(planned, records) or self._ledger.why_other(records):
            return False
        return self._is_same_stack(planned.raw, source, records)

    def _is_same_stack(self, raw: Path, source: Source, records: Sequence[QcRecord]) -> bool:
        if len(records) > source.frame_count:
            return False
        if not self._ledger.has_changed(raw, records[-1:]):
            return True
        if not source.may_grow:
            return False
        try:
            last = hash_pixels(source.read(len(records) - 1).pixels)
        except FrameError:
            return False
        return last == records[-1].frame.pixel_hash

    def _assign(
        self,
        file: OpenFile,
        page: int,
        *,
        open_error: FrameError | None = None,
        verdict: Verdict | None = None,
        pixel_hash: str | None = None,
    ) -> Assignment:
        planned = file.planned
        # A stack that is published keeps the products that it was published with.
        published = isinstance(file.recorder, StackPatcher) or planned.grown
        names = planned.names
        journey = Journey(
            raw=planned.raw,
            source=file.source,
            page=page,
            key=(planned.index, page),
            ticket=self._tickets,
            recorder=file.recorder,
            verdict=verdict,
            pixel_hash=pixel_hash,
            probabilities=names.probabilities.exists()
            if published
            else self._settings.save_probabilities,
            labels=names.labels.exists() if published else self._settings.save_labels,
            previous=planned.retry.get(page),
            open_error=open_error,
            set_aside=self._under_way.why_set_aside(planned.raw, page) if self._under_way else None,
        )
        self._tickets += 1
        frame_bytes = file.source.frame_bytes(page) if file.source is not None else 0
        return Assignment(journey, file, int(frame_bytes * FRAME_AND_MASK))

    def _finish(self, file: OpenFile) -> None:
        """Make a file's results whole, or have it taken up again if its raw changed."""
        planned = file.planned
        try:
            if file.spoiled or self._replaced_meanwhile(file):
                _logger.warning("raw file changed while it was read", file=str(planned.raw))
                planned.attempts += 1
                planned.retry = {}
                planned.grown = False
                self._forget(planned.index, file.source.frame_count if file.source else 1)
                self._again.append(planned)
            else:
                file.recorder.finish(file.source.grid_axes() if file.source is not None else None)
        finally:
            file.close()
        if file.spoiled:
            discard_hidden(planned.names)

    def _replaced_meanwhile(self, file: OpenFile) -> bool:
        """Tell whether a stack is no longer the one whose frames were recorded."""
        if not isinstance(file.recorder, StackRecorder):
            return False
        if file.source is not None and file.source.may_grow:
            return False
        file.spoiled = self._ledger.has_changed(file.planned.raw, file.recorder.records)
        return file.spoiled


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        there = folder.stat()
    except OSError:
        return None
    return there.st_dev, there.st_ino
