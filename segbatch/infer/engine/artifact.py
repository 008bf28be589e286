"""Engines that were made beforehand: a file, and a manifest that says what it is and fits.

``NAME.ENGINE-PRECISION.engine.json`` stands beside the model ``NAME.json`` that it was made
of. It names the engine's file, its hash, the hash of the network, the machine that it was
built for, and how far its answers were measured to be from the network's. The hash is
verified before a library sees the file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from segbatch.errors import EngineError
from segbatch.infer.engine.manifest import Parity

SCHEMA: Final = "segbatch.engine/1"
SUFFIX: Final = ".engine.json"
Flavour = Literal["tensorrt", "tensorrt_rtx", "openvino", "onnxruntime"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]


class Hardware(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where an engine was built, as far as it may run nowhere else; None where it does not matter.

    ``compute_capability`` is the GPU's, as in ``8.9``; ``driver`` its driver's version.
    """

    processor: str | None = None
    gpu: str | None = None
    compute_capability: str | None = None
    driver: str | None = None
    cuda: str | None = None
    platform: str = ""


class Speed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Engine and source network on the same frames in turns, milliseconds a frame (medians)."""

    engine_ms: float
    source_ms: float
    source: str
    frame_shape: tuple[int, int]
    rounds: int


class EngineManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What stands beside an engine file.

    ``input_shape`` is the one (N, C, Y, X) that it takes, None where any will do. Where
    ``decides``, the mask is made inside the graph, with ``threshold`` for a single class.
    ``parity`` and ``speed`` are None where the machine that built it could not run it; such an
    engine has to pass the gate where it is to run.
    """

    schema: Literal["segbatch.engine/1"] = SCHEMA
    model: str
    file: str
    sha256: str
    source_sha256: str
    engine: Flavour
    version: str
    precision: Precision
    input_shape: tuple[int, int, int, int] | None = None
    decides: bool = False
    threshold: Annotated[float, Meta(gt=0, lt=1)] | None = None
    hardware: Hardware = Hardware()
    options: dict[str, Any] = {}
    parity: Parity | None = None
    speed: Speed | None = None
    build_s: float = 0.0
    command: str = ""
    built_at: str = ""
    software: str = ""


@dataclass(frozen=True, slots=True)
class Artifact:
    """An engine's manifest and its file, hash verified."""

    manifest: EngineManifest
    manifest_file: Path
    file: Path


def manifest_path(model_manifest: Path, engine: str, precision: str) -> Path:
    """Return the name of an engine's manifest beside its model's."""
    return model_manifest.with_name(f"{model_manifest.stem}.{engine}-{precision}{SUFFIX}")


def artifacts_beside(model_manifest: Path) -> list[Path]:
    """Return the manifests of the engines that were made of a model, in the order of their names.

    They are not read: one that is broken or fits another machine is named all the same.
    """
    stem = model_manifest.stem
    return sorted(
        path
        for path in model_manifest.parent.glob(f"*{SUFFIX}")
        if path.name.startswith(f"{stem}.")
    )


def load_artifact(manifest_file: Path) -> Artifact:
    """Read an engine's manifest and verify the file that it names.

    Raises
    ------
    EngineError
        It cannot be read, is no such manifest, or the file is not the one it was written for.
    """
    rebuild = f"segbatch export-engine --rebuild {manifest_file}"
    try:
        manifest = msgspec.json.decode(manifest_file.read_bytes(), type=EngineManifest)
    except OSError as error:
        raise EngineError(
            f"engine manifest {manifest_file}: {error.strerror}", "a readable file"
        ) from error
    except msgspec.DecodeError as error:
        raise EngineError(
            f"engine manifest {manifest_file}: {error}",
            f"a {SCHEMA} manifest",
            "export the engine again: segbatch export-engine MODEL",
        ) from error
    if Path(manifest.file).name != manifest.file:
        raise EngineError(
            f"engine manifest {manifest_file}: file = {manifest.file!r}",
            "a plain file name, of an engine in the manifest's folder",
            rebuild,
        )
    file = manifest_file.parent / manifest.file
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise EngineError(
            f"engine {file}: {error.strerror}", "the file its manifest names", rebuild
        ) from error
    if found != manifest.sha256:
        raise EngineError(f"engine {file} has SHA-256 {found}", manifest.sha256, rebuild)
    return Artifact(manifest, manifest_file, file)


def write_artifact(manifest: EngineManifest, manifest_file: Path) -> None:
    """Write an engine's manifest for people: indented, in the order of its fields."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    manifest_file.write_bytes(text + b"\n")
