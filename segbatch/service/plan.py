"""What is left to do in a folder, read from the QC logs: there is no other ledger."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from segbatch import log
from segbatch.acquire.source import Source
from segbatch.errors import FrameError
from segbatch.frame import hash_pixels
from segbatch.infer.engine.manifest import Model
from segbatch.infer.quality.measures import Measures
from segbatch.service.record import schema
from segbatch.service.record.lines import Lines
from segbatch.service.record.names import OutputNames, Register, displaced, is_mask_of_ours, told
from segbatch.service.record.schema import QcRecord
from segbatch.service.record.stack import read_lines
from segbatch.settings import Settings

Opener = Callable[[Path], Source]
_logger = log.get_logger(__name__)


@dataclass(slots=True, eq=False)
class PlannedFile:
    """One raw file: where its results go and what is known of them.

    Attributes
    ----------
    frames_done
        Frames whose published records count.
    complete
        Nothing is to be done but what ``retry`` and the end of the run ask for.
    retry
        Frames that failed before and are tried again, with their records.
    grown
        The raw is a stack with more frames than its published results.
    stale
        Why earlier results do not count, where there were some.
    other
        What else than these settings and this model the results answer for, where they are left
        as they are all the same.
    unreadable
        Why the raw cannot be compared with its results now; they stay.
    touched
        Size and time stamp of a raw that has the pixels of its records, but not these: the
        records are brought up to date.
    attempts
        How often the file changed under our hands.
    still_written
        The raw is a stack to which its writer adds frames at this time.
    """

    raw: Path
    index: int
    names: OutputNames
    frames_done: int = 0
    complete: bool = False
    retry: dict[int, QcRecord] = field(default_factory=dict)
    grown: bool = False
    stale: str | None = None
    other: str | None = None
    unreadable: str | None = None
    touched: tuple[int, int] | None = None
    attempts: int = 0
    still_written: bool = False


class Ledger:
    """Decides whether a record on disk answers for the raw, the model and the settings at hand.

    With ``keep_other`` it need only answer for the raw.
    """

    def __init__(
        self, model: Model, settings: Settings, opener: Opener, *, keep_other: bool = False
    ) -> None:
        self._model_sha256 = model.manifest.sha256
        self._manifest_sha256 = model.manifest.content_sha256()
        self._settings = settings
        self._settings_sha256 = settings.result_sha256()
        self._opener = opener
        self._keep_other = keep_other

    def look_up(self, file: PlannedFile) -> Sequence[QcRecord]:
        """Find out what is known of a file; return the published records that count."""
        try:
            records = read_records(file.names)
        except OSError as error:
            # An outcome is there that may not be seen: leave it, and say so.
            file.unreadable = f"{error.filename} cannot be read ({error.strerror})"
            file.complete = True
            return []
        if records is None:
            return []
        if not records:
            file.stale = "unreadable QC log"
        elif self._settings.redo:
            file.stale = "asked to redo"
        else:
            file.other = self.why_other(records)
            file.stale = (
                self.why_of_another_file(file, records)
                or (None if self._keep_other else file.other)
                or self._why_missing(file, records)
            )
        if file.stale is None:
            self._compare_with_raw(file, records)
        if file.stale is not None:
            file.names = displaced(file.names)
            return []
        file.retry = {
            page: record for page, record in enumerate(records) if record.outcome == "failed"
        }
        file.frames_done = len(records)
        file.complete = not file.grown and (
            not file.retry or file.names.qc_lines.is_file() or file.unreadable is not None
        )
        return records

    @staticmethod
    def why_of_another_file(file: PlannedFile, records: Sequence[QcRecord]) -> str | None:
        """Say that records answer for a file of another name, where they do."""
        strange = any(record.frame.file != told(file.raw) for record in records)
        return "answers for another file" if strange else None

    def why_other(self, records: Sequence[QcRecord]) -> str | None:
        """Say what else than this model and these settings records answer for, if anything."""
        for record in records:
            if record.settings_sha256 != self._settings_sha256:
                return "other settings"
            made_by = record.model
            if made_by is not None and (
                made_by.sha256 != self._model_sha256
                or made_by.manifest_sha256 != self._manifest_sha256
            ):
                return "other model"
            if record.outcome != "failed" and measures_of(record) is None:
                return "judged by another version"
        return None

    def has_changed(self, raw: Path, records: Sequence[QcRecord]) -> bool:
        """Tell whether the raw's time stamp or size differs from that of any record."""
        try:
            there = raw.stat()
        except OSError:
            return True
        return any(
            (record.frame.size_bytes, record.frame.mtime_ns) != (there.st_size, there.st_mtime_ns)
            for record in records
        )

    def _why_missing(self, file: PlannedFile, records: Sequence[QcRecord]) -> str | None:
        if not (any(record.mask for record in records) or file.names.qc_lines.is_file()):
            return None
        wanted = [file.names.mask]
        wanted += [file.names.probabilities] * self._settings.save_probabilities
        wanted += [file.names.labels] * self._settings.save_labels
        gone = [path for path in wanted if not path.is_file()]
        return f"no {gone[0].stem.rpartition('_')[2].removesuffix('.ome')} file" if gone else None

    def _compare_with_raw(self, file: PlannedFile, records: Sequence[QcRecord]) -> None:
        """Let the pixels decide where the time stamp or the size is another.

        A stack is opened in any case: its log must have a line for every frame.
        """
        stack = file.names.qc_lines.is_file()
        changed = self.has_changed(file.raw, records)
        if not (stack or changed):
            return
        try:
            with self._opener(file.raw) as source:
                if not changed and len(records) == source.frame_count:
                    return
                same = len(records) <= source.frame_count and all(
                    record.outcome == "failed"
                    or record.frame.pixel_hash == hash_pixels(source.read(page).pixels)
                    for page, record in enumerate(records)
                )
                longer = len(records) < source.frame_count
                now = source.size_and_mtime_ns
        except FrameError as error:
            if isinstance(error.__cause__, OSError):
                # The system says no, the file says nothing: results are not thrown away for that.
                file.unreadable = str(error)
            elif any(record.outcome != "failed" for record in records):
                file.stale = "raw file changed"
            return
        if not same or (longer and not stack):
            file.stale = "raw file changed"
        else:
            file.grown = longer
            file.touched = now if changed else None


