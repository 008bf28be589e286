"""``segbatch process``: paths in, results beside the raw files, a summary out."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import cv2
import msgspec

from segbatch import __version__, log
from segbatch.acquire.folder.fingerprint import fingerprint, fingerprint_of_results
from segbatch.errors import SegbatchError, StorageError, UsageError
from segbatch.infer.engine.machine import available_threads
from segbatch.infer.engine.manifest import Model
from segbatch.infer.engine.network.models import open_model
from segbatch.infer.quality.measures import Measures
from segbatch.infer.quality.observers import Observers
from segbatch.infer.segment import ModelInfo, Segmenter
from segbatch.service.batch import Batch
from segbatch.service.live import LiveRun
from segbatch.service.plan import read_records
from segbatch.service.progress import Listener
from segbatch.service.record.atomic import make_folder
from segbatch.service.record.lock import folder_lock
from segbatch.service.record.names import printable, told
from segbatch.service.record.runfiles import (
    Counts,
    FramesTable,
    frames_file,
    read_camera_file,
    run_file,
    write_run_file,
)
from segbatch.service.record.schema import QcRecord, now
from segbatch.service.record.stack import read_journal
from segbatch.service.selection import Selection
from segbatch.service.under_way import UnderWay
from segbatch.settings import Settings

_logger = log.get_logger(__name__)


class RunReport(msgspec.Struct, kw_only=True):
    """What one folder's run came to; ``segbatch_run.json`` and ``--json`` hold the same.

    ``state`` is ``complete``, ``interrupted`` (stopped by a signal) or
    ``stopped`` (storage or engine). ``counts`` are those of the folder,
    ``this_run`` says how much of it was done now. ``raws_fingerprint`` tells
    whether the raw files are still those that were processed; ``camera`` is
    what the camera that took them left beside them.
    """

    folder: str
    out: str
    state: str
    counts: Counts
    this_run: dict[str, Any]
    failed: list[str]
    files: dict[str, str]
    model: dict[str, Any]
    settings: dict[str, Any]
    raws_fingerprint: str
    camera: dict[str, Any] | None
    versions: dict[str, str]
    started_at: str
    ended_at: str


class Process:
    """The runs of one command, one after another, with one engine.

    Parameters
    ----------
    stop
        Set from outside (by a signal) to end early.
    keep_other
        Leave results of other settings or of another model as they are.
    under_way
        Notes the frames under way for the next process.
    """

    def __init__(
        self,
        settings: Settings,
        stop: threading.Event,
        progress: Listener,
        *,
        keep_other: bool = False,
        under_way: UnderWay | None = None,
    ) -> None:
        self._keep_other, self._under_way = keep_other, under_way
        # Frames run in parallel; OpenCV's own threads would only take cores from the engine.
        cv2.setNumThreads(1)
        self._settings, self._stop, self._progress = settings, stop, progress
        self._model: Model = open_model(settings.model, settings.arch)
        self._resources = ExitStack()
        # On one processor there is nothing beside which another process could run.
        processors = available_threads()
        self._observers = Observers(processors if processors > 1 else 0)
        self._resources.enter_context(self._observers)
        self._segmenter: Segmenter | None = None
        self._opening = threading.Lock()

    def segmenter(self) -> Segmenter:
        """Return the segmenter, opened when it is first needed."""
        with self._opening:
            if self._segmenter is None:
                segmenter = Segmenter(self._model, self._settings)
                self._segmenter = self._resources.enter_context(segmenter)
            return self._segmenter

    @property
    def engine_info(self) -> ModelInfo | None:
        """The engine that is open and its model; None before it was needed."""
        return self._segmenter.info if self._segmenter is not None else None

    def preview(self, selection: Selection) -> dict[str, Any]:
        """Say what a run would do, without doing it."""
        batch = self._batch(selection)
        batch.plan()
        return {
            "folder": str(selection.root),
            "raw_files": len(batch.files),
            "files_to_do": len(batch.todo),
            "frames_done": batch.frames_done,
            "stale": dict(batch.stale),
        }

    def run(self, selection: Selection) -> RunReport:
        """Process one selection and write its run files, as the only one in its folder.

        Raises
        ------
        StorageError
            Another process is at work there, and as ``run_locked``.
        EngineError
            As ``run_locked``.
        """
        out_root = self._out_root(selection)
        make_folder(out_root)
        with folder_lock(out_root):
            return self.run_locked(selection)

    def run_locked(self, selection: Selection) -> RunReport:
        """Process one selection and write its run files; the caller holds the folder's lock.

        Raises
        ------
        StorageError, EngineError
            What ended the run early; the run files are written first where
            that is still possible.
        """
        started_at, start = now(), time.monotonic()
        out_root = self._out_root(selection)
        make_folder(out_root)
        _refuse_results_of_another(selection.root, out_root)
        # Of what the plan sees: what changes from here on is for a run after this one.
        seen = _fingerprint(selection, self._progress.alive)
        batch = self._batch(selection)
        batch.plan()
        if batch.stale:
            _logger.info("earlier results are stale and done again", **batch.stale)
        self._progress.begin(selection.root.name, len(batch.todo))
        try:
            batch.execute()
        except SegbatchError:
            report = self._report(selection, batch, "stopped", seen, started_at, start)
            with suppress(StorageError, OSError):  # what ended the run is the thing to tell
                self._write(report, selection, batch)
            raise
        state = "interrupted" if self._stop.is_set() else "complete"
        report = self._report(selection, batch, state, seen, started_at, start)
        self._write(report, selection, batch)
        return report

    def live(self, root: Path, out_root: Path) -> LiveRun:
        """Begin a run that is still growing; the caller holds its folder's lock."""
        if self._under_way is None:
            raise RuntimeError("a process that works on growing runs notes what is under way")
        return LiveRun(
            root,
            out_root,
            self._model,
            self._settings,
            self.segmenter,
            self._observers,
            self._stop,
            self._progress,
            self._under_way,
        )

    def close(self) -> None:
        """Close the engine, and end the processes that measure frames."""
        self._resources.close()

    def _out_root(self, selection: Selection) -> Path:
        named = Path(self._settings.out) if self._settings.out else selection.root
        return selection.out or named

    def _batch(self, selection: Selection) -> Batch:
        return Batch(
            selection.raws,
            selection.only,
            selection.root,
            self._out_root(selection),
            self._model,
            self._settings,
            self.segmenter,
            self._observers,
            self._stop,
            self._progress,
            keep_other=self._keep_other,
            under_way=self._under_way,
        )

    def _report(
        self,
        selection: Selection,
        batch: Batch,
        state: str,
        raws_fingerprint: str,
        started_at: str,
        start: float,
    ) -> RunReport:
        seconds = time.monotonic() - start
        frames = len(batch.done_now)
        return RunReport(
            folder=printable(str(selection.root.resolve())),
            out=printable(str(self._out_root(selection))),
            state=state,
            counts=Counts(),
            this_run={
                "frames": frames,
                "seconds": round(seconds, 3),
                "frames_per_s": round(frames / seconds, 3) if seconds else None,
                "frames_done_before": batch.frames_done,
                "stale": dict(batch.stale),
                "verdicts_changed": dict(batch.verdicts_changed),
            },
            failed=[],
            files={},
            model=self._model_report(),
            settings=msgspec.to_builtins(self._settings),
            raws_fingerprint=raws_fingerprint,
            camera=read_camera_file(selection.root),
            versions={"segbatch": __version__, "python": platform.python_version()},
            started_at=started_at,
            ended_at=now(),
        )

    def _write(self, report: RunReport, selection: Selection, batch: Batch) -> None:
        """Write the run files, and fill in what is counted on the way.

        A run that found nothing to do leaves those of the run before it, where that was complete
        and of the same raw files: frames that came since may have been recorded as they came.
        """
        out_root = self._out_root(selection)
        table = FramesTable(Measures.__struct_fields__)
        path, rows = frames_file(out_root), _rows(selection.root, batch, self._progress.alive)
        idle = not (batch.done_now or batch.verdicts_changed or report.state != "complete")
        known = fingerprint_of_results(out_root)
        answers = known is not None and report.raws_fingerprint in (known, "")  # empty: of some
        if idle and path.is_file() and answers:
            table.count(selection.root, rows)
        else:
            idle = False
            table.write(out_root, selection.root, rows)
        report.counts, report.failed = table.counts, table.failed
        report.failed += [f"{told(f.raw)}: {f.unreadable}" for f in batch.files if f.unreadable]
        report.files = {
            "frames": printable(str(path)),
            "run": printable(str(run_file(out_root))),
        }
        if not idle:
            write_run_file(out_root, msgspec.to_builtins(report))

    def _model_report(self) -> dict[str, Any]:
        manifest = self._model.manifest
        report: dict[str, Any] = {"name": manifest.name, "sha256": manifest.sha256}
        if self._segmenter is not None:
            info = self._segmenter.info
            report |= {"engine": info.engine, "precision": info.precision}
        return report


