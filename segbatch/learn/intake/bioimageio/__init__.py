"""bioimage.io packages: read, honoured, tried on their own test input, or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segbatch.errors import ModelError
from segbatch.learn.intake.bioimageio.describe import describe
from segbatch.learn.intake.bioimageio.package import opened_package
from segbatch.learn.intake.bioimageio.steps import honour_after, honour_before
from segbatch.learn.intake.bioimageio.trial import Trial, try_out
from segbatch.learn.intake.facts import Facts

if TYPE_CHECKING:
    from pathlib import Path

    from segbatch.learn.intake.bioimageio.describe import Description, Weights
    from segbatch.learn.intake.bioimageio.package import Package
    from segbatch.learn.intake.facts import Wishes


def read_package(source: Path, folder: Path, wishes: Wishes) -> Path:
    """Write a package's network as a model and return its manifest.

    ONNX is preferred, then TorchScript, then the weights of an architecture that is known.

    Raises
    ------
    ModelError
        The package is broken or hostile, needs Python code of its own or a step that is not
        known, or does not reproduce its own test output.
    """
    with opened_package(source) as package:
        told = describe(package, wishes.output)
        trial = Trial.of(package, told)
        refusals: list[ModelError] = []
        for weights in told.weights:
            try:
                return _with(weights, package, told, trial, folder, wishes, refusals)
            except ModelError as error:
                got = package.without_places(error.got)
                refusals.append(ModelError(got, error.wanted, error.remedy))
        raise ModelError(
            f"{source}: " + "; ".join(error.got for error in refusals),
            refusals[0].wanted,
            refusals[0].remedy,
        )


def _with(
    weights: Weights,
    package: Package,
    told: Description,
    trial: Trial,
    folder: Path,
    wishes: Wishes,
    refusals: list[ModelError],
) -> Path:
    from segbatch.learn.intake.finish import finish
    from segbatch.learn.intake.read import network_of

    file = package.file(weights.source, weights.sha256)
    inner = Facts(kind="", name=told.name, files=[file])
    arch = wishes.arch or weights.arch
    model = network_of(weights.read_as, file, inner, _replaced(wishes, arch))
    package.note(inner.files)
    facts = Facts(
        kind=f"bioimageio {told.format_version}",
        name=told.name,
        files=list(package.read),
        classes=told.classes,
        pixel_size_um=told.pixel_size_um,
        training={"package": told.record, "weights": weights.kind},
    )
    facts.assumed += [f"{error.got}: other weights were read" for error in refusals]
    honour_before(told, facts)
    honour_after(told, facts)
    if told.outputs > 1 or wishes.output is not None:
        wishes = _replaced(wishes, arch, output=model.graph.output[told.output_index].name)
    manifest_file = finish(model, facts, wishes, folder)
    try_out(manifest_file, trial, told, weights.kind, facts, wishes)
    return manifest_file


def _replaced(wishes: Wishes, arch: str | None, **more: str) -> Wishes:
    import msgspec

    return msgspec.structs.replace(wishes, arch=arch, **more)
