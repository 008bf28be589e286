"""bioimage.io packages: what they describe is done, or refused by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from segbatch.errors import ModelError
from segbatch.infer.engine.manifest import Fixed, ScaleRange, ZScore, load_model
from segbatch.infer.engine.models import open_model
from segbatch.infer.segment import Segmenter
from segbatch.learn.intake import load_network
from segbatch.learn.intake.facts import Wishes
from segbatch.settings import Settings
from tests.learn.packages import Package, Steps, counts, network, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from segbatch.infer.engine.manifest import Manifest

pytestmark = [pytest.mark.learn, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

Array = NDArray[np.float64]
ZSCORE_04 = ("zero_mean_unit_variance", {"mode": "per_sample", "axes": "yx"})
SIGMOID: Steps = [("sigmoid", {})]


def sigmoid(x: Any) -> Any:
    """Return the probability of a logit."""
    return 1.0 / (1.0 + np.exp(-np.asarray(x, np.float64)))


def softmax(x: Any) -> Any:
    """Return probabilities over channels."""
    grown = np.exp(x - x.max(1, keepdims=True))
    return grown / grown.sum(1, keepdims=True)


def zscore(x: Array) -> Array:
    """Return a frame in standard deviations from its mean."""
    return (x - x.mean()) / (x.std() + 1e-6)


def scaled(low: float, high: float) -> Callable[[Array], Array]:
    """Return a function that maps two percentiles to 0 and 1."""

    def scale(x: Array) -> Array:
        bottom, top = np.percentile(x, [low, high])
        return (x - bottom) / (top - bottom + 1e-6)  # type: ignore[no-any-return]

    return scale


def plain(folder: Path, version: str = "0.5.4", **more: Any) -> Package:
    """Return a package of one class, normalised by its own statistics."""
    net, image = network(), counts()
    before: Steps = [ZSCORE_04 if version < "0.5" else ("zero_mean_unit_variance", {})]
    answer = sigmoid(run(net, zscore(image.astype(np.float64))))
    return Package(folder, version, net, before, SIGMOID, image, answer, **more)


def taken(source: Path, folder: Path, **wishes: Any) -> Manifest:
    """Take a package in and return its manifest."""
    return load_model(load_network(source, folder, wishes=Wishes(**wishes))).manifest


@pytest.mark.parametrize("version", ["0.3.6", "0.4.9", "0.5.4"])
@pytest.mark.parametrize("form", ["folder", "zip", "yaml"])
def test_packages_are_read_in_every_form(version: str, form: str, tmp_path: Path) -> None:
    """A folder, an archive and a description beside its files give the same model."""
    package = plain(tmp_path / "package", version)
    source = package.zipped() if form == "zip" else package.write()
    manifest = taken(source / "rdf.yaml" if form == "yaml" else source, tmp_path / "out")

    assert (manifest.name, manifest.output) == ("a_test_network", "sigmoid")
    assert manifest.normalisation == ZScore(1e-6)
    assert manifest.metrics["own_test"]["max_difference"] < 1e-5
    assert manifest.pixel_size_um == (0.345 if version == "0.5.4" else None)


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


def test_a_wrong_test_output_is_refused(tmp_path: Path) -> None:
    """A package whose test output its network does not give is not used, and leaves no model."""
    package = plain(tmp_path / "p")
    np.save(tmp_path / "p" / "test_output.npy", np.full((1, 1, 32, 32), 0.5, np.float32))

    with pytest.raises(ModelError, match="not reproduced"):
        load_network(package.write(), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_stated_tolerance_is_kept_to_within_reason(tmp_path: Path) -> None:
    """A package may allow a little more than usual, and no more than its format does."""
    package = plain(tmp_path / "p")
    answer = np.load(tmp_path / "p" / "test_output.npy")
    np.save(tmp_path / "p" / "test_output.npy", answer + 0.005)
    with pytest.raises(ModelError, match="not reproduced"):
        load_network(package.write(), tmp_path / "out")
    lenient = {"absolute_tolerance": 0.01, "relative_tolerance": 0.0}
    package.told["config"] = {"bioimageio": {"reproducibility_tolerance": [lenient]}}
    manifest = taken(package.write(), tmp_path / "out")
    np.save(tmp_path / "p" / "test_output.npy", answer + 0.5)
    lenient["absolute_tolerance"] = 1e9

    assert manifest.metrics["own_test"]["absolute_tolerance"] == 0.01
    with pytest.raises(ModelError, match="not reproduced"):
        load_network(package.write(), tmp_path / "out")


def test_a_package_without_test_is_refused(tmp_path: Path) -> None:
    """A package that cannot be tried is not used."""
    package = plain(tmp_path / "p", "0.4.9")
    package.told["test_inputs"] = []

    with pytest.raises(ModelError, match="no test array"):
        load_network(package.write(), tmp_path / "out")


def test_a_test_array_with_code_is_refused(tmp_path: Path) -> None:
    """A test array of Python objects is not unpickled."""
    package = plain(tmp_path / "p", "0.4.9")
    np.save(tmp_path / "p" / "test_input.npy", np.array([{}], object), allow_pickle=True)

    with pytest.raises(ModelError, match=r"test_input\.npy"):
        load_network(package.write(), tmp_path / "out")


def test_torchscript_stands_in_for_onnx_that_is_refused(tmp_path: Path) -> None:
    """Where the preferred weights are refused the next are read, and the manifest says so."""
    package = plain(tmp_path / "p", kinds=("onnx", "torchscript"))
    model = onnx.load(tmp_path / "p" / "weights.onnx")
    model.graph.node[0].domain = "com.evil"
    onnx.save(model, tmp_path / "p" / "weights.onnx")
    del package.told["weights"]["onnx"]["sha256"]
    manifest = taken(package.write(), tmp_path / "out")

    assert manifest.training["weights"] == "torchscript"
    assert manifest.source is not None
    assert any("com.evil" in each for each in manifest.source.assumed)


def test_weights_that_need_python_code_are_refused(tmp_path: Path) -> None:
    """Weights of an architecture in a package's own Python file are refused by that name."""
    package = plain(tmp_path / "p", kinds=("pytorch_state_dict",))
    given = package.told["weights"]["pytorch_state_dict"]
    given["architecture"] = {"source": "evil.py", "callable": "Net", "kwargs": {}}
    (tmp_path / "p" / "evil.py").write_text("raise SystemExit('ran')\n")

    with pytest.raises(ModelError, match=r"Net|without their network"):
        load_network(package.write(), tmp_path / "out")
    assert taken(package.write(), tmp_path / "out", arch="segbatch-unet").stride == 2