def _fingerprint(selection: Selection, alive: Callable[[], None]) -> str:
    """Return the fingerprint of a run's raw files; empty where only some were asked for."""
    if selection.only is not None:
        return ""
    found = []
    for raw in selection.raws:
        alive()
        with suppress(OSError):  # gone meanwhile: the next look at the folder tells
            there = raw.stat()
            name = raw.relative_to(selection.root).as_posix()
            found.append((name, there.st_size, there.st_mtime_ns))
    return fingerprint(found)


def _refuse_results_of_another(root: Path, out_root: Path) -> None:
    """Keep ``--out`` from mixing two runs, whose frames often bear the same names."""
    if out_root.resolve() == root.resolve():
        return
    try:
        earlier = msgspec.json.decode(run_file(out_root).read_bytes(), type=_EarlierRun)
    except FileNotFoundError:
        write_run_file(out_root, {"folder": printable(str(root.resolve())), "state": "running"})
        return
    except (OSError, msgspec.DecodeError):
        return
    if earlier.folder != printable(str(root.resolve())):
        raise UsageError(
            f"{out_root} holds the results of {earlier.folder}",
            f"a folder for the results of {root} alone",
            "give another --out, one for each run",
        )


class _EarlierRun(msgspec.Struct):
    folder: str


def _rows(root: Path, batch: Batch, alive: Callable[[], None]) -> Iterator[tuple[str, QcRecord]]:
    """Yield the outcomes that count, those of half-done stacks too."""
    for file in batch.files:
        alive()
        name = file.raw.relative_to(root).parent / told(file.raw)
        if file.unreadable is not None and not file.frames_done:
            continue  # its log may not be read
        records = read_records(file.names) or read_journal(file.names)
        for page, record in enumerate(records):
            if (file.index, page) in batch.standing:
                yield printable(os.fspath(name)), record
