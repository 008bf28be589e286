"""Leaves an engine, its manifest and its model in one folder, all of them or none.

An engine's file has part of its hash in its name, so that a new one never takes the place of an
old one: there is the old set until the one rename of the manifest, and the new set from then on.
Files that no manifest names any more are removed afterwards, or by the next export.
"""

from __future__ import annotations

import hashlib
import platform
import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from segbatch import __version__
from segbatch.errors import EngineError, UsageError
from segbatch.infer.engine.machine import processor_id
from segbatch.infer.engine.made.artifact import (
    SUFFIX,
    EngineManifest,
    Flavour,
    Hardware,
    Precision,
    Speed,
    kind_of,
    manifest_path,
    read_manifest,
)
from segbatch.infer.engine.manifest import load_model
from segbatch.learn.export.workplace import alone_in, put_in_place, signals_held, write_staged
from segbatch.wholefile import sync_folder

if TYPE_CHECKING:
    from pathlib import Path

    from segbatch.infer.engine.manifest import Manifest, Model
    from segbatch.learn.export.candidates import Made
    from segbatch.learn.export.exporting import Entry, Result


SOURCE = "onnxruntime fp32"
# Of a file's hash in its name.
CHARACTERS = 12


def write(
    result: Result, best: Entry, made: Made, folder: Path, workplace: Path, command: str
) -> Path:
    """Write the engine that was chosen into ``folder``; return its manifest's path.

    All is written in ``workplace``, below it, and then moved: the engine after its model, and the
    manifest last, since without it nothing was made. Ended at any moment, ``folder`` holds what
    it held or what is new.

    Raises
    ------
    UsageError
        The folder holds another model of this name.
    OSError
        It cannot be written; all is as it was.
    """
    model = result.model
    choice = made.choice
    content = choice.file.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    kind = "-".join(best.kind)
    file = manifest_path(folder / f"{model.file.stem}.json", *best.kind)
    own = choice.file != model.file
    name = f"{model.file.stem}.{kind}.{sha256[:CHARACTERS]}{choice.file.suffix}"
    others = {
        " ".join(each.kind): each.ms
        for each in result.entries
        if each.ms is not None and each.kind != best.kind
    }
    speed = Speed(
        engine_ms=best.ms or 0.0,
        source_ms=result.source_ms,
        source=SOURCE,
        frame_shape=result.material.frame_shape,
        rounds=result.rounds,
        threads=result.threads,
        others={SOURCE: result.source_ms, **others},
    )
    told = {"frames": result.material.source, "note": result.note}
    given: dict[str, Any] = {
        "file": name if own else choice.file.name,
        "parity": best.verdict,
        "speed": speed,
        "command": command,
        "options": {**made.options, **{key: text for key, text in told.items() if text}},
    }
    if choice.artifact is not None:
        built = choice.artifact.manifest
        given["options"] = {**built.options, **given["options"]}
        manifest = msgspec.structs.replace(built, **given)
    else:
        manifest = EngineManifest(
            model=model.manifest.name,
            sha256=sha256,
            source_sha256=model.manifest.sha256,
            engine=best.kind[0],  # type: ignore[arg-type]
            version=_version(best.kind[0]),
            precision=best.kind[1],  # type: ignore[arg-type]
            hardware=Hardware(
                processor=processor_id(), platform=f"{platform.system()}-{platform.machine()}"
            ),
            build_s=best.seconds,
            built_at=datetime.now(UTC).isoformat(timespec="seconds"),
            software=f"segbatch {__version__}",
            **given,
        )
    staged = _room(workplace)
    with alone_in(folder), signals_held():
        moves = _staged_model(model, folder, staged)
        engine = folder / name
        if own and not (engine.is_file() and engine.read_bytes() == content):
            moves.append(_staged(staged, engine, content))
        put_in_place([*moves, _staged(staged, file, _for_people(manifest))])
        with suppress(OSError):  # else what was replaced stays for the next export
            sync_folder(folder)
            _remove_left_behind(folder, model.file.stem, kind)
    return file


def _remove_left_behind(folder: Path, stem: str, written: str) -> None:
    """Remove engines of a model that no manifest names: replaced ones, and those without one yet.

    Of the kind that was ``written`` also those of names without a hash, as they once were.
    """
    named, unknown = set(), set()
    for manifest in folder.glob(f"*{SUFFIX}"):
        try:
            named.add(read_manifest(manifest).file)
        except EngineError:
            unknown.add("-".join(kind_of(manifest)))
    kinds = "|".join(f"{e}-{p}" for e in get_args(Flavour) for p in get_args(Precision))
    engine = re.compile(
        rf"{re.escape(stem)}\.(?P<kind>{kinds})"
        rf"(?P<hash>\.[0-9a-f]{{{CHARACTERS}}})?\.(onnx|engine)"
    )
    for file in folder.iterdir():
        found = engine.fullmatch(file.name)
        if found is None or file.name in named or found["kind"] in unknown:
            continue
        if not found["hash"] and (found["kind"] != written or file.with_suffix(".json").exists()):
            continue  # another model's network may be of such a name
        with suppress(OSError):  # open, where the system keeps open files: the next export's
            file.unlink()


def copy_model(model: Model, folder: Path, workplace: Path) -> None:
    """Put network and manifest into ``folder``, where they are not there already.

    Raises
    ------
    UsageError
        It holds another model of this name.
    OSError
        It cannot be written; all is as it was.
    """
    with alone_in(folder):
        put_in_place(_staged_model(model, folder, _room(workplace)))


def _staged_model(model: Model, folder: Path, staged: Path) -> list[tuple[Path, Path]]:
    """Write network and manifest to be moved, where they are not there already."""
    refuse_other_model(model, folder)
    network, manifest_file = folder / model.file.name, folder / f"{model.file.stem}.json"
    if manifest_file.exists():
        return []
    manifest = msgspec.structs.replace(model.manifest, file=network.name)
    moves = [_staged(staged, manifest_file, _for_people(manifest))]
    if not network.exists():
        moves.insert(0, _staged(staged, network, model.file.read_bytes()))
    return moves


def _room(workplace: Path) -> Path:
    room = workplace / "staged"
    room.mkdir()
    return room


def _staged(staged: Path, place: Path, content: bytes) -> tuple[Path, Path]:
    write_staged(staged / place.name, content)
    return staged / place.name, place


def _for_people(manifest: EngineManifest | Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def refuse_other_model(model: Model, folder: Path) -> None:
    """Refuse a folder that holds another model of this name.

    Raises
    ------
    UsageError
        It does.
    """
    network, manifest_file = folder / model.file.name, folder / f"{model.file.stem}.json"
    if network.exists() and network.read_bytes() != model.file.read_bytes():
        raise UsageError(
            f"{network} is another network",
            "a folder without another model of this name",
            "name another with --out DIR",
        )
    if manifest_file.exists():
        there = load_model(manifest_file).manifest
        if there.sha256 != model.manifest.sha256:
            raise UsageError(
                f"{manifest_file} is of another network, {there.name}",
                "a folder without another model of this name",
                "name another with --out DIR",
            )


def _version(engine: str) -> str:
    if engine == "openvino":
        from segbatch.infer.engine.cpu.openvino_engine import load_openvino

        return str(load_openvino().get_version())
    from importlib.metadata import version

    return version(engine)
