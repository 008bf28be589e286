"""``segbatch engine-info``: what stands in a manifest, of an engine or a model, and what fits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from segbatch.errors import EngineError, SegbatchError, UsageError
from segbatch.infer.engine.artifact import (
    SUFFIX,
    EngineManifest,
    engines_of,
    read_manifest,
)
from segbatch.infer.engine.choice import load_fitting
from segbatch.infer.engine.manifest import load_model

SCHEMA = "segbatch.engine-info/1"


def engine_info_command(file: Path, *, as_json: bool) -> None:
    """Print everything in the manifest that ``file`` is, or that names it.

    Raises
    ------
    UsageError
        It is no file.
    EngineError
        No engine's manifest names the file, or it cannot be read.
    ModelError
        It is a model's manifest that cannot be read.
    """
    if not file.is_file():
        raise UsageError(
            f"{file}: {'a folder' if file.is_dir() else 'no regular file'}",
            f"an engine, a NAME.ENGINE-PRECISION{SUFFIX}, or a model's manifest",
            f"name one of {', '.join(found)}" if (found := _manifests_in(file)) else "see --help",
        )
    answer = _engine(_manifest_of(file)) if _is_engine(file) else _model(file)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(answer), indent=2))
        return
    for line in _lines(msgspec.to_builtins(answer)):
        click.echo(line)


def _manifests_in(folder: Path) -> list[str]:
    """Return the engines' manifests in what may be a folder."""
    return [str(file) for file in sorted(folder.glob(f"*{SUFFIX}"))]


def _is_engine(file: Path) -> bool:
    return file.name.endswith(SUFFIX) or file.suffix not in (".json", ".onnx") or _made(file)


def _made(file: Path) -> bool:
    """Tell whether an engine's manifest beside an ONNX file names it, and not its own model."""
    return file.suffix == ".onnx" and not file.with_suffix(".json").exists()


def _manifest_of(file: Path) -> Path:
    """Return the engine's manifest that ``file`` is or that names it."""
    if file.name.endswith(SUFFIX):
        return file
    for found in sorted(file.parent.glob(f"*{SUFFIX}")):
        try:
            named = read_manifest(found).file
        except EngineError:
            continue
        if named == file.name:
            return found
    raise EngineError(
        f"{file}: no engine's manifest beside it names it",
        f"an engine with its manifest, a NAME.ENGINE-PRECISION{SUFFIX}, or a model's manifest",
        "segbatch export-engine MODEL makes one",
    )


def _engine(manifest_file: Path) -> dict[str, Any]:
    manifest = read_manifest(manifest_file)
    return {
        "schema": SCHEMA,
        "manifest": str(manifest_file),
        "fits": _fits(manifest_file, manifest),
        "engine": manifest,
    }


def _fits(manifest_file: Path, manifest: EngineManifest) -> str:
    """Return ``yes``, or why the engine does not run here."""
    beside = (
        manifest_file.parent / f"{manifest_file.name.partition(f'.{manifest.engine}-')[0]}.json"
    )
    try:
        sha256 = load_model(beside).manifest.sha256 if beside.is_file() else manifest.source_sha256
        load_fitting(manifest_file, sha256)
    except SegbatchError as error:
        return f"no: {error.got}; {error.remedy}"
    return "yes" if beside.is_file() else "yes, and its model is not beside it"


def _model(file: Path) -> dict[str, Any]:
    manifest_file = file.with_suffix(".json")
    manifest = load_model(manifest_file).manifest
    engines = {}
    for found in engines_of(manifest_file, manifest.sha256):
        try:
            engines[str(found)] = _fits(found, read_manifest(found))
        except EngineError as error:
            engines[str(found)] = f"no: {error.got}; {error.remedy}"
    return {
        "schema": SCHEMA,
        "manifest": str(manifest_file),
        "engines_made": engines,
        "model": manifest,
    }


def _lines(answer: Any, depth: int = 0) -> Iterator[str]:
    """Yield a nested answer as indented ``key: value`` lines."""
    margin = "  " * depth
    for key, value in answer.items():
        if isinstance(value, dict) and value:
            yield f"{margin}{key}:"
            yield from _lines(value, depth + 1)
        elif isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
            for each in value:
                yield f"{margin}{key}:"
                yield from _lines(each, depth + 1)
        elif value not in (None, "", [], {}):
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            yield f"{margin}{_plain(str(key))}: {_plain(str(shown))}"


def _plain(text: str) -> str:
    """Return text whose characters that would steer a terminal are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
