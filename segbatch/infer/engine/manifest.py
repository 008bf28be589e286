"""A model's manifest: all that must be known to run a network on a frame."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from segbatch.errors import ModelError
from segbatch.infer.engine.digest import sha256_of
from segbatch.infer.engine.made import artifact

SCHEMA: Final = "segbatch.model/1"
# Tiles of networks that no halo makes exact overlap by twice this.
BLEND_HALO_PX: Final = 128


class DatasetMax(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="dataset_max"):
    """Counts divided by the largest count of the training set."""

    maximum: Annotated[float, Meta(gt=0)]


class BitDepth(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="bit_depth"):
    """Counts divided by the converter's ceiling, ``2**bit_depth - 1``."""


class Percentile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="percentile"):
    """Counts mapped so that two percentiles of the frame become 0 and 1.

    ``min_range`` (counts) keeps a flat frame from being stretched into noise.
    """

    low_percent: Annotated[float, Meta(ge=0, le=100)]
    high_percent: Annotated[float, Meta(ge=0, le=100)]
    min_range: Annotated[float, Meta(gt=0)] = 1.0


class ZScore(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="zscore"):
    """Counts minus the frame's mean, over its standard deviation plus ``epsilon``."""

    epsilon: Annotated[float, Meta(gt=0)] = 1e-6


class ScaleRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="scale_range"):
    """Counts minus one percentile of the frame, over its distance to another plus ``epsilon``.

    As bioimage.io packages state it; ``Percentile`` differs where a frame is nearly flat.
    """

    low_percent: Annotated[float, Meta(ge=0, le=100)]
    high_percent: Annotated[float, Meta(ge=0, le=100)]
    epsilon: Annotated[float, Meta(gt=0)] = 1e-6


class Fixed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="fixed"):
    """``(counts - offset) * scale``, whatever the frame; 0 and 1 leave the counts as they are."""

    offset: float = 0.0
    scale: float = 1.0


Normalisation = DatasetMax | BitDepth | Percentile | ZScore | ScaleRange | Fixed


class Parity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far an engine at a precision was measured to be from the source network."""

    engine: str
    precision: str
    max_probability_difference: float
    mean_probability_difference: float
    mask_agreement: float
    passed: bool


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file that a network was taken from, and what it could not say.

    ``kind`` is what it was recognised as; ``assumed`` has one sentence for each thing that was
    neither in the file nor found by looking; ``files`` has the hash of each file that was read.
    """

    kind: str
    name: str
    assumed: list[str] = []
    files: dict[str, str] = {}


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What stands in ``NAME.json`` beside ``NAME.onnx``.

    ``file`` is the network, in the manifest's folder; its input is float32
    (N, ``input_channels``, Y, X) and its output float32 logits
    (N, K, Y, X): K = 1 with ``output`` ``sigmoid`` (probability of the single
    class in ``classes``), K = 1 + len(classes) with ``softmax`` (background
    first), of the same Y and X. ``halo_px`` is None until it was measured;
    ``halo_tolerance`` is how far, in parts of their spread, logits may move by what lies
    beyond it (0: not in any bit). ``exact_tiling`` is False where no finite halo makes tiles
    exact. ``margin_px`` is how far a frame is mirrored out past its right and lower edge before
    it is padded to the stride, for networks that mirror their input inside (see
    docs/models.md).
    """

    schema: Literal["segbatch.model/1"] = SCHEMA
    name: str
    file: str
    sha256: str
    input_channels: Literal[1, 3] = 1
    classes: list[str]
    output: Literal["sigmoid", "softmax"] = "sigmoid"
    normalisation: Normalisation
    stride: Annotated[int, Meta(ge=1)] | None = None
    halo_px: Annotated[int, Meta(ge=0)] | None = None
    halo_tolerance: Annotated[float, Meta(ge=0)] = 0.0
    exact_tiling: bool | None = None
    margin_px: Annotated[int, Meta(ge=0)] = 0
    threshold: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    pixel_size_um: float | None = None
    parity: list[Parity] = []
    command: str = ""
    training: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    source: Source | None = None

    @property
    def tile_halo_px(self) -> int:
        """By how many pixels tiles overlap on each side, exact or blended."""
        known = self.halo_px if self.exact_tiling else None
        return max(BLEND_HALO_PX if known is None else known, self.margin_px)

    def content_sha256(self) -> str:
        """Hash of the manifest's content, independent of its layout on disk."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


@dataclass(frozen=True, slots=True)
class Model:
    """A manifest and the network file that it describes, hash verified."""

    manifest: Manifest
    file: Path


def load_model(manifest_file: Path) -> Model:
    """Read a manifest and verify the network beside it.

    Raises
    ------
    ModelError
        The manifest cannot be read or is not one, or the network is missing
        or is not the file the manifest was written for.
    """
    try:
        content = manifest_file.read_bytes()
    except OSError as error:
        raise ModelError(
            f"manifest {manifest_file}: {error.strerror}", "a readable file"
        ) from error
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _no_manifest(manifest_file, content, str(error)) from error
    if Path(manifest.file).name != manifest.file:
        raise ModelError(
            f"manifest {manifest_file}: file = {manifest.file!r}",
            "a plain file name, of a network in the manifest's folder",
            "put the network beside its manifest",
        )
    if manifest.output == "sigmoid" and len(manifest.classes) != 1:
        raise ModelError(
            f"manifest {manifest_file} names {len(manifest.classes)} classes with output sigmoid",
            "one class; several need output softmax",
            "correct the manifest",
        )
    network = manifest_file.parent / manifest.file
    try:
        found = sha256_of(network)
    except OSError as error:
        raise ModelError(
            f"network {network}: {error.strerror}", "the file its manifest names"
        ) from error
    if found != manifest.sha256:
        raise ModelError(
            f"network {network} has SHA-256 {found}",
            manifest.sha256,
            "put back the file the manifest was written for, or export the model again",
        )
    return Model(manifest, network)


class _Told(msgspec.Struct, frozen=True):
    schema: str = SCHEMA


def _no_manifest(file: Path, content: bytes, why: str) -> ModelError:
    """Return the refusal of a file that is no model's manifest."""
    try:
        schema = msgspec.json.decode(content, type=_Told).schema
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        schema = SCHEMA
    if file.name.endswith(artifact.SUFFIX):
        return named_an_engine(file, file)
    if schema.partition("/")[0] != SCHEMA.partition("/")[0]:
        return ModelError(
            f"{file}: a file of {schema}, no model",
            f"a {SCHEMA} manifest",
            "name a model: NAME.json, beside its network NAME.onnx",
        )
    return ModelError(f"manifest {file}: {why}", f"a {SCHEMA} manifest", "write it again")


def named_an_engine(named: Path, manifest_file: Path) -> ModelError:
    """Return the refusal of an engine, or of its manifest, where a model was to be named."""
    engine, precision = artifact.kind_of(manifest_file)
    stem = manifest_file.name.removesuffix(artifact.SUFFIX)
    model = manifest_file.with_name(f"{stem.removesuffix(f'.{engine}-{precision}')}.json")
    return ModelError(
        f"{named}: an engine of {model.name}",
        "the model that it was made of; its engines are found with it",
        f"name {model}" if model.is_file() else "name that model, or none for the shipped one",
    )


def write_manifest(manifest: Manifest, manifest_file: Path) -> None:
    """Write ``manifest`` for people: indented, in the order of its fields."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    manifest_file.write_bytes(text + b"\n")
