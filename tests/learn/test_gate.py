"""The gate: what is alike passes, what is not is stopped and named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from segbatch.acquire.simulate import write_run
from segbatch.errors import ModelError
from segbatch.infer.engine.cpu.onnxruntime_engine import OnnxRuntimeEngine
from segbatch.infer.engine.made.artifact import Likeness
from segbatch.infer.engine.made.likeness import Answer, judge, least_iou, likeness
from segbatch.infer.engine.network.models import open_model
from segbatch.learn.export.frames import Picture, gather
from segbatch.learn.export.gate import answer, worse_than
from segbatch.learn.export.head import append_decision
from segbatch.learn.export.layers import parting
from segbatch.learn.export.precision import activation_range, to_fp16, to_int8
from tests.infer.conftest import MakeModel

RNG = np.random.default_rng(3)
IMAGES = [RNG.random((1, 1, 64, 64), np.float32) for _ in range(3)]


def told(agreement: float, iou: float | None = 1.0, *, noise: bool = False) -> Likeness:
    """Return a likeness of these figures."""
    return Likeness(
        frames="8 of random",
        count=8,
        noise=noise,
        max_probability_difference=0.1,
        mean_probability_difference=0.001,
        mask_agreement=agreement,
        iou=iou,
    )


def answered(mask: list[list[int]], probability: list[list[float]]) -> Answer:
    """Return an answer of one class."""
    return Answer(np.array(mask, np.uint8), np.array([probability], np.float32))


def run(network: bytes, image: np.ndarray) -> np.ndarray:
    """Return the logits of an ONNX network as it stands."""
    import onnxruntime

    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: image})[0])


def test_likeness_counts_pixels() -> None:
    """Differences, agreement and overlap are those counted by hand."""
    right = answered([[1, 1, 0, 0]], [[0.9, 0.6, 0.4, 0.0]])
    got = answered([[1, 0, 0, 0]], [[0.9, 0.4, 0.4, 0.1]])
    found = likeness("1 drawn", [right], [got])

    assert found.max_probability_difference == pytest.approx(0.2, abs=1e-6)
    assert found.mean_probability_difference == pytest.approx(0.075, abs=1e-6)
    assert found.mask_agreement == 0.75
    assert found.iou == 0.5


def test_another_class_is_no_overlap() -> None:
    """A pixel of class 1 in one mask and of class 2 in the other overlaps in nothing."""
    found = likeness("1 drawn", [answered([[1]], [[0.9]])], [answered([[2]], [[0.9]])])

    assert (found.mask_agreement, found.iou) == (0.0, 0.0)


def test_nothing_found_by_both_is_alike() -> None:
    """Two empty masks agree everywhere and have no overlap to speak of."""
    empty = answered([[0, 0]], [[0.1, 0.1]])
    found = likeness("1 drawn", [empty], [empty])

    assert (found.mask_agreement, found.iou) == (1.0, None)
    assert judge([found], 0.999, "").passed


def test_not_a_number_never_passes() -> None:
    """An answer that is not finite fails, whatever its mask."""
    found = likeness("1 drawn", [answered([[0]], [[0.1]])], [answered([[0]], [[np.nan]])])

    assert not judge([found], 0.5, "").passed


@pytest.mark.parametrize(
    ("found", "passed"),
    [
        ([told(0.9995), told(0.9992)], True),
        ([told(0.9995), told(0.998)], False),
        ([told(0.9999, iou=0.9)], False),
        ([told(0.9999, iou=0.9, noise=True)], True),
        ([told(0.9999, iou=None)], True),
    ],
)
def test_every_set_of_frames_has_to_pass(found: list[Likeness], passed: bool) -> None:
    """The mask agrees on each set, and objects overlap on frames that hold some."""
    assert judge(found, 0.999, "").passed is passed


def test_one_tolerance_moves_both_bars() -> None:
    """A mask that may differ in a thousandth may lose a fiftieth of its objects."""
    assert least_iou(0.999) == pytest.approx(0.98)
    assert least_iou(0.9) == 0.0


@pytest.mark.parametrize(
    ("new", "other", "said"),
    [
        ((10.0, 0.9999), (20.0, 1.0), ""),
        ((20.0, 0.9999), (10.0, 0.9999), "slower"),
        ((20.0, 1.0), (10.0, 0.99999), ""),
        ((10.0, 0.9991), (10.0, 0.9999), "less accurate"),
        ((10.0, 0.9999), (10.4, 0.9999), ""),
    ],
)
def test_worse_is_slower_at_no_gain_or_less_alike(
    new: tuple[float, float], other: tuple[float, float], said: str
) -> None:
    """Neither more alike nor faster, and behind in one of both, is worse."""
    verdicts = [judge([told(agreement)], 0.999, "") for _, agreement in (new, other)]
    found = worse_than(new[0], verdicts[0], other[0], verdicts[1])

    assert found.startswith(said)
    assert bool(found) == bool(said)


@pytest.mark.parametrize("whole", ["", "instance"])
def test_fp16_is_close_to_fp32(whole: str, make_model: MakeModel) -> None:
    """Logits of the fp16 network differ by rounding alone."""
    source = make_model(net={"whole": whole}).file.read_bytes()
    wanted, got = (run(network, IMAGES[0]) for network in (source, to_fp16(source)))

    assert got.dtype == np.float32
    assert np.abs(got - wanted).max() < 0.01 * np.abs(wanted).max()


def test_fp16_keeps_normalisation_in_fp32(make_model: MakeModel) -> None:
    """Convolutions have fp16 weights; what normalises has fp32 parameters and input."""
    source = make_model(net={"whole": "instance"}).file.read_bytes()
    graph = onnx.load_from_string(to_fp16(source, half_input=True)).graph
    kinds = {each.name: each.data_type for each in graph.initializer}
    by = {node.output[0]: node for node in graph.node}
    norms = [node for node in graph.node if node.op_type == "InstanceNormalization"]

    assert norms
    for norm in norms:
        assert {kinds[name] for name in norm.input[1:]} == {onnx.TensorProto.FLOAT}
        assert by[norm.input[0]].op_type == "Cast"
    weights = {kinds[n.input[1]] for n in graph.node if n.op_type == "Conv"}
    assert weights == {onnx.TensorProto.FLOAT16}
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.parametrize(
    ("times", "fits", "near", "layer"),
    [
        (1.0, True, False, "t5 (Conv, 6 of 27)"),
        (5e3, True, True, "t24 (Conv, 25 of 27)"),
        (1e6, False, True, "t24 (Conv, 25 of 27)"),
    ],
)
def test_the_range_of_activations_is_told_with_its_layer(
    times: float, fits: bool, near: bool, layer: str, make_model: MakeModel
) -> None:
    """Values near or beyond what fp16 holds are found, and so is the layer that gives them."""
    model = onnx.load(make_model().file)
    weights = next(each for each in model.graph.initializer if each.name == "w0")
    weights.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(weights) * np.float32(times), "w0")
    )
    found = activation_range(model.SerializeToString(), IMAGES)

    assert (found.fits_fp16, found.near_limit) == (fits, near)
    assert found.layer == layer


@pytest.mark.parametrize("symmetric", [False, True])
def test_int8_quantises_all_but_the_ends(symmetric: bool, make_model: MakeModel) -> None:
    """Convolutions between the first and the last have INT8 weights per channel."""
    source = make_model().file.read_bytes()
    network = to_int8(source, IMAGES, symmetric=symmetric)
    graph = onnx.load_from_string(network).graph
    by = {node.output[0]: node for node in graph.node}
    quantised = [
        by.get(node.input[1]) is not None and by[node.input[1]].op_type == "DequantizeLinear"
        for node in graph.node
        if node.op_type in ("Conv", "ConvTranspose")
    ]
    zeros = {
        numpy_helper.to_array(each).any()
        for each in graph.initializer
        if each.name.endswith("zero_point")
    }

    assert quantised == [False, *[True] * (len(quantised) - 2), False]
    assert np.corrcoef(run(source, IMAGES[0]).ravel(), run(network, IMAGES[0]).ravel())[0, 1] > 0.99
    if symmetric:
        assert zeros == {np.False_}


def test_quantising_prints_nothing(
    make_model: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    """Standard output stays free for the answer."""
    to_int8(make_model().file.read_bytes(), IMAGES)

    assert capsys.readouterr().out == ""


def test_what_is_no_network_cannot_be_converted() -> None:
    """A graph without a single node of numbers is refused in words."""
    with pytest.raises(ModelError, match="cannot be quantised"):
        to_int8(
            onnx.helper.make_model(
                onnx.helper.make_graph(
                    [onnx.helper.make_node("Identity", ["a"], ["b"])],
                    "nothing",
                    [onnx.helper.make_tensor_value_info("a", onnx.TensorProto.STRING, [1])],
                    [onnx.helper.make_tensor_value_info("b", onnx.TensorProto.STRING, [1])],
                )
            ).SerializeToString(),
            IMAGES,
        )


@pytest.mark.parametrize("place", [0, 3, 5])
def test_the_layer_that_was_changed_is_named(place: int, make_model: MakeModel) -> None:
    """Of two networks that differ in one convolution's weights, that convolution is named."""
    source = make_model().file.read_bytes()
    model = onnx.load_from_string(source)
    convolution = [node for node in model.graph.node if node.op_type == "Conv"][place]
    for each in model.graph.initializer:
        if each.name == convolution.input[1]:
            each.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(each), each.name))
    found = parting(source, model.SerializeToString(), IMAGES[0])
    number = list(model.graph.node).index(convolution) + 1

    assert found is not None
    assert f"(Conv, {number} of {len(model.graph.node)})" in found.layer
    assert found.before == 0.0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_layers_are_compared_across_engines(precision: str, make_model: MakeModel) -> None:
    """OpenVINO's layers differ from ONNX Runtime's by the precision and no more."""
    source = make_model().file.read_bytes()
    found = parting(source, source, IMAGES[0], openvino_precision=precision)

    assert found is not None
    assert found.difference < (1e-4 if precision == "fp32" else 0.05)