@pytest.mark.slow
def test_weights_of_an_architecture_that_is_known_are_read(tmp_path: Path) -> None:
    """Weights that name an architecture of segmentation-models-pytorch are loaded into ours."""
    from segbatch.learn.intake.forms.smp import SmpUnet

    torch.manual_seed(0)
    net = SmpUnet("resnet34", 1, 1, [16, 16, 8, 8, 8]).eval()
    image = counts(side=64)
    answer = sigmoid(run(net, zscore(image.astype(np.float64))))
    before: Steps = [("zero_mean_unit_variance", {})]
    package = Package(
        tmp_path / "p", "0.5.4", net, before, SIGMOID, image, answer, ("pytorch_state_dict",)
    )
    package.told["weights"]["pytorch_state_dict"]["architecture"] = {
        "import_from": "segmentation_models_pytorch",
        "callable": "Unet",
        "kwargs": {"encoder_name": "resnet34"},
    }

    assert taken(package.write(), tmp_path / "out").stride == 32


@pytest.mark.parametrize("name", ["../secret.onnx", "/etc/passwd", "a\\b", "missing.onnx"])
def test_files_of_a_package_lie_inside_it(name: str, tmp_path: Path) -> None:
    """A description that names a file elsewhere, or a missing one, is refused by that name."""
    package = plain(tmp_path / "p")
    (tmp_path / "secret.onnx").write_bytes((tmp_path / "p" / "weights.onnx").read_bytes())
    package.told["weights"]["onnx"]["source"] = name

    with pytest.raises(ModelError) as caught:
        load_network(package.write(), tmp_path / "out")
    assert (
        "weights as onnx" in caught.value.got
        or name in caught.value.got
        or repr(name) in (caught.value.got)
    )


def test_a_changed_file_of_a_package_is_refused(tmp_path: Path) -> None:
    """Weights that are not the ones that a package describes are refused."""
    package = plain(tmp_path / "p")
    package.told["weights"]["onnx"]["sha256"] = "0" * 64

    with pytest.raises(ModelError, match="SHA-256"):
        load_network(package.write(), tmp_path / "out")


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['true']",
        "a: [b",
        "- a list",
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{8 * f'*a{i - 1}, '}]\n" for i in range(1, 9)),
        "a: &a [*a]\n",
        "type: model\nformat_version: 9.9.9\n",
        "type: dataset\nformat_version: 0.5.4\n",
        "type: model\nformat_version: 0.5.4\n",
    ],
)
def test_descriptions_that_are_none_are_refused(text: str, tmp_path: Path) -> None:
    """YAML with code, without end, or of something else than a model is refused."""
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "rdf.yaml").write_text(text)

    with pytest.raises(ModelError):
        load_network(tmp_path / "p", tmp_path / "out")


@pytest.mark.parametrize("axes", ["byxc", "bczyx", "yx"])
def test_other_axes_are_refused(axes: str, tmp_path: Path) -> None:
    """A network of three dimensions, or of another order of axes, is refused by its axes."""
    package = plain(tmp_path / "p", "0.4.9")
    package.told["inputs"][0]["axes"] = axes

    with pytest.raises(ModelError, match=axes):
        load_network(package.write(), tmp_path / "out")


def test_a_package_segments_frames(tmp_path: Path) -> None:
    """A package named as model gives, on a frame of counts, the mask that it describes."""
    package = plain(tmp_path / "p")
    frame = counts()[0, 0].astype(np.uint16)
    wanted = np.load(tmp_path / "p" / "test_output.npy")[0, 0] >= 0.5
    with Segmenter(open_model(package.zipped()), Settings(threads=1)) as segmenter:
        found = segmenter.segment(frame, 10)

    np.testing.assert_array_equal(found.mask, wanted)
