"""``segbatch engine-info``: what stands in a manifest, of an engine or a model, and what fits."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from segbatch.errors import EngineError, SegbatchError, UsageError
from segbatch.infer.engine.choice import load_fitting
from segbatch.infer.engine.made.artifact import SCHEMA as ENGINE
from segbatch.infer.engine.made.artifact import (
    SUFFIX,
    EngineManifest,
    engines_of,
    kind_of,
    read_manifest,
)
from segbatch.infer.engine.manifest import SCHEMA as MODEL
from segbatch.infer.engine.manifest import load_model
from segbatch.infer.engine.network.adopt import DESCRIPTIONS, known

SCHEMA = "segbatch.engine-info/1"
WANTED = (
    f"an engine, its manifest NAME.ENGINE-PRECISION{SUFFIX}, or a model that process has taken in"
)
_OTHERS = {
    "segbatch.run/1": "the account of a run",
    "segbatch.qc/1": "the QC record of frames",
}


class _OfSchema(msgspec.Struct):
    """The one key that all files of segbatch have."""

    schema: str = ""


def engine_info_command(file: Path, arch: str = "", *, as_json: bool) -> None:
    """Print everything in the manifest that ``file`` is, that names it, or that was made of it.

    Parameters
    ----------
    file
        An engine, its manifest, or a model as ``process`` takes it; nothing is taken in.
    arch
        Of a model that is weights alone.
    as_json
        As one document.

    Raises
    ------
    UsageError
        It is no file or package, or a file of segbatch's of another kind.
    EngineError
        No engine's manifest names the file, it was not taken in as a model, or the manifest
        cannot be read.
    ModelError
        It is a model's manifest that cannot be read.
    """
    answer = _answer(file, arch)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(answer), indent=2))
        return
    for line in _lines(msgspec.to_builtins(answer)):
        click.echo(line)


def _answer(file: Path, arch: str) -> dict[str, Any]:
    """Tell what a path is, and find the manifest that tells of it."""
    package = any((file / name).is_file() for name in DESCRIPTIONS)
    if not file.is_file() and not package:
        found = _manifests_in(file)
        raise UsageError(
            f"{file}: {'a folder' if file.is_dir() else 'no regular file'}",
            WANTED,
            f"name one of {', '.join(found)}" if found else "name the file itself",
        )
    if not package:
        schema = _schema(file)
        if file.name.endswith(SUFFIX) or schema == ENGINE:
            return _engine(file)
        if schema.startswith("segbatch.") and schema != MODEL:
            raise UsageError(
                f"{file} is {_OTHERS.get(schema, 'another file of segbatch')} ({schema})",
                WANTED,
                "leave that file as it is, and name the engine or the model",
            )
        manifest_file = file.with_suffix(".json")
        if file == manifest_file or (file.suffix.lower() == ".onnx" and manifest_file.is_file()):
            return _model(manifest_file)
        if (named_by := _naming(file)) is not None:
            return _engine(named_by)
    taken_in = known(file, arch)
    if taken_in is None:
        raise EngineError(
            f"{file}: no engine's manifest beside it names it, and no model was taken in from it",
            WANTED,
            shlex.join(["segbatch", "export-engine", str(file)])
            + " makes an engine of a model (of weights alone: --arch NAME, here too)",
        )
    return _model(taken_in)


def _schema(file: Path) -> str:
    """Return what a JSON file, or the first line of one of lines, says that it is."""
    try:
        if file.suffix == ".jsonl":
            with file.open("rb") as lines:
                return msgspec.json.decode(lines.readline(), type=_OfSchema).schema
        content = file.read_bytes() if file.suffix == ".json" else b"{}"
        return msgspec.json.decode(content, type=_OfSchema).schema
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def _manifests_in(folder: Path) -> list[str]:
    """Return the engines' manifests in what may be a folder."""
    return [str(file) for file in sorted(folder.glob(f"*{SUFFIX}"))]


def _naming(file: Path) -> Path | None:
    """Return the engine's manifest beside ``file`` that names it, None without one."""
    for found in sorted(file.parent.glob(f"*{SUFFIX}")):
        try:
            named = read_manifest(found).file
        except EngineError:
            continue
        if named == file.name:
            return found
    return None


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
    kind = "-".join(kind_of(manifest_file))
    beside = manifest_file.with_name(f"{manifest_file.name.removesuffix(f'.{kind}{SUFFIX}')}.json")
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
