"""What is left to do in a folder, read from the QC logs: there is no other ledger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from segbatch.acquire.source import Source
from segbatch.errors import FrameError
from segbatch.infer.engine.manifest import Model
from segbatch.service.pipeline import hash_pixels
from segbatch.service.record import schema
from segbatch.service.record.atomic import is_partial, remove
from segbatch.service.record.names import OutputNames, assign
from segbatch.service.record.schema import QcRecord
from segbatch.service.record.stack import read_lines
from segbatch.settings import Settings

Opener = Callable[[Path], Source]


@dataclass(slots=True)
class PlannedFile:
    """One raw file: where its results go and what is known of them.

    ``records`` are valid ones; ``complete`` says that they are all there are.
    ``stale`` says why earlier results do not count, where there were some.
    ``attempts`` counts how often the file changed under our hands; ``failure``
    is the record of an earlier failure, which is tried again.
    """

    raw: Path
    index: int
    names: OutputNames
    records: list[QcRecord] = field(default_factory=list)
    complete: bool = False
    stale: str | None = None
    attempts: int = 0
    failure: QcRecord | None = None


class Ledger:
    """Decides whether a record on disk answers for the raw, the model and the settings at hand."""

    def __init__(self, model: Model, settings: Settings, opener: Opener) -> None:
        self._model_sha256 = model.manifest.sha256
        self._manifest_sha256 = model.manifest.content_sha256()
        self._settings_sha256 = settings.result_sha256()
        self._redo = settings.redo
        self._opener = opener

    def plan(self, raws: Sequence[Path], out_of: Callable[[Path], Path]) -> list[PlannedFile]:
        """Look up every raw file's results.

        Parameters
        ----------
        raws
            In the order of the run.
        out_of
            Maps a raw file to the folder of its results.
        """
        by_folder: dict[Path, list[Path]] = {}
        for raw in raws:
            by_folder.setdefault(raw.parent, []).append(raw)
        names: dict[Path, OutputNames] = {}
        for members in by_folder.values():
            names |= assign(members, out_of(members[0]))
        planned = [PlannedFile(raw, index, names[raw]) for index, raw in enumerate(raws)]
        for file in planned:
            self._look_up(file)
        return planned

    def _look_up(self, file: PlannedFile) -> None:
        names = file.names
        if names.qc_lines.is_file():
            records = read_lines(names.qc_lines)
        elif names.qc.is_file():
            record = schema.decode(names.qc.read_bytes())
            records = [record] if record is not None else None
        else:
            return
        file.stale = "unreadable QC log" if records is None else self.why_stale(file, records)
        if records is None or file.stale is not None:
            return
        if not names.qc_lines.is_file() and records[0].outcome == "failed":
            file.failure = records[0]
        else:
            file.records, file.complete = records, True

    def why_stale(
        self, file: PlannedFile, records: Sequence[QcRecord], *, published: bool = True
    ) -> str | None:
        """Say why records do not count, or None where they do.

        ``published`` records stand beside their masks; those of a stack that
        an earlier run left half done do not yet.
        """
        if self._redo:
            return "asked to redo"
        for record in records:
            if record.frame.file != file.raw.name:
                return "answers for another file"
            if record.settings_sha256 != self._settings_sha256:
                return "other settings"
            made_by = record.model
            if made_by is not None and (
                made_by.sha256 != self._model_sha256
                or made_by.manifest_sha256 != self._manifest_sha256
            ):
                return "other model"
            if "engine-error" in record.reasons:
                return "engine error"
        if published and any(r.mask for r in records) and not file.names.mask.is_file():
            return "mask missing"
        return "raw file changed" if self._raw_changed(file.raw, records) else None

    def _raw_changed(self, raw: Path, records: Sequence[QcRecord]) -> bool:
        there = raw.stat()
        if all(
            (record.frame.size_bytes, record.frame.mtime_ns) == (there.st_size, there.st_mtime_ns)
            for record in records
        ):
            return False
        # Copied or touched, perhaps: the pixels decide, not the clock.
        try:
            with self._opener(raw) as source:
                if len(records) > source.frame_count:
                    return True
                return any(
                    record.frame.pixel_hash != hash_pixels(source.read(page))
                    for page, record in enumerate(records)
                )
        except FrameError:
            return True


def remove_partial_files(folder: Path) -> int:
    """Remove what an interrupted run was writing in a folder; return how many files that was."""
    partial = [path for path in folder.iterdir() if is_partial(path)]
    for path in partial:
        remove(path)
    return len(partial)
