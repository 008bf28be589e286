"""The decision inside the graph is the decision outside it, whichever engine computes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from segbatch.errors import ModelError
from segbatch.infer.decide import decide_binary, decide_classes
from segbatch.infer.engine.cpu.openvino_engine import load_openvino
from segbatch.infer.engine.tensorrt import build
from segbatch.learn.export.head import append_decision
from tests.infer.networks import draw_unet
from tests.infer.rtx import SOURCE, needs_rtx

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.learn

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
Outputs = dict[str, Any]


def plain(
    channels: int, dtype: str = "float32", opset: int = 17, name: str = "logits"
) -> onnx.ModelProto:
    """Return a network whose logits are its input."""
    sides = ["n", channels, "y", "x"]
    return helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", ["image"], [name])],
            "plain",
            [helper.make_tensor_value_info("image", TYPES[dtype], sides)],
            [helper.make_tensor_value_info(name, TYPES[dtype], sides)],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )


def by_onnxruntime(model: onnx.ModelProto, image: NDArray[Any]) -> Outputs:
    """Return the outputs by name, computed by ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(None, {"image": image}), strict=True))


def by_openvino(model: onnx.ModelProto, image: NDArray[Any]) -> Outputs:
    """Return the outputs by name, computed by OpenVINO in fp32."""
    from io import BytesIO

    core = load_openvino().Core()
    network = core.read_model(BytesIO(model.SerializeToString()))
    compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(image)
    return {port.get_any_name(): found[port] for port in compiled.outputs}


engines = pytest.mark.parametrize("run", [by_onnxruntime, by_openvino], ids=["ort", "openvino"])
Run = Callable[[onnx.ModelProto, Any], Outputs]


def outside(logits: NDArray[np.float32], threshold: float | None) -> tuple[Any, float, float]:
    """Return what ``segbatch.infer.decide`` makes of (K, Y, X): mask, confidence, entropy."""
    mask = np.empty(logits.shape[1:], np.uint8)
    every = slice(None)
    if threshold is None:
        confidence, entropy, pixels = decide_classes(logits, mask, every)
    else:
        confidence, entropy, pixels = decide_binary(logits[0], threshold, mask, every)
    return mask, confidence / pixels, entropy / pixels


def drawn(channels: int, spread: float = 4.0) -> NDArray[np.float32]:
    """Return logits (2, K, 32, 48) of a normal distribution."""
    rng = np.random.default_rng(channels)
    return rng.normal(0.0, spread, (2, channels, 32, 48)).astype(np.float32)


@engines
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("channels", "threshold"), [(1, 0.5), (1, 0.31), (2, None), (5, None)])
def test_inside_is_outside(channels: int, threshold: float | None, dtype: str, run: Run) -> None:
    """Masks are equal to the pixel, and confidence and entropy agree to a thousandth or better."""
    logits = drawn(channels).astype(dtype)
    model = append_decision(plain(channels, dtype), stride=8, threshold=threshold)

    found = run(model, logits)

    np.testing.assert_array_equal(found["logits"], logits)
    for i, each in enumerate(logits.astype(np.float32)):
        mask, confidence, entropy = outside(each, threshold)
        np.testing.assert_array_equal(found["mask"][i], mask)
        assert found["confidence"][i].mean() == pytest.approx(confidence, abs=2e-4)
        assert found["entropy"][i].mean() == pytest.approx(entropy, abs=2e-4)


@engines
@pytest.mark.parametrize(("channels", "threshold"), [(1, 0.4), (3, None)])
def test_blocks_are_means(channels: int, threshold: float | None, run: Run) -> None:
    """Each block's confidence and entropy are the means over that block's pixels."""
    logits = drawn(channels)
    model = append_decision(plain(channels), stride=16, threshold=threshold)

    found = run(model, logits)

    assert found["mask"].shape == (2, 32, 48)
    assert found["mask"].dtype == np.uint8
    for y, x in np.ndindex(2, 3):
        block = logits[1, :, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16]
        _, confidence, entropy = outside(block, threshold)
        assert found["confidence"][1, y, x] == pytest.approx(confidence, abs=2e-4)
        assert found["entropy"][1, y, x] == pytest.approx(entropy, abs=2e-4)


@engines
@pytest.mark.parametrize("channels", [2, 4])
def test_ties_go_to_the_lower_class(channels: int, run: Run) -> None:
    """Of classes with equal logits the one of the lower index wins."""
    logits = drawn(channels).round()
    logits[:, :, ::2] = 1.0
    model = append_decision(plain(channels), stride=8)

    np.testing.assert_array_equal(run(model, logits)["mask"][0], outside(logits[0], None)[0])


