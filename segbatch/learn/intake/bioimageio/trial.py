"""A package's own test: its test input has to give its test output, through all of segbatch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from segbatch.errors import ModelError
from segbatch.infer import decide
from segbatch.infer.engine.cpu.onnxruntime_engine import OnnxRuntimeEngine
from segbatch.infer.engine.machine import available_threads
from segbatch.infer.engine.manifest import load_model, write_manifest
from segbatch.infer.normalise import fill, scale_of
from segbatch.infer.tiles import axis

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from segbatch.infer.engine.manifest import Model
    from segbatch.learn.intake.bioimageio.describe import Description, Tensor
    from segbatch.learn.intake.bioimageio.package import Package
    from segbatch.learn.intake.facts import Facts, Wishes

# Where a package states none, and the most that its format lets it state.
RELATIVE, ABSOLUTE, PER_MILLION = 1e-3, 1e-3, 100.0
MOST_RELATIVE, MOST_ABSOLUTE, MOST_PER_MILLION = 1e-2, 1e-1, 1000.0
LARGEST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Trial:
    """A package's test input, (1, C, Y, X) counts, and what it says comes out of it."""

    image: NDArray[Any]
    wanted: NDArray[Any]

    @classmethod
    def of(cls, package: Package, told: Description) -> Trial:
        """Read them.

        Raises
        ------
        ModelError
            The package has no test, or one that cannot be read.
        """
        return cls(_array(package, told, told.input), _array(package, told, told.output))


def try_out(
    manifest_file: Path,
    trial: Trial,
    told: Description,
    kind: str,
    facts: Facts,
    wishes: Wishes,
) -> None:
    """Run the test input and record the difference in the manifest.

    Raises
    ------
    ModelError
        Its output is not reproduced to the stated tolerance. The model's files are removed.
    """
    model = load_model(manifest_file)
    try:
        wanted = trial.wanted
        if wishes.channel is not None:
            wanted = wanted[:, wishes.channel : wishes.channel + 1]
        _record(manifest_file, model, _compare(model, trial.image, wanted, told, kind, facts))
    except ModelError:
        model.file.unlink(missing_ok=True)
        manifest_file.unlink(missing_ok=True)
        raise


def _array(package: Package, told: Description, tensor: Tensor) -> NDArray[Any]:
    if tensor.test is None:
        raise ModelError(
            f"{told.told}: no test array for {tensor.name}",
            "a package that can be tried before it is used",
            "take in its ONNX file by itself, with --normalisation as it needs",
        )
    file = package.file(tensor.test, tensor.test_sha256)
    try:
        if file.stat().st_size > LARGEST_BYTES:
            raise ValueError(f"{file.stat().st_size} bytes")
        array = np.load(file, allow_pickle=False)
        if array.ndim != 4 or array.shape[0] != 1 or array.dtype.kind not in "fiub":
            raise ValueError(f"an array of shape {array.shape}, {array.dtype}")
    except (ValueError, EOFError, OSError, AttributeError) as error:
        raise ModelError(
            f"{told.told}: {tensor.test}: {' '.join(str(error).split())[:200]}",
            "one array (1, C, Y, X) of numbers, as numpy.save writes it",
            "download the package again",
        ) from error
    return np.asarray(array)


def _logits(model: Model, image: NDArray[Any]) -> NDArray[np.float32]:
    """Return logits of (1, C, Y, X) counts, normalised and mirrored out as any frame."""
    manifest = model.manifest
    pixels = image[0, 0] if image.shape[1] == 1 else np.moveaxis(image[0], 0, 2)
    if pixels.dtype.kind == "b":
        pixels = pixels.astype(np.uint8)
    offset, scale = scale_of(pixels, manifest.normalisation, 0)
    sides = [
        axis(length, manifest.stride or 1, 0, 1 << 30, manifest.margin_px)
        for length in pixels.shape[:2]
    ]
    frame = np.empty((1, manifest.input_channels, *(side.padded for side in sides)), np.float32)
    fill(pixels, sides[0].span(0), sides[1].span(0), offset, scale, frame[0])
    engine = OnnxRuntimeEngine(model.file, available_threads())
    try:
        return engine.run(frame)[0, :, : sides[0].length, : sides[1].length]
    finally:
        engine.close()


