"""A path becomes a model: a manifest, and the network that it describes."""

from __future__ import annotations

from pathlib import Path

import msgspec

from segbatch.errors import ModelError, UsageError
from segbatch.infer.engine.cache import keep, recall
from segbatch.infer.engine.machine import available_threads
from segbatch.infer.engine.manifest import Model, load_model
from segbatch.infer.engine.network.adopt import adopt
from segbatch.infer.engine.network.halo import Tiling, measure_tiling
from segbatch.log import get_logger
from segbatch.wholefile import write_whole

SHIPPED = Path(__file__).parents[2] / "shipped" / "beads.json"
# Kind of source that says nothing of its architecture.
WEIGHTS = "state_dict"
log = get_logger(__name__)


def open_model(path: str | Path, arch: str = "") -> Model:
    """Read a model and find its stride and halo where its manifest does not say.

    Parameters
    ----------
    path
        ``""`` for the shipped network; a manifest ``NAME.json``; ``NAME.onnx`` with
        ``NAME.json`` beside it; or whatever else holds a network (``docs/models.md``), which
        is taken in once, in a process of its own, and kept in the user's cache folder.
    arch
        Architecture of a file that holds weights alone.

    Raises
    ------
    ModelError
        It cannot be had as named. No other model is ever taken instead.
    UsageError
        It has to be taken in, and the learn extra is not installed; or an architecture was
        named for a model that has one.
    """
    if not str(path):
        _refuse(arch, "the shipped network")
        return _complete(SHIPPED, load_model(SHIPPED))
    named = Path(path)
    if not named.exists():
        raise ModelError(f"model {named}: no such file", "an existing file", "check --model")
    manifest_file = named.with_suffix(".json")
    if named.suffix.lower() not in (".json", ".onnx") or not manifest_file.is_file():
        manifest_file = adopt(named, arch)
        model = load_model(manifest_file)
        if model.manifest.source is None or model.manifest.source.kind != WEIGHTS:
            _refuse(arch, f"model {named}")
        return _complete(manifest_file, model)
    _refuse(arch, f"model {named}")
    model = load_model(manifest_file)
    if named != manifest_file and model.file != named:
        raise ModelError(
            f"manifest {manifest_file} describes {model.manifest.file}",
            f"the manifest of {named.name}",
            f"correct its key file, or name {manifest_file} itself",
        )
    return _complete(manifest_file, model)


def _refuse(arch: str, of: str) -> None:
    if arch:
        raise UsageError(
            f"arch = {arch} with {of}, which has its own",
            "a file of weights alone",
            "leave --arch out, or give --model the weights",
        )


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
            model.file,
            manifest.input_channels,
            available_threads(),
            manifest.stride,
            manifest.margin_px,
        )
        log.info("tiling measured", model=manifest.name, stride=found.stride, halo_px=found.halo_px)
    full = msgspec.structs.replace(
        manifest,
        stride=found.stride if manifest.stride is None else manifest.stride,
        halo_px=found.halo_px if manifest.halo_px is None else manifest.halo_px,
        exact_tiling=found.exact if manifest.exact_tiling is None else manifest.exact_tiling,
    )
    try:
        write_whole(manifest_file, msgspec.json.format(msgspec.json.encode(full), indent=2) + b"\n")
    except OSError:
        keep(name, found)
    return Model(full, model.file)