@engines
def test_the_threshold_itself_is_background(run: Run) -> None:
    """A probability equal to the threshold does not exceed it."""
    model = append_decision(plain(1), stride=8, threshold=0.5)

    assert not run(model, np.zeros((1, 1, 16, 16), np.float32))["mask"].any()


@engines
@pytest.mark.parametrize(("channels", "threshold"), [(1, 0.5), (3, None)])
@pytest.mark.parametrize(("dtype", "size"), [("float16", 65504.0), ("float32", 1e30)])
def test_nothing_overflows(
    channels: int, threshold: float | None, dtype: str, size: float, run: Run
) -> None:
    """The largest logits of a type are a sure decision: confidence 1, entropy 0."""
    logits = np.full((1, channels, 16, 16), -size, dtype)
    logits[:, -1, :8] = size
    logits[:, 0, 8:] = size if channels > 1 else -size
    model = append_decision(plain(channels, dtype), stride=8, threshold=threshold)

    found = run(model, logits)

    assert found["mask"][0, :8].min() == max(1, channels - 1)
    assert not found["mask"][0, 8:].any()
    np.testing.assert_array_equal(found["confidence"], 1.0)
    np.testing.assert_array_equal(found["entropy"], 0.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("channels", "threshold"), [(1, 0.5), (3, None)])
def test_what_is_not_finite_shows(channels: int, threshold: float | None, value: float) -> None:
    """A single logit that is not finite makes its block's entropy NaN and leaves the others."""
    logits = drawn(channels)[:1]
    logits[0, 0, 3, 4] = value
    model = append_decision(plain(channels), stride=16, threshold=threshold)

    entropy = by_onnxruntime(model, logits)["entropy"][0]

    assert np.isnan(entropy[0, 0])
    assert np.isfinite(entropy.ravel()[1:]).all()


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
def test_every_operator_set(opset: int) -> None:
    """The decision is appended to networks of any operator set from 13 on."""
    model = append_decision(plain(3, opset=opset), stride=8)

    mask = by_onnxruntime(model, drawn(3))["mask"]

    np.testing.assert_array_equal(mask[0], outside(drawn(3)[0], None)[0])


def test_the_network_is_left_as_it_is(tmp_path: Path) -> None:
    """The given network is not changed, and its output is named logits in what is returned."""
    draw_unet(tmp_path / "net.onnx")
    network = onnx.load(tmp_path / "net.onnx")
    before = network.SerializeToString()

    model = append_decision(network, stride=4, threshold=0.5)

    assert network.SerializeToString() == before
    assert [each.name for each in model.graph.output] == [
        "logits",
        "mask",
        "confidence",
        "entropy",
    ]


def test_what_does_not_go_together_is_refused() -> None:
    """Several classes with a threshold, one without, and an old operator set are refused."""
    with pytest.raises(ModelError, match="3 channels with threshold"):
        append_decision(plain(3), stride=8, threshold=0.5)
    with pytest.raises(ModelError, match="1 channels with threshold None"):
        append_decision(plain(1), stride=8)
    with pytest.raises(ModelError, match="operator set 11"):
        append_decision(plain(1, opset=11), stride=8, threshold=0.5)


def test_a_network_of_two_outputs_is_refused() -> None:
    """A network of several outputs is refused, its outputs named."""
    model = append_decision(plain(1), stride=8, threshold=0.5)

    with pytest.raises(ModelError, match="confidence"):
        append_decision(model, stride=8, threshold=0.5)


def test_channels_must_be_stated() -> None:
    """A network that does not say how many classes it has is refused."""
    model = plain(1)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "k"

    with pytest.raises(ModelError, match="K stated"):
        append_decision(model, stride=8, threshold=0.5)


@needs_rtx
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("channels", "threshold"), [(1, 0.3), (2, None), (4, None)])
def test_tensorrt_takes_it(
    channels: int, threshold: float | None, dtype: str, tmp_path: Path
) -> None:
    """TensorRT builds an engine that ends in the decision, in fp32 and in fp16."""
    model = append_decision(plain(channels, dtype), stride=8, threshold=threshold)

    engine = build(
        model.SerializeToString(), (2, channels, 32, 48), tmp_path, "net", source=SOURCE
    ).manifest

    assert engine.decides
    assert engine.options["outputs"] == ["logits", "mask", "confidence", "entropy"]