def _described(model: Model, logits: NDArray[np.float32], wanted: Any, facts: Facts) -> Any:
    """Return what the package says its output is: logits, probabilities, classes, or a mask."""
    if logits.shape[0] > wanted.shape[1] == 1:
        return logits.argmax(0)[None]
    found = logits
    if facts.activated:
        found = (
            decide.sigmoid(logits) if model.manifest.output == "sigmoid" else decide.softmax(logits)
        )
    return found if facts.cutoff is None else found > facts.cutoff


def _compare(
    model: Model, image: Any, wanted: Any, told: Description, kind: str, facts: Facts
) -> dict[str, float]:
    channels = model.manifest.input_channels
    if image.shape[1] != channels:
        raise ModelError(
            f"{told.told}: a test input of {image.shape[1]} channels", f"{channels}", "use another"
        )
    found = _described(model, _logits(model, image), wanted, facts)
    cut = [(got - want) // 2 for got, want in zip(found.shape[1:], wanted.shape[2:], strict=True)]
    if found.shape[0] != wanted.shape[1] or min(cut) < 0:
        raise ModelError(
            f"{told.told}: a test output of shape {wanted.shape}",
            f"{(1, *found.shape)}",
            "use another",
        )
    height, width = wanted.shape[2:]
    found = found[:, cut[0] : cut[0] + height, cut[1] : cut[1] + width].astype(np.float64)
    expected = wanted[0].astype(np.float64)
    # A test image off the stride is padded by mirroring here, and by who knows what there.
    edge = [
        0 if length % (model.manifest.stride or 1) == 0 else (model.manifest.halo_px or 0)
        for length in image.shape[2:]
    ]
    inner = (slice(None), slice(0, max(1, height - edge[0])), slice(0, max(1, width - edge[1])))
    relative, absolute, per_million = _tolerance(told, kind)
    difference = np.abs(found - expected)[inner]
    wrong = difference > absolute + relative * np.abs(expected[inner])
    measured = {
        "max_difference": float(difference.max()),
        "mismatched_per_million": 1e6 * float(wrong.mean()),
        "relative_tolerance": relative,
        "absolute_tolerance": absolute,
    }
    if not np.isfinite(found).all() or measured["mismatched_per_million"] > per_million:
        raise ModelError(
            f"{told.told}: its test output is not reproduced: up to "
            f"{measured['max_difference']:.3g} off, {measured['mismatched_per_million']:.0f} in "
            f"a million values beyond {absolute:g} + {relative:g} of the value",
            f"at most {per_million:g} in a million",
            "check the package with bioimageio.core, or take in its ONNX file by itself",
        )
    return measured


def _tolerance(told: Description, kind: str) -> tuple[float, float, float]:
    """Return relative and absolute tolerance, and how many in a million may lie beyond."""
    said = told.tolerances.get(kind) or told.tolerances.get("") or {}
    absolute = said.get("absolute_tolerance", ABSOLUTE)
    if "decimal" in said:  # of format 0.4: as numpy.testing.assert_array_almost_equal has it
        absolute = 1.5 * 10.0 ** -float(said["decimal"])
    return (
        min(float(said.get("relative_tolerance", RELATIVE)), MOST_RELATIVE),
        min(float(absolute), MOST_ABSOLUTE),
        min(float(said.get("mismatched_elements_per_million", PER_MILLION)), MOST_PER_MILLION),
    )


def _record(manifest_file: Path, model: Model, measured: dict[str, float]) -> None:
    metrics = {**model.manifest.metrics, "own_test": measured}
    write_manifest(msgspec.structs.replace(model.manifest, metrics=metrics), manifest_file)
