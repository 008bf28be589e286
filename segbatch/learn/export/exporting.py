"""From a model to an engine beside it: make what is offered, compare, time, keep the best."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segbatch.errors import EngineError, ModelError, SegbatchError
from segbatch.infer.engine.choice import BUILT_IN, Choice, load_fitting, trial_of
from segbatch.infer.engine.cpu.onnxruntime_engine import OnnxRuntimeEngine
from segbatch.infer.engine.door import open_chosen
from segbatch.infer.engine.machine import available_threads
from segbatch.infer.engine.made.artifact import (
    Verdict,
    artifacts_beside,
    engines_of,
    own_folder,
)
from segbatch.learn.export.blame import blame, none_passed
from segbatch.learn.export.candidates import Kind, Made, Offer, make
from segbatch.learn.export.gate import SAME_TIME, answer, compare, time_in_turns, worse_than
from segbatch.learn.export.workplace import storage_error, workplace
from segbatch.learn.export.writing import copy_model, refuse_other_model, write
from segbatch.log import get_logger

if TYPE_CHECKING:
    from segbatch.infer.engine.door import Engine
    from segbatch.infer.engine.made.artifact import Artifact
    from segbatch.infer.engine.made.likeness import Answer
    from segbatch.infer.engine.manifest import Model
    from segbatch.infer.engine.probe import Probe
    from segbatch.learn.export.frames import Material

# Objects of fewer pixels say nothing of what a precision does to them.
FEWEST_OBJECT_PX = 100
log = get_logger(__name__)


@dataclass(slots=True)
class Entry:
    """One engine in the comparison: what it is, and what was found of it.

    ``role`` is ``new``, ``there`` (made before, in ``folder``) or ``built in``; ``why`` says what
    speaks against it. ``tried`` is False where it was not even made. ``namesake``: another that
    is there is of the same kind.
    """

    kind: Kind
    role: str
    made: Made | None = None
    verdict: Verdict | None = None
    ms: float | None = None
    seconds: float = 0.0
    why: str = ""
    tried: bool = True
    folder: Path | None = None
    namesake: bool = False

    @property
    def label(self) -> str:
        """Engine and precision, what it is where that is not new, and where, if need be."""
        where = f", in {self.folder}" if self.namesake else ""
        return " ".join(self.kind) + ("" if self.role == "new" else f" ({self.role}{where})")

    @property
    def outcome(self) -> str:
        """What the gate says: ``passed``, ``failed`` or ``not tried``."""
        if not self.tried:
            return "not tried"
        return "passed" if self.passed else "failed"

    @property
    def passed(self) -> bool:
        """Whether it is the same network, as far as the gate asks."""
        return self.verdict is not None and self.verdict.passed


@dataclass(slots=True)
class Result:
    """All that an export found; ``written`` is None where nothing was better than what is there.

    ``note`` says what the gate could not see; the engine's manifest repeats it.
    """

    model: Model
    material: Material
    entries: list[Entry]
    offer: Offer
    source_ms: float = 0.0
    rounds: int = 0
    threads: int = 0
    best: Entry | None = None
    written: Path | None = None
    remarks: list[str] = field(default_factory=list)
    note: str = ""


def export_engine(
    model: Model,
    material: Material,
    folder: Path,
    offer: Offer,
    *,
    tolerance: float,
    force: bool = False,
    forced_by: str = "--force",
    command: str = "",
) -> Result:
    """Make the fastest engine that passes the gate, and write it into ``folder``.

    Parameters
    ----------
    model
        From ``open_model``.
    material
        The frames to compare and calibrate on.
    folder
        Where model, engine and manifest stand afterwards.
    offer
        What to try, from ``offered``; a single kind was asked for by name.
    tolerance
        Fraction of pixels in which the masks have to agree.
    force
        Write it though what the user has already is better.
    forced_by
        The option that asked for that.
    command
        That the manifest records.

    Raises
    ------
    EngineError
        Nothing passes the gate, or what was named is worse than what the user has.
    ModelError
        The network cannot be written in the precision that was named.
    StorageError
        The folder cannot be written.
    UsageError
        It holds another model of this name; nothing was built.
    """
    try:
        with workplace(folder) as made_in, ExitStack() as stack:
            refuse_other_model(model, folder)
            result = Result(model, material, [], offer, threads=available_threads())
            work = _Work(result, tolerance, made_in, stack)
            for group in offer.groups:
                work.try_group(group)
                if any(entry.passed for entry in result.entries):
                    break
            else:
                raise none_passed(result)
            work.add_rivals(_engines_there(model, folder))
            work.time()
            _pick(result, forced_by if force else "", named=_single(offer))
            if result.best is not None and result.best.made is not None:
                made = result.best.made
                result.written = write(result, result.best, made, folder, made_in, command)
            elif not _is_home(model, folder):
                copy_model(model, folder, made_in)
                result.remarks.append(f"{folder} holds the model alone, which runs as fast")
    except OSError as error:
        named = Path(error.filename) if isinstance(error.filename, str) else folder
        if folder != named and folder not in named.parents:
            raise  # of a probe, or of the model's own files
        raise storage_error(error, folder) from error
    return result


class _Work:
    """The engines that are open for a comparison, closed with ``stack``."""

    def __init__(self, result: Result, tolerance: float, folder: Path, stack: ExitStack) -> None:
        self._result = result
        self._tolerance = tolerance
        self._folder = folder
        self._stack = stack
        self._open: dict[int, tuple[Engine, ExitStack]] = {}  # of an entry by its identity
        self._source = OnnxRuntimeEngine(
            result.model.file, result.threads, sha256=result.model.manifest.sha256
        )
        stack.callback(self._source.close)
        self._reference = f"onnxruntime {self._source.version} fp32"
        self._wanted: list[list[Answer]] = [
            [answer(self._source, each, result.model.manifest) for each in frames.inputs]
            for frames in result.material.sets
        ]
        self._objects_px = self._count_objects_px()
        if self._objects_px < FEWEST_OBJECT_PX and not all(f.noise for f in result.material.sets):
            found = f"{self._objects_px} px of objects" if self._objects_px else "no objects"
            result.note = (
                f"the network finds {found} on the frames: next to no mask of an object was "
                "compared; name frames that show some, --frames FOLDER"
            )
            result.remarks.append(result.note)

    def try_group(self, kinds: list[Kind]) -> None:
        """Make engines of some kinds and hold each against the source."""
        result = self._result
        for kind in kinds:
            entry = Entry(kind, "new")
            result.entries.append(entry)
            started = time.monotonic()
            try:
                entry.tried = False
                self._require_objects(kind)
                entry.tried = True
                entry.made = make(result.model, kind, result.material, self._folder, result.remarks)
                entry.seconds = round(time.monotonic() - started, 2)
                engine, verdict = self._compare(entry, entry.made)
                if not verdict.passed:
                    entry.why = blame(result.model, entry.made, verdict, result.material, engine)
            except (EngineError, ModelError) as error:
                entry.why = str(error)
                if _single(result.offer):
                    raise
            if not entry.passed:
                self._close(entry)  # or the next may find no room beside it
            said = "tried" if entry.tried else "not tried"
            log.info(said, engine=kind[0], precision=kind[1], passed=entry.passed)

    def _count_objects_px(self) -> int:
        """Return the pixels that the network takes for objects, on all frames but noise."""
        return sum(
            int(np.count_nonzero(each.mask))
            for frames, answers in zip(self._result.material.sets, self._wanted, strict=True)
            if not frames.noise
            for each in answers
        )

    def _require_objects(self, kind: Kind) -> None:
        """Refuse INT8 where nothing would show that it lost the objects: masks of background alone.

        Raises
        ------
        ModelError
            The network finds next to no objects on the frames.
        """
        if kind[1] == "int8" and self._objects_px < FEWEST_OBJECT_PX:
            raise ModelError(
                f"int8 on frames in which the network finds {self._objects_px} px of objects",
                f"frames with objects, {FEWEST_OBJECT_PX} px of them and more, "
                "to calibrate and to compare on",
                "--frames with frames as they will come",
            )

    def add_rivals(self, made_before: list[Path]) -> None:
        """Add what the user has already: engines made before, and those that are built in."""
        result = self._result
        model = result.model
        have: list[Entry] = []
        for file in made_before:
            try:
                artifact = load_fitting(file, model.manifest.sha256)
            except SegbatchError as error:
                log.info("made before, and not compared with", why=str(error))
                continue
            kind: Kind = (artifact.manifest.engine, artifact.manifest.precision)
            if kind in BUILT_IN:
                continue
            trial = trial_of(model, *kind, artifact)
            have.append(_rival(kind, "there", model, trial, artifact))
        for entry in have:
            entry.namesake = sum(entry.kind == each.kind for each in have) > 1
        tried = {entry.kind for entry in result.entries}
        for kind in BUILT_IN:
            passed = kind[1] == "fp32" or any(
                p.passed and (p.engine, p.precision) == kind for p in model.manifest.parity
            )
            if kind not in tried and kind[0] == "openvino" and passed:
                trial = trial_of(model, *kind)
                have.append(_rival(kind, "built in", model, trial))
        for entry in have:
            if entry.made is not None and entry.made.choice.trial.usable:
                try:
                    self._compare(entry, entry.made)
                    result.entries.append(entry)
                except EngineError as error:
                    self._close(entry)
                    result.remarks.append(f"not compared with {entry.label}: {error.got}")

    def time(self) -> None:
        """Time all that passed, and the source, in turns."""
        result = self._result
        image = result.material.sets[0].inputs[0]
        passed = [entry for entry in result.entries if entry.passed]
        # Two may be of one kind: beside the model, and in a folder of its own.
        running = {str(place): self._open[id(each)][0] for place, each in enumerate(passed)}
        taken, result.rounds = time_in_turns(
            {"": self._source, **running}, image, result.model.manifest
        )
        result.source_ms = taken[""]
        for place, entry in enumerate(passed):
            entry.ms = taken[str(place)]

    def _compare(self, entry: Entry, made: Made) -> tuple[Engine, Verdict]:
        engine = open_chosen(made.choice, self._result.threads)
        closing = self._stack.enter_context(ExitStack())
        closing.callback(engine.close)
        self._open[id(entry)] = engine, closing
        entry.verdict = compare(
            engine,
            self._result.material.sets,
            self._wanted,
            self._result.model.manifest,
            self._tolerance,
            self._reference,
        )
        return engine, entry.verdict

    def _close(self, entry: Entry) -> None:
        """Close an engine that is out of the comparison, if it was opened."""
        if id(entry) in self._open:
            self._open.pop(id(entry))[1].close()


def _is_home(model: Model, folder: Path) -> bool:
    """Tell whether ``process`` looks into a folder when the model is named where it lies."""
    own = own_folder(model.file.stem, model.manifest.sha256)
    return folder.resolve() in (model.file.parent.resolve(), own.resolve())


def _engines_there(model: Model, folder: Path) -> list[Path]:
    """Return the manifests of engines that one in ``folder`` has to be better than."""
    if _is_home(model, folder):
        return engines_of(model.file.with_suffix(".json"), model.manifest.sha256)
    return artifacts_beside(folder / f"{model.file.stem}.json")


def _single(offer: Offer) -> bool:
    return sum(map(len, offer.groups)) == 1


def _rival(
    kind: Kind, role: str, model: Model, trial: Probe, artifact: Artifact | None = None
) -> Entry:
    file, sha256 = model.file, model.manifest.sha256
    if artifact is not None:
        file, sha256 = artifact.file, artifact.manifest.sha256
    made = Made(Choice(*kind, file, sha256, trial, role, artifact), b"")
    folder = None if artifact is None else artifact.manifest_file.parent
    return Entry(kind, role, made, folder=folder)


def _pick(result: Result, forced_by: str, *, named: bool) -> None:
    """Take the best of what is new, unless what the user has is better."""
    passed = [entry for entry in result.entries if entry.passed and entry.ms is not None]
    new = [entry for entry in passed if entry.role == "new"]
    best = best_of(new)
    for entry in new:
        if entry is not best:
            faster = (entry.ms or 0.0) < (best.ms or 0.0)
            entry.why = f"{'less alike' if faster else 'slower'} than the one that was taken"
    for other in passed:
        if other.role == "new" or best.verdict is None or other.verdict is None:
            continue
        why = worse_than(best.ms or 0.0, best.verdict, other.ms or 0.0, other.verdict)
        if not why:
            continue
        if forced_by:
            result.remarks.append(
                f"written because {forced_by} was asked for, though it is {why} than {other.label}"
            )
            continue
        best.why = f"{why} than {other.label}"
        if named:
            raise EngineError(
                f"{best.label} is {best.why}",
                "an engine that is better in something than what is there",
                "keep what is there, or write it all the same with --force",
            )
        return
    result.best = best


def best_of(entries: list[Entry]) -> Entry:
    """Return the most alike of those that take no longer than the fastest, as far as can be told.

    All of them have passed and were timed.
    """
    least_ms = min(entry.ms or 0.0 for entry in entries)
    near = [entry for entry in entries if (entry.ms or 0.0) <= least_ms * (1 + SAME_TIME)]
    return max(near, key=lambda entry: (_agreement(entry), -(entry.ms or 0.0)))


def _agreement(entry: Entry) -> float:
    likeness = entry.verdict.likeness if entry.verdict is not None else []
    return min((each.mask_agreement for each in likeness), default=0.0)
