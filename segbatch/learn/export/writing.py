"""Leaves an engine, its manifest and its model in one folder, all of them or none."""

from __future__ import annotations

import hashlib
import platform
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from segbatch import __version__
from segbatch.errors import UsageError
from segbatch.infer.engine.artifact import (
    EngineManifest,
    Hardware,
    Speed,
    manifest_path,
)
from segbatch.infer.engine.machine import processor_id
from segbatch.infer.engine.manifest import load_model
from segbatch.learn.export.workplace import put_in_place, write_staged

if TYPE_CHECKING:
    from pathlib import Path

    from segbatch.infer.engine.manifest import Manifest, Model
    from segbatch.learn.export.candidates import Made
    from segbatch.learn.export.exporting import Entry, Result


SOURCE = "onnxruntime fp32"


def write(
    result: Result, best: Entry, made: Made, folder: Path, workplace: Path, command: str
) -> Path:
    """Write the engine that was chosen into ``folder``; return its manifest's path.

    All is written in ``workplace``, below it, and then moved: the engine after its model, and the
    manifest last, since without it nothing was made.

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
    file = manifest_path(folder / f"{model.file.stem}.json", *best.kind)
    staged = _room(workplace)
    moves = _staged_model(model, folder, staged)
    if choice.file != model.file:
        # Between an engine of old and its new file there is none, rather than a broken one.
        engine = folder / choice.file.name
        moves += [(old, staged / f"{old.name}.old") for old in (file, engine) if old.exists()]
        moves.append(_staged(staged, engine, content))
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
    frames = {"frames": result.material.source} if result.material.source else {}
    given: dict[str, Any] = {
        "parity": best.verdict,
        "speed": speed,
        "command": command,
        "options": {**made.options, **frames},
    }
    if choice.artifact is not None:
        built = choice.artifact.manifest
        given["options"] = {**built.options, **given["options"]}
        manifest = msgspec.structs.replace(built, **given)
    else:
        manifest = EngineManifest(
            model=model.manifest.name,
            file=choice.file.name,
            sha256=hashlib.sha256(content).hexdigest(),
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
    moves.append(_staged(staged, file, _for_people(manifest)))
    put_in_place(moves)
    return file


def copy_model(model: Model, folder: Path, workplace: Path) -> None:
    """Put network and manifest into ``folder``, where they are not there already.

    Raises
    ------
    UsageError
        It holds another model of this name.
    OSError
        It cannot be written; all is as it was.
    """
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
        from segbatch.infer.engine.openvino_engine import load_openvino

        return str(load_openvino().get_version())
    from importlib.metadata import version

    return version(engine)
