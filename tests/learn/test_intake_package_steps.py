"""The steps before and after a package's network: done as described, or refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from segbatch.errors import ModelError
from segbatch.infer.engine.manifest import Fixed, ScaleRange, ZScore
from segbatch.learn.intake import load_network
from tests.learn.packages import (
    SIGMOID,
    ZSCORE_04,
    Array,
    Package,
    Steps,
    counts,
    network,
    run,
    sigmoid,
    taken,
    zscore,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.learn, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def softmax(x: Any) -> Any:
    """Return probabilities over channels."""
    grown = np.exp(x - x.max(1, keepdims=True))
    return grown / grown.sum(1, keepdims=True)


def scaled(low: float, high: float) -> Callable[[Array], Array]:
    """Return a function that maps two percentiles to 0 and 1."""

    def scale(x: Array) -> Array:
        bottom, top = np.percentile(x, [low, high])
        return (x - bottom) / (top - bottom + 1e-6)  # type: ignore[no-any-return]

    return scale


@pytest.mark.parametrize(
    ("version", "before", "reference", "expected"),
    [
        ("0.4.9", [ZSCORE_04], zscore, ZScore(1e-6)),
        (
            "0.4.9",
            [("zero_mean_unit_variance", {"mode": "fixed", "mean": 300, "std": 50, "eps": 1e-3})],
            lambda x: (x - 300) / (50 + 1e-3),
            Fixed(300.0, 1 / (50 + 1e-3)),
        ),
        (
            "0.4.9",
            [("scale_range", {"mode": "per_sample", "axes": "yx", "max_percentile": 99.8})],
            scaled(0, 99.8),
            ScaleRange(0.0, 99.8),
        ),
        (
            "0.4.9",
            [("scale_linear", {"axes": "yx", "gain": 0.01})],
            lambda x: x / 100,
            Fixed(0, 0.01),
        ),
        (
            "0.5.4",
            [("zero_mean_unit_variance", {"axes": ["channel", "y", "x"], "eps": 1e-6})],
            zscore,
            ZScore(1e-6),
        ),
        (
            "0.5.4",
            [
                ("ensure_dtype", {"dtype": "float32"}),
                ("scale_range", {"min_percentile": 5, "max_percentile": 99.8}),
                ("clip", {"min": 0.0, "max": 1.0}),
            ],
            lambda x: scaled(5, 99.8)(x).clip(0, 1),
            ScaleRange(5.0, 99.8),
        ),
        (
            "0.5.4",
            [("fixed_zero_mean_unit_variance", {"mean": 500.0, "std": 20.0})],
            lambda x: (x - 500) / 20,
            Fixed(500.0, 0.05),
        ),
        (
            "0.5.4",
            [("scale_linear", {"gain": 0.5, "offset": 7.0}), ("zero_mean_unit_variance", {})],
            lambda x: zscore(0.5 * x + 7),
            ZScore(2e-6),
        ),
        (
            "0.5.4",
            [("zero_mean_unit_variance", {}), ("scale_linear", {"gain": 3.0, "offset": -1.0})],
            lambda x: 3 * zscore(x) - 1,
            ZScore(1e-6),
        ),
        ("0.5.4", [("clip", {"min": 200, "max": 700})], lambda x: x.clip(200, 700), Fixed()),
        ("0.5.4", [], lambda x: x, Fixed()),
    ],
)
def test_preprocessing_is_honoured(
    version: str,
    before: Steps,
    reference: Callable[[Array], Array],
    expected: Any,
    tmp_path: Path,
) -> None:
    """What a frame goes through before the network is what the package describes."""
    net, image = network(), counts()
    answer = sigmoid(run(net, reference(image.astype(np.float64))))
    package = Package(tmp_path / "p", version, net, before, SIGMOID, image, answer)
    found = taken(package.write(), tmp_path / "out").normalisation

    assert type(found) is type(expected)
    for field in found.__struct_fields__:
        assert getattr(found, field) == pytest.approx(getattr(expected, field))


def test_constants_for_each_channel_are_honoured(tmp_path: Path) -> None:
    """A mean and a deviation for each colour become part of the graph."""
    net, image = network(channels=3), counts(channels=3)
    mean, deviation = np.array([100.0, 200.0, 300.0]), np.array([10.0, 20.0, 30.0])
    given = {"mean": mean.tolist(), "std": deviation.tolist(), "axis": "channel"}
    normalised = (image - mean.reshape(1, 3, 1, 1)) / deviation.reshape(1, 3, 1, 1)
    answer = sigmoid(run(net, normalised))
    before: Steps = [("fixed_zero_mean_unit_variance", given)]
    package = Package(tmp_path / "p", "0.5.4", net, before, SIGMOID, image, answer)

    assert taken(package.write(), tmp_path / "out").input_channels == 3


@pytest.mark.parametrize(
    ("outputs", "after", "reference", "threshold"),
    [
        (1, [], lambda x: x, 0.5),
        (1, [("sigmoid", {}), ("ensure_dtype", {"dtype": "float32"})], sigmoid, 0.5),
        (1, [("sigmoid", {}), ("clip", {"min": 0, "max": 1})], sigmoid, 0.5),
        (1, [("sigmoid", {}), ("binarize", {"threshold": 0.3})], lambda x: sigmoid(x) > 0.3, 0.3),
        (1, [("binarize", {"threshold": 0.4})], lambda x: x > 0.4, 1 / (1 + np.exp(-0.4))),
        (3, [("softmax", {"axis": "channel"})], softmax, 0.5),
        (3, [("softmax", {})], softmax, 0.5),
    ],
)
def test_postprocessing_is_honoured(
    outputs: int,
    after: Steps,
    reference: Callable[[Any], Any],
    threshold: float,
    tmp_path: Path,
) -> None:
    """What the package does to the network's output stands in the manifest, and is reproduced."""
    net, image = network(outputs=outputs), counts()
    answer = np.asarray(reference(run(net, zscore(image.astype(np.float64)))), np.float32)
    before: Steps = [("zero_mean_unit_variance", {})]
    package = Package(tmp_path / "p", "0.5.4", net, before, after, image, answer)
    manifest = taken(package.write(), tmp_path / "out")

    assert manifest.output == ("sigmoid" if outputs == 1 else "softmax")
    assert manifest.threshold == pytest.approx(threshold)
    assert manifest.classes == (["object"] if outputs == 1 else ["c1", "c2"])


