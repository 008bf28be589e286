"""What ``segbatch export-engine`` does and prints."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from segbatch.errors import EngineError, ModelError, StorageError, UsageError
from segbatch.infer.engine.cache import cache_folder
from segbatch.infer.engine.made.artifact import (
    Side,
    kind_of,
    own_folder,
    read_manifest,
    rebuild_command,
)
from segbatch.infer.engine.made.tables import LIKENESS, figures, print_table
from segbatch.infer.engine.network.models import SHIPPED, open_model
from segbatch.learn.export.candidates import Offer, offered
from segbatch.learn.export.exporting import Entry, Result, export_engine
from segbatch.learn.export.frames import gather, is_shipped
from segbatch.learn.export.workplace import require_writable
from segbatch.learn.export.writing import SOURCE
from segbatch.log import get_logger

if TYPE_CHECKING:
    from segbatch.infer.engine.made.artifact import EngineManifest
    from segbatch.infer.engine.manifest import Model

SCHEMA = "segbatch.export/1"
log = get_logger(__name__)


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line asks for; ``model`` is empty for the shipped one.

    ``exact`` asks for the very engine that is named, where one name stands for two flavours.
    ``rebuild`` is the manifest of an engine that is made again, from which the rest was read.
    """

    model: str = ""
    engine: str = "auto"
    precision: str = "auto"
    frames: str = ""
    tolerance: float = 0.999
    out: str = ""
    frame_shape: tuple[int, int] | None = None
    arch: str = ""
    force: bool = False
    exact: bool = False
    rebuild: str = ""

    def command(self) -> str:
        """Return the command line that wishes the same."""
        if self.rebuild:
            again = rebuild_command(Path(self.rebuild))
            return again + (f" --frames {shlex.quote(self.frames)}" if self.frames else "")
        words = ["segbatch", "export-engine", *([self.model] if self.model else [])]
        for key, value in (
            ("engine", self.engine if self.engine != "auto" else ""),
            ("precision", self.precision if self.precision != "auto" else ""),
            ("arch", self.arch),
            ("frames", self.frames),
            ("tolerance", f"{self.tolerance!r}" if self.tolerance != 0.999 else ""),
            ("out", self.out),
            ("frame-shape", "x".join(map(str, self.frame_shape or ()))),
        ):
            words += [f"--{key}", value] if value else []
        return shlex.join([*words, *(["--force"] if self.force else [])])


def export_engine_command(wish: Wish, *, dry_run: bool, as_json: bool) -> None:
    """Export an engine as wished, and print what was found.

    Raises
    ------
    UsageError
        An argument cannot be carried out.
    ModelError
        The model cannot be had, or cannot be written in the precision.
    EngineError
        Nothing passed the gate, or what was named is worse than what is there.
    StorageError
        The folder cannot be written.
    """
    try:
        _export(wish, dry_run=dry_run, as_json=as_json)
    except StorageError as error:
        if not wish.rebuild:
            raise
        elsewhere = msgspec.structs.replace(wish, rebuild="", out="DIR").command()
        raise StorageError(
            error.got, error.wanted, f"let it be written to, or export into another: {elsewhere}"
        ) from error


def _export(wish: Wish, *, dry_run: bool, as_json: bool) -> None:
    if wish.out:  # before a model is taken in, which may take minutes
        require_writable(Path(wish.out))
    if wish.model and not Path(wish.model).exists():
        raise ModelError(
            f"model {wish.model}: no such file", "an existing file or folder", "check the path"
        )
    model = open_model(wish.model, wish.arch)
    folder = _folder(wish, model)
    require_writable(folder)
    calibrates = bool(wish.frames) or is_shipped(model)
    offer = offered(model, wish.engine, wish.precision, calibrates=calibrates, exact=wish.exact)
    if dry_run:
        _preview(offer, folder, as_json=as_json)
        return
    frames = Path(wish.frames) if wish.frames else None
    log.info("preparing frames", model=model.manifest.name)
    material = gather(model, frames, wish.frame_shape)
    result = export_engine(
        model,
        material,
        folder,
        offer,
        tolerance=wish.tolerance,
        force=wish.force,
        forced_by="--rebuild" if wish.rebuild else "--force",
        command=wish.command(),
    )
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(_answer(result)), indent=2))
    else:
        _print(result, folder, wish)


def rebuild_wish(manifest_file: Path, frames: str = "") -> Wish:
    """Return what makes an engine again where it stands, from its manifest or its name.

    ``frames`` are taken instead of those that it was made with.

    Raises
    ------
    UsageError
        It is no engine's manifest, or its model is not beside it.
    """
    engine, precision = kind_of(manifest_file)
    if not engine:
        raise UsageError(
            f"--rebuild {manifest_file}",
            "an engine's manifest, NAME.ENGINE-PRECISION.engine.json",
            "segbatch export-engine MODEL makes one",
        )
    stem = manifest_file.name.rpartition(f".{engine}-{precision}")[0]
    model = manifest_file.with_name(f"{stem}.json")
    if not model.is_file():
        raise UsageError(
            f"{manifest_file.name} without its model {model.name} beside it",
            "the folder as export-engine left it",
            "segbatch export-engine MODEL",
        )
    wish = Wish(
        model=str(model),
        engine=engine,
        precision=precision,
        out=str(manifest_file.parent),
        frames=frames,
        force=True,  # what was asked for by name is made, slower or not
        exact=True,
        rebuild=str(manifest_file),
    )
    try:
        told = read_manifest(manifest_file)
    except EngineError as error:
        log.warning("rebuilt with defaults", why=str(error))
        return wish
    frames = frames or str(told.options.get("frames", ""))
    if frames and not Path(frames).exists():
        again = f"{rebuild_command(manifest_file)} --frames FOLDER"
        if precision == "int8":
            raise UsageError(
                f"the frames that {manifest_file.name} was calibrated on are gone: {frames}",
                "frames as they will come, to calibrate on",
                again,
            )
        log.warning(
            "the frames it was compared on are gone, and are left out", frames=frames, remedy=again
        )
        frames = ""
    return msgspec.structs.replace(
        wish,
        frames=frames,
        tolerance=wish.tolerance if told.parity is None else told.parity.tolerance,
        frame_shape=_frame_shape(told),
    )


