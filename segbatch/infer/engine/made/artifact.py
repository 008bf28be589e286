"""Engines that were made beforehand: a file, and a manifest that says what it is and fits.

``NAME.ENGINE-PRECISION.engine.json`` stands beside the model ``NAME.json`` that it was made
of. It names the engine's file, its hash, the hash of the network, the machine that it was
built for, and how far its answers were measured to be from the network's. The hash is
verified before a library sees the file.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

import msgspec
from msgspec import Meta

from segbatch.errors import EngineError
from segbatch.infer.engine.cache import cache_folder
from segbatch.infer.engine.digest import sha256_of
from segbatch.wholefile import write_whole

SCHEMA: Final = "segbatch.engine/1"
SUFFIX: Final = ".engine.json"
Flavour = Literal["tensorrt", "tensorrt_rtx", "openvino", "onnxruntime"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
Part = Annotated[float, Meta(ge=0, le=1)]
Difference = Annotated[float, Meta(ge=0, le=1.001)]  # of probabilities, which round past 1
Taken = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]
Side = Annotated[int, Meta(ge=1)]
# (N, C, Y, X).
Shape = tuple[Side, Side, Side, Side]


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


class Likeness(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How alike the answers of an engine and of the source network are on some frames.

    ``frames`` says which. Probability differences are over all pixels and classes, None
    where the engine gives the mask alone. ``mask_agreement`` is the fraction of pixels of
    one class in both masks; ``iou`` the pixels that are of one class other than background
    in both, over those that are so in either; None where neither has any. Frames of ``noise``
    hold next to no objects.
    """

    frames: str
    count: Count
    noise: bool = False
    max_probability_difference: Difference | None
    mean_probability_difference: Difference | None
    mask_agreement: Part
    iou: Part | None


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the gate found: the bars, and how alike engine and ``reference`` were."""

    passed: bool
    tolerance: Part
    least_iou: Part
    reference: str
    likeness: Annotated[list[Likeness], Meta(min_length=1)]


class Speed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Engine and source network on the same frames in turns, milliseconds a frame (medians).

    ``others`` are further engines of this machine in the same turns, as ``openvino fp32``.
    """

    engine_ms: Taken
    source_ms: Taken
    source: str
    frame_shape: tuple[Side, Side]
    rounds: Count
    threads: Count = 0
    others: dict[str, Taken] = {}


class EngineManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What stands beside an engine file.

    ``input_shape`` is the one (N, C, Y, X) that it takes, None where any will do. Where
    ``decides``, the mask is made inside the graph, with ``threshold`` for a single class.
    An engine whose ``file`` is the network itself is a precision that passed the gate.
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
    input_shape: Shape | None = None
    decides: bool = False
    threshold: Annotated[float, Meta(gt=0, lt=1)] | None = None
    hardware: Hardware = Hardware()
    options: dict[str, Any] = {}
    parity: Verdict | None = None
    speed: Speed | None = None
    build_s: Taken = 0.0
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


def own_folder(name: str, sha256: str) -> Path:
    """Return the folder in the user's cache for engines of a model whose folder is not the user's.

    The shipped model's are there; ``sha256`` is its network's.
    """
    return cache_folder() / "engines" / f"{name}-{sha256[:12]}"


def engines_of(model_manifest: Path, sha256: str) -> list[Path]:
    """Return the manifests of a model's engines: those beside it, then those of this user."""
    own = own_folder(model_manifest.stem, sha256) / model_manifest.name
    found = artifacts_beside(model_manifest)
    return found + [path for path in artifacts_beside(own) if path not in found]


def kind_of(manifest_file: Path) -> tuple[str, str]:
    """Return engine and precision as the manifest's name tells them; empty where it does not."""
    kind = manifest_file.name.removesuffix(SUFFIX).rpartition(".")[2]
    engine, dash, precision = kind.partition("-")
    return (engine, precision) if dash else ("", "")


def rebuild_command(manifest_file: Path) -> str:
    """Return the command that makes an engine again where it stands."""
    return shlex.join(["segbatch", "export-engine", "--rebuild", str(manifest_file)])


def artifacts_beside(model_manifest: Path) -> list[Path]:
    """Return the manifests of the engines that were made of a model, in the order of their names.

    They are not read: one that is broken or fits another machine is named all the same. Those
    of ``a.b`` are none of ``a``.
    """
    names = {
        manifest_path(model_manifest, engine, precision).name
        for engine in get_args(Flavour)
        for precision in get_args(Precision)
    }
    return sorted(path for path in model_manifest.parent.glob(f"*{SUFFIX}") if path.name in names)


def read_manifest(manifest_file: Path) -> EngineManifest:
    """Read an engine's manifest; its file is not looked at.

    Raises
    ------
    EngineError
        It cannot be read, or is no such manifest.
    """
    try:
        return msgspec.json.decode(manifest_file.read_bytes(), type=EngineManifest)
    except OSError as error:
        raise EngineError(
            f"engine manifest {manifest_file}: {error.strerror}", "a readable file"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineError(
            f"engine manifest {manifest_file}: {error}",
            f"a {SCHEMA} manifest",
            rebuild_command(manifest_file),
        ) from error


def load_artifact(manifest_file: Path) -> Artifact:
    """Read an engine's manifest and verify the file that it names.

    Raises
    ------
    EngineError
        It cannot be read, is no such manifest, or the file is not the one it was written for.
    """
    manifest = read_manifest(manifest_file)
    while True:
        try:
            return _verified(manifest, manifest_file)
        except EngineError:
            # An export that puts another in its place removes the file that this one named.
            before, manifest = manifest, read_manifest(manifest_file)
            if manifest == before:
                raise


def _verified(manifest: EngineManifest, manifest_file: Path) -> Artifact:
    """Verify the file that a manifest names."""
    rebuild = rebuild_command(manifest_file)
    if Path(manifest.file).name != manifest.file or "\0" in manifest.file:
        raise EngineError(
            f"engine manifest {manifest_file}: file = {manifest.file!r}",
            "a plain file name, of an engine in the manifest's folder",
            rebuild,
        )
    file = manifest_file.parent / manifest.file
    try:
        found = sha256_of(file)
    except OSError as error:
        raise EngineError(
            f"engine {file}: {error.strerror}", "the file its manifest names", rebuild
        ) from error
    if found != manifest.sha256:
        raise EngineError(f"engine {file} has SHA-256 {found}", manifest.sha256, rebuild)
    return Artifact(manifest, manifest_file, file)


def write_artifact(manifest: EngineManifest, manifest_file: Path) -> None:
    """Write an engine's manifest for people, whole or not at all: indented, fields in order."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    write_whole(manifest_file, text + b"\n")