def plan_files(
    raws: Sequence[Path],
    folder_for: Callable[[Path], Path],
    only: Collection[Path] | None,
    alive: Callable[[], None],
) -> list[PlannedFile]:
    """Name the results of every raw file, in the order of the run.

    Parameters
    ----------
    raws
        All raw files of the run.
    folder_for
        Maps a raw file to the folder of its results.
    only
        Those that are to be processed, None for all; of the others only the
        results that are there count.
    alive
        Called for every file that was looked at.
    """
    by_folder: dict[Path, list[Path]] = {}
    frames = []
    for raw in raws:
        alive()
        if not is_mask_of_ours(raw, folder_for(raw)):
            frames.append(raw)
            by_folder.setdefault(raw.parent, []).append(raw)
    names: dict[Path, OutputNames] = {}
    for members in by_folder.values():
        names |= Register(folder_for(members[0]), at_once=True, alive=alive).add(members)
    return [
        PlannedFile(raw, index, names[raw])
        for index, raw in enumerate(frames)
        if only is None or raw in only or names[raw].qc.exists() or names[raw].qc_lines.exists()
    ]


def read_records(names: OutputNames) -> Sequence[QcRecord] | None:
    """Read the published records of a file: None without a log, empty where it makes no sense."""
    if names.qc_lines.is_file():
        return read_lines(names.qc_lines) or []
    if names.qc.is_file():
        record = schema.decode(names.qc.read_bytes())
        return [record] if record is not None else []
    return None


def measures_of(record: QcRecord) -> Measures | None:
    """Return the measures that a record holds; None where it lacks one."""
    fields = Measures.__struct_fields__
    if any(name not in record.quality for name in fields):
        return None
    try:
        return msgspec.convert({name: record.quality[name] for name in fields}, Measures)
    except msgspec.ValidationError:
        return None


def brought_up_to_date(file: PlannedFile, records: Sequence[QcRecord]) -> Sequence[QcRecord]:
    """Return records with the size and time stamp that the raw was compared at."""
    if file.touched is None:
        return records
    size_bytes, mtime_ns = file.touched
    if isinstance(records, Lines):
        records.settle_on(size_bytes, mtime_ns)
        return records
    return [
        msgspec.structs.replace(
            record,
            frame=msgspec.structs.replace(record.frame, size_bytes=size_bytes, mtime_ns=mtime_ns),
        )
        for record in records
    ]