def _frame_shape(told: EngineManifest) -> tuple[int, int] | None:
    """Return the frames that an engine was planned for, or else those that it was timed on."""
    planned = told.options.get("frame_shape")
    try:
        return msgspec.convert(planned, tuple[Side, Side])
    except msgspec.ValidationError:
        return None if told.speed is None else told.speed.frame_shape


def _folder(wish: Wish, model: Model) -> Path:
    """Return where the engine goes: as wished, or beside the network that runs.

    Of a model that was taken in, that is the copy in the cache folder, where ``process`` looks
    whenever the source is named. The shipped model lies in the package, which is not the user's
    to write to; its engines have a folder of their own, where ``process`` looks, too.
    """
    if wish.out:
        return Path(wish.out)
    if is_shipped(model) and model.file.parent == SHIPPED.parent:
        return own_folder(model.file.stem, model.manifest.sha256)
    return model.file.parent.resolve()


def _is_taken_in(model: Model) -> bool:
    """Tell whether a model is a copy in the cache folder of what the user named."""
    return (cache_folder() / "models").resolve() in model.file.resolve().parents


def _preview(offer: Offer, folder: Path, *, as_json: bool) -> None:
    tried = [" ".join(kind) for group in offer.groups for kind in group]
    if as_json:
        answer = {"would_try": tried, "not_offered": _left_out(offer), "folder": str(folder)}
        click.echo(msgspec.json.format(msgspec.json.encode(answer), indent=2))
        return
    lines = [f"would try: {', '.join(tried)}", f"would write into: {folder}", *offer.told()]
    click.echo("\n".join(lines))


def _left_out(offer: Offer) -> dict[str, str]:
    return {" ".join(kind): why for kind, why in offer.declined.items()}


def _answer(result: Result) -> dict[str, Any]:
    """Return what ``--json`` says."""
    best = result.best
    return {
        "schema": SCHEMA,
        "model": result.model.manifest.name,
        "source_sha256": result.model.manifest.sha256,
        "frame_shape": result.material.frame_shape,
        "source_ms": result.source_ms,
        "rounds": result.rounds,
        "threads": result.threads,
        "entries": [
            {
                "engine": entry.kind[0],
                "precision": entry.kind[1],
                "role": entry.role,
                "folder": str(entry.folder) if entry.folder is not None else None,
                "outcome": entry.outcome,
                "passed": entry.passed,
                "parity": entry.verdict,
                "ms": entry.ms,
                "build_s": entry.seconds,
                "why": entry.why,
            }
            for entry in result.entries
        ],
        "not_offered": _left_out(result.offer),
        "remarks": [*result.material.remarks, *result.remarks],
        "best": " ".join(best.kind) if best is not None else None,
        "written": str(result.written) if result.written is not None else None,
    }


def _print(result: Result, folder: Path, wish: Wish) -> None:
    rows = [[f"{SOURCE} (source)", *[""] * 5, f"{result.source_ms:.1f}", "1.0x", ""]]
    for entry in result.entries:
        rows += _rows(entry, result.source_ms)
    headings = ("engine", "frames", *LIKENESS, "ms/frame", "speed", "gate")
    print_table(headings, rows, words=("engine", "frames", "gate"))
    height, width = result.material.frame_shape
    click.echo(
        f"p: difference of probabilities; mask: pixels of the same class; ms: medians of "
        f"{result.rounds} rounds in turns, {height} x {width} px, {result.threads} threads"
    )
    for entry in result.entries:
        if entry.why and entry is not result.best:
            click.echo(f"{entry.label}: {entry.why}")
    remarks = [f"note: {each}" for each in (*result.material.remarks, *result.remarks)]
    for line in (*result.offer.told(), *remarks):
        click.echo(line)
    if result.written is None:
        click.echo("no engine was written: what is there already is as good (--force writes it)")
        return
    click.echo(f"written: {result.written}")
    click.echo(f"use it: {shlex.join(_use(result.model, folder, wish))}")
    if _is_taken_in(result.model) and not wish.out:
        click.echo(
            f"note: the engine is kept with the copy of {wish.model} in the cache folder, and goes "
            "when that file changes; --out DIR makes a folder of model and engine"
        )


def _use(model: Model, folder: Path, wish: Wish) -> list[str]:
    """Return the command that runs what was written."""
    words = ["segbatch", "process", "FOLDER"]
    if folder == own_folder(model.file.stem, model.manifest.sha256):
        return words
    if _is_taken_in(model) and not wish.out:
        return [*words, "--model", wish.model, *(["--arch", wish.arch] if wish.arch else [])]
    return [*words, "--model", str(folder / f"{model.file.stem}.json")]


def _rows(entry: Entry, source_ms: float) -> list[list[str]]:
    """Return the table's lines of one engine, one for each set of frames."""
    ms = ["", ""]
    if entry.ms is not None:
        ms = [f"{entry.ms:.1f}", f"{source_ms / entry.ms:.1f}x"]
    sets = entry.verdict.likeness if entry.verdict is not None else []
    lines = [["", each.frames, *figures(each), "", "", ""] for each in sets]
    lines = lines or [["", "", *figures(None), "", "", ""]]
    lines[0][0], lines[0][-3:] = entry.label, [*ms, entry.outcome]
    return lines