def test_layers_of_a_quantised_network_are_found(make_model: MakeModel) -> None:
    """Quantised layers are compared where the next layer reads them, after clipping."""
    source = make_model().file.read_bytes()
    found = parting(source, to_int8(source, IMAGES), IMAGES[0])

    assert found is not None
    assert 0 < found.difference < 0.3


def test_reference_is_the_network_itself(make_model: MakeModel) -> None:
    """The engine that all are compared with gives what the ONNX file says, run plainly."""
    model = make_model()
    engine = OnnxRuntimeEngine(model.file, 1)
    got = engine.run(IMAGES[0])
    engine.close()

    np.testing.assert_allclose(got, run(model.file.read_bytes(), IMAGES[0]), atol=1e-5)


def test_half_precision_is_filled_as_the_service_fills_it() -> None:
    """Counts beyond what half precision holds are clipped, as in the service, and not infinite."""
    counts = np.full((60, 61), 65535, np.uint16)
    picture = Picture(counts, 0.0, 2.0, (1, 1, 64, 64))
    out = np.empty((2, 1, 64, 64), np.float16)
    picture.fill(out)

    assert np.all(out == np.float16(65504))
    assert np.all(picture.values() == np.float32(131070))


class Deciding:
    """A deciding engine whose lent places work once, as a GPU's may: ONNX Runtime's otherwise."""

    name, version, precision, input_shape, decides = "once", "1", "fp32", None, True

    def __init__(self, file: Path) -> None:
        self.within = OnnxRuntimeEngine(file, 1)

    @contextmanager
    def request(self, shape: Any, streams: int) -> Iterator[Any]:
        """Lend a place that forgets its input when it has run."""
        with self.within.request(shape, streams) as request:
            run = {"infer": request.infer, "decide": request.decide}

            def once(what: str) -> Any:
                return run.pop(what)() if len(run) == 2 else pytest.fail("run twice")

            yield SimpleNamespace(
                input=request.input, infer=lambda: once("infer"), decide=lambda: once("decide")
            )


