"""``segbatch process``: paths in, results beside the raw files, a summary out."""

from __future__ import annotations

import glob
import os
import platform
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import msgspec

from segbatch import __version__, log
from segbatch.acquire.find import find_raw_files, is_own_output
from segbatch.errors import StorageError, UsageError
from segbatch.infer.engine.door import open_model
from segbatch.infer.engine.manifest import Model
from segbatch.infer.quality.measures import Measures
from segbatch.infer.segment import Segmenter
from segbatch.service.batch import Batch
from segbatch.service.pipeline import now
from segbatch.service.progress import Progress
from segbatch.service.record.atomic import make_folder
from segbatch.service.record.lock import folder_lock
from segbatch.service.record.runfiles import Counts, FramesTable, write_run_file
from segbatch.service.record.schema import QcRecord
from segbatch.service.rejudge import records_of
from segbatch.settings import Settings

_logger = log.get_logger(__name__)


class RunReport(msgspec.Struct, kw_only=True):
    """What one folder's run came to; ``segbatch_run.json`` and ``--json`` hold the same.

    ``state`` is ``complete``, ``interrupted`` (stopped by a signal) or
    ``stopped`` (storage or engine). ``counts`` are those of the folder,
    ``this_run`` says how much of it was done now.
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
    versions: dict[str, str]
    started_at: str
    ended_at: str


class Selection(msgspec.Struct, kw_only=True):
    """Raw files of one run and the folder that the run belongs to."""

    root: Path
    raws: list[Path]


def select(paths: Sequence[str], out: Path | None) -> list[Selection]:
    """Find the raw files that paths, files and globs name, grouped into runs.

    A folder is searched downwards and is a run of its own; files that were
    named one by one belong to the run of the folder they lie in.

    Raises
    ------
    UsageError
        A path does not exist, or nothing in it is a raw frame.
    """
    runs: dict[Path, list[Path]] = {}
    for text in paths:
        path = Path(text)
        if path.is_dir():
            runs[path] = [raw for raw in find_raw_files(path) if not _within(raw, out, path)]
            continue
        matches = [path] if path.is_file() else sorted(map(Path, glob.glob(text)))  # noqa: PTH207 - patterns may be absolute
        if not matches:
            raise UsageError(
                f"{text}: no such file or folder", "a folder, a file or a glob", "check the path"
            )
        for match in matches:
            if match.is_dir():
                runs[match] = find_raw_files(match)
            elif not is_own_output(match):
                runs.setdefault(match.parent, []).append(match)
    selections = [Selection(root=root, raws=raws) for root, raws in runs.items() if raws]
    if not selections:
        raise UsageError(
            f"no frames in {', '.join(map(str, paths))}",
            "TIFF or PNG files that segbatch did not write itself",
            "check the path, or try it on a simulated run: segbatch simulate run --frames 20",
        )
    return selections


def _within(raw: Path, out: Path | None, root: Path) -> bool:
    return out is not None and out != root and raw.resolve().is_relative_to(out.resolve())


class Process:
    """The runs of one command, one after another, with one engine.

    Parameters
    ----------
    stop
        Set from outside (by a signal) to end early.
    """

    def __init__(self, settings: Settings, stop: threading.Event, progress: Progress) -> None:
        # Frames run in parallel; OpenCV's own threads would only take cores from the engine.
        cv2.setNumThreads(1)
        self._settings, self._stop, self._progress = settings, stop, progress
        self._model: Model = open_model(settings.model)
        self._resources = ExitStack()
        self._segmenter: Segmenter | None = None
        self._opening = threading.Lock()

    def segmenter(self) -> Segmenter:
        """Return the segmenter, opened when it is first needed."""
        with self._opening:
            if self._segmenter is None:
                segmenter = Segmenter(self._model, self._settings)
                self._segmenter = self._resources.enter_context(segmenter)
            return self._segmenter

    def preview(self, selection: Selection) -> dict[str, Any]:
        """Say what a run would do, without doing it."""
        batch = self._batch(selection)
        return {
            "folder": str(selection.root),
            "raw_files": len(batch.files),
            "files_to_do": len(batch.todo),
            "frames_done": batch.frames_done,
            "stale": dict(batch.stale),
        }

    def run(self, selection: Selection) -> RunReport:
        """Process one selection and write its run files.

        Raises
        ------
        StorageError, EngineError
            What ended the run early; the run files are written first where
            that is still possible.
        """
        started_at, start = now(), time.monotonic()
        out_root = self._out_root(selection.root)
        with folder_lock(out_root):
            batch = self._batch(selection)
            if batch.stale:
                _logger.info("earlier results are stale and done again", **batch.stale)
            self._progress.begin(selection.root.name, len(batch.todo))
            state = "stopped"
            try:
                batch.execute()
                state = "interrupted" if self._stop.is_set() else "complete"
            finally:
                report = self._report(selection, batch, state, started_at, start)
        return report

    def close(self) -> None:
        """Close the engine."""
        self._resources.close()

    def _out_root(self, root: Path) -> Path:
        if not self._settings.out:
            return root
        out = Path(self._settings.out)
        make_folder(out)
        return out

    def _batch(self, selection: Selection) -> Batch:
        out = Path(self._settings.out) if self._settings.out else selection.root
        return Batch(
            selection.raws,
            selection.root,
            out,
            self._model,
            self._settings,
            self.segmenter,
            self._stop,
            self._progress,
        )

    def _report(
        self, selection: Selection, batch: Batch, state: str, started_at: str, start: float
    ) -> RunReport:
        out_root = self._out_root(selection.root)
        seconds = time.monotonic() - start
        table = FramesTable(Measures.__struct_fields__)
        report = RunReport(
            folder=str(selection.root),
            out=str(out_root),
            state=state,
            counts=table.counts,
            this_run={
                "frames": self._progress.done,
                "seconds": round(seconds, 3),
                "frames_per_s": round(self._progress.done / seconds, 3) if seconds else None,
                "frames_done_before": batch.frames_done,
                "stale": dict(batch.stale),
            },
            failed=table.failed,
            files={},
            model=self._model_report(),
            settings=msgspec.to_builtins(self._settings),
            versions={"segbatch": __version__, "python": platform.python_version()},
            started_at=started_at,
            ended_at=now(),
        )
        try:
            report.files["frames"] = str(
                table.write(out_root, selection.root, _rows(selection.root, batch))
            )
            report.files["run"] = str(out_root / "segbatch_run.json")
            write_run_file(out_root, msgspec.to_builtins(report))
        except StorageError as error:
            if state == "complete":
                raise
            _logger.warning("the run's summary could not be written", why=str(error))
        return report

    def _model_report(self) -> dict[str, Any]:
        manifest = self._model.manifest
        report: dict[str, Any] = {"name": manifest.name, "sha256": manifest.sha256}
        if self._segmenter is not None:
            info = self._segmenter.info
            report |= {"engine": info.engine, "precision": info.precision}
        return report


def _rows(root: Path, batch: Batch) -> Iterator[tuple[str, QcRecord]]:
    for file in batch.files:
        name = os.fspath(file.raw.relative_to(root))
        for record in records_of(file):
            yield name, record
