"""A path becomes a model: a manifest, and the network that it describes."""

from __future__ import annotations

from pathlib import Path

import msgspec

from segbatch.errors import ModelError
from segbatch.infer.engine.cache import keep, recall, replace
from segbatch.infer.engine.halo import Tiling, measure_tiling
from segbatch.infer.engine.machine import available_threads
from segbatch.infer.engine.manifest import Model, load_model
from segbatch.log import get_logger

SHIPPED = Path(__file__).parent.parent / "shipped" / "beads.json"
MINIMAL = (
    '{"schema": "segbatch.model/1", "name": "NAME", "file": "NAME.onnx", '
    '"sha256": "(sha256sum NAME.onnx)", "classes": ["bead"], '
    '"normalisation": {"type": "bit_depth"}}'
)
PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin")
log = get_logger(__name__)


def open_model(path: str | Path) -> Model:
    """Read a model and find its stride and halo where its manifest does not say.

    Parameters
    ----------
    path
        ``""`` for the shipped network; a manifest ``NAME.json``; or
        ``NAME.onnx`` with ``NAME.json`` beside it.

    Raises
    ------
    ModelError
        It cannot be had as named. No other model is ever taken instead.
    """
    if not str(path):
        return _complete(SHIPPED, load_model(SHIPPED))
    named = Path(path)
    if named.suffix.lower() in PICKLES:
        raise ModelError(
            f"model {named}: a {named.suffix} file may hold code",
            "an ONNX network with its manifest",
            "export it first: an .onnx file, and a .json manifest beside it",
        )
    if named.suffix.lower() not in (".json", ".onnx"):
        raise ModelError(
            f"model {named}", "a manifest NAME.json, or NAME.onnx beside one", "check --model"
        )
    manifest_file = named.with_suffix(".json")
    if named != manifest_file and not named.is_file():
        raise ModelError(f"model {named}: no such file", "an existing file", "check --model")
    if named == manifest_file and not named.is_file():
        raise ModelError(f"model {named}: no such file", "an existing file", "check --model")
    if not manifest_file.is_file():
        raise ModelError(
            f"model {named} without its manifest {manifest_file.name}",
            "a manifest beside the network",
            f"write {manifest_file}, at least {MINIMAL}",
        )
    model = load_model(manifest_file)
    if named != manifest_file and model.file != named:
        raise ModelError(
            f"manifest {manifest_file} describes {model.manifest.file}",
            f"the manifest of {named.name}",
            f"correct its key file, or name {manifest_file} itself",
        )
    return _complete(manifest_file, model)


def _complete(manifest_file: Path, model: Model) -> Model:
    """Measure what tiles must respect, where the manifest does not say, and keep it."""
    manifest = model.manifest
    if None not in (manifest.stride, manifest.exact_tiling) and (
        manifest.halo_px is not None or not manifest.exact_tiling
    ):
        return model
    name = f"tiling-{manifest.sha256}.json"
    found = recall(name, Tiling)
    if found is None:
        found = measure_tiling(
            model.file, manifest.input_channels, available_threads(), manifest.stride
        )
        log.info("tiling measured", model=manifest.name, stride=found.stride, halo_px=found.halo_px)
    full = msgspec.structs.replace(
        manifest,
        stride=found.stride if manifest.stride is None else manifest.stride,
        halo_px=found.halo_px if manifest.halo_px is None else manifest.halo_px,
        exact_tiling=found.exact if manifest.exact_tiling is None else manifest.exact_tiling,
    )
    try:
        replace(manifest_file, msgspec.json.format(msgspec.json.encode(full), indent=2) + b"\n")
    except OSError:
        keep(name, found)
    return Model(full, model.file)
