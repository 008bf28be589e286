"""Leaves an engine, its manifest and its model in one folder, each file whole or not there."""

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
from segbatch.infer.engine.cache import replace
from segbatch.infer.engine.machine import processor_id
from segbatch.infer.engine.manifest import load_model

if TYPE_CHECKING:
    from pathlib import Path

    from segbatch.infer.engine.manifest import Model
    from segbatch.learn.export.candidates import Made
    from segbatch.learn.export.exporting import Entry, Result


SOURCE = "onnxruntime fp32"


def write(result: Result, best: Entry, made: Made, folder: Path, command: str) -> Path:
    """Write the engine that was chosen into ``folder``; return its manifest's path.

    The manifest comes last: without it, nothing was made.

    Raises
    ------
    UsageError
        The folder holds another model of this name.
    OSError
        It cannot be written.
    """
    model = result.model
    copy_model(model, folder)
    choice = made.choice
    content = choice.file.read_bytes()
    file = manifest_path(folder / f"{model.file.stem}.json", *best.kind)
    if choice.file != model.file:
        # Between an engine of old and its new file there is none, rather than a broken one.
        file.unlink(missing_ok=True)
        replace(folder / choice.file.name, content)
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
    replace(file, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    return file


def copy_model(model: Model, folder: Path) -> None:
    """Put network and manifest into ``folder``, where they are not there already.

    Raises
    ------
    UsageError
        It holds another model of this name.
    """
    refuse_other_model(model, folder)
    network, manifest_file = folder / model.file.name, folder / f"{model.file.stem}.json"
    if manifest_file.exists():
        return
    replace(network, model.file.read_bytes())
    manifest = msgspec.structs.replace(model.manifest, file=network.name)
    replace(manifest_file, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")


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