def test_a_place_is_asked_once(make_model: MakeModel, tmp_path: Path) -> None:
    """Logits and masks of an engine that decides come from two places, each filled anew."""
    model = make_model()
    head = append_decision(onnx.load(model.file), stride=4, threshold=0.5)
    onnx.save(head, tmp_path / "head.onnx")
    plain = OnnxRuntimeEngine(model.file, 1)
    picture = Picture.of(IMAGES[0])
    found = answer(Deciding(tmp_path / "head.onnx"), picture, model.manifest)  # type: ignore[arg-type]
    wanted = answer(plain, picture, model.manifest)
    plain.close()

    assert likeness("", [wanted], [found]).mask_agreement > 0.9999


def test_calibration_patches_are_of_one_shape(make_model: MakeModel, tmp_path: Path) -> None:
    """Frames smaller than a patch, of several sizes, still calibrate INT8."""
    model = open_model(make_model().file)
    for name, rows, columns in (("a", 96, 128), ("b", 270, 64), ("c", 64, 300), ("d", 33, 57)):
        write_run(tmp_path / "run" / name, 1, 1, height_px=rows, width_px=columns)
    material = gather(model, tmp_path / "run", None)

    assert {patch.shape for patch in material.calibration} == {(1, 1, 256, 256)}
    assert to_int8(model.file.read_bytes(), material.calibration)