@pytest.mark.parametrize(
    ("before", "named"),
    [
        ([("scale_mean_variance", {"reference_tensor": "raw"})], "scale_mean_variance"),
        ([("custom", {"source": "steps.py"})], "custom"),
        ([("binarize", {"threshold": 3})], "binarize"),
        ([("ensure_dtype", {"dtype": "uint8"})], "ensure_dtype"),
        ([("clip", {"min_percentile": 1})], "clip"),
        ([("clip", {"min": 0, "max": 9}), ("zero_mean_unit_variance", {})], "zero_mean"),
        ([("zero_mean_unit_variance", {"mode": "per_dataset", "axes": "yx"})], "per_dataset"),
        ([("zero_mean_unit_variance", {"axes": ["channel"]})], "zero_mean"),
        ([("scale_range", {"min_percentile": 60, "max_percentile": 40})], "scale_range"),
        ([("scale_range", {"reference_tensor": "other"})], "scale_range"),
        ([("scale_linear", {"gain": 0.0})], "scale_linear"),
        ([("scale_range", {}), ("zero_mean_unit_variance", {})], "zero_mean"),
    ],
)
def test_other_preprocessing_is_refused(before: Steps, named: str, tmp_path: Path) -> None:
    """A step before the network that cannot be done as described is refused by its name."""
    image = counts()
    package = Package(tmp_path / "p", "0.5.4", network(), before, SIGMOID, image, image)

    with pytest.raises(ModelError, match=named):
        load_network(package.write(), tmp_path / "out")


@pytest.mark.parametrize(
    "after",
    [
        [("stardist_postprocessing", {"prob_threshold": 0.5})],
        [("scale_linear", {"gain": 2.0})],
        [("zero_mean_unit_variance", {})],
        [("sigmoid", {}), ("sigmoid", {})],
        [("softmax", {"axis": "y"})],
        [("clip", {"min": 0.2, "max": 0.5})],
        [("binarize", {"threshold": [0.1, 0.2]})],
        [("sigmoid", {}), ("binarize", {"threshold": 0.5}), ("clip", {"min": 0, "max": 1})],
    ],
)
def test_other_postprocessing_is_refused(after: Steps, tmp_path: Path) -> None:
    """A step after the network that leads to no probability of a mask is refused by its name."""
    image = counts()
    package = Package(tmp_path / "p", "0.5.4", network(), [], after, image, image)

    with pytest.raises(ModelError, match=f"step {after[-1][0]}|step binarize|step clip"):
        load_network(package.write(), tmp_path / "out")
