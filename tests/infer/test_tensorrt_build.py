"""Engines of TensorRT are built of sound networks only, by the real library, without a GPU."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from segbatch.errors import EngineError, ModelError, StorageError, UsageError
from segbatch.infer.engine.made.artifact import load_artifact
from segbatch.infer.engine.tensorrt import Progress, build
from segbatch.infer.engine.tensorrt.builder import checked
from segbatch.infer.engine.tensorrt.flavour import FLAVOURS, installed, load, logger
from tests.infer.networks import draw_unet
from tests.infer.rtx import SHAPE, SOURCE, needs_rtx, small_engine

pytestmark = needs_rtx
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def filtering(
    dtype: str = "float32", sides: tuple[object, ...] = ("n", 1, "y", "x"), kind: str = "Conv"
) -> onnx.ModelProto:
    """Return a network of one node: a 3x3 mean by default."""
    kernel = numpy_helper.from_array(np.full((1, 1, 3, 3), 1 / 9, dtype), "kernel")
    inputs, attributes = (
        (["image", "kernel"], {"pads": [1] * 4})
        if kind == "Conv"
        else (
            ["image"],
            {},
        )
    )
    free = helper.make_tensor_value_info
    return helper.make_model(
        helper.make_graph(
            [helper.make_node(kind, inputs, ["logits"], "only", **attributes)],
            "network",
            [free("image", TYPES[dtype], sides)],
            [free("logits", TYPES[dtype], ["n", 1, "y", "x"])],
            [kernel] if kind == "Conv" else [],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def test_the_library_says_yes_to_nothing() -> None:
    """The library's parser takes an empty file and a garbled one, and understands no layer."""
    trt = load("tensorrt_rtx")
    for content in (b"", b"\x12\x00" * 5):
        builder = trt.Builder(logger("tensorrt_rtx"))
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))

        assert trt.OnnxParser(network, logger("tensorrt_rtx")).parse(content)
        assert network.num_layers == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x12\x00" * 5,
        b"garbage" * 20,
        filtering().SerializeToString()[:-20],
        onnx.ModelProto(ir_version=8).SerializeToString(),
    ],
    ids=["empty", "garbled", "garbage", "cut off", "without a graph"],
)
def test_what_is_no_network_is_refused(content: bytes, tmp_path: Path) -> None:
    """A file that is no network is refused before the library sees it, and nothing is written."""
    with pytest.raises(ModelError, match="that are no network"):
        build(content, SHAPE, tmp_path, "net", source=SOURCE)

    assert list(tmp_path.iterdir()) == []


def test_weights_elsewhere_are_refused() -> None:
    """A network whose weights stand in another file is refused: that file may be any."""
    model = filtering()
    [weights] = model.graph.initializer
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="weights.bin")

    with pytest.raises(ModelError, match="other files"):
        checked(model.SerializeToString())


def test_an_engine_and_its_manifest(tmp_path: Path) -> None:
    """An engine is bytes of the library with a manifest that says what they are."""
    artifact = small_engine(tmp_path)

    assert load_artifact(artifact.manifest_file) == artifact
    made = artifact.manifest
    assert artifact.manifest_file.name == "net.tensorrt_rtx-fp32.engine.json"
    assert (made.engine, made.precision, made.input_shape) == ("tensorrt_rtx", "fp32", SHAPE)
    assert made.version == load("tensorrt_rtx").__version__
    assert made.source_sha256 == SOURCE.sha256
    assert not made.decides
    typed = hashlib.sha256((tmp_path / "net.onnx").read_bytes()).hexdigest()
    assert made.options["typed_sha256"] == typed
    assert made.options["input_dtype"] == "float32"


def test_an_engine_without_a_gpu_names_none(tmp_path: Path) -> None:
    """An engine for RTX is for any GPU that the library lists, and its manifest names none."""
    hardware = small_engine(tmp_path).manifest.hardware

    assert hardware.gpu is None
    assert hardware.compute_capability is None


def test_turing_has_engines_of_its_own(tmp_path: Path) -> None:
    """An engine for GPUs of one compute capability says so; one that no GPU has is refused."""
    content = filtering().SerializeToString()

    def made_for(capability: str) -> str | None:
        artifact = build(
            content, SHAPE, tmp_path, "net", source=SOURCE, compute_capability=capability
        )
        return artifact.manifest.hardware.compute_capability

    assert made_for("7.5") == "7.5"
    with pytest.raises(EngineError, match=r"compute capability 9\.0"):
        made_for("9.0")


def test_two_builds_are_the_same(tmp_path: Path) -> None:
    """The RTX flavour makes the same bytes of the same network every time."""
    first = small_engine(tmp_path).file.read_bytes()
    second = small_engine(tmp_path).file.read_bytes()

    assert first == second


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_precision_is_the_files(dtype: str, tmp_path: Path) -> None:
    """An engine takes and gives numbers of the type that the network's file states."""
    artifact = build(filtering(dtype).SerializeToString(), SHAPE, tmp_path, "net", source=SOURCE)

    assert artifact.manifest.options["input_dtype"] == dtype


def test_bytes_come_out(tmp_path: Path) -> None:
    """A network that ends in bytes becomes an engine that gives bytes."""
    model = filtering()
    model.graph.node[0].output[0] = "smooth"
    zero = numpy_helper.from_array(np.float32(0), "zero")
    model.graph.initializer.append(zero)
    model.graph.node.append(helper.make_node("Greater", ["smooth", "zero"], ["over"]))
    model.graph.node.append(helper.make_node("Cast", ["over"], ["mask"], to=TensorProto.UINT8))
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("mask", TensorProto.UINT8, ["n", 1, "y", "x"])
    )

    artifact = build(model.SerializeToString(), SHAPE, tmp_path, "net", source=SOURCE)

    assert artifact.manifest.decides
    assert artifact.manifest.options["outputs"] == ["mask"]


def test_fixed_sides_are_kept(tmp_path: Path) -> None:
    """A network of fixed sides is built for those, and refused for others."""
    content = filtering(sides=SHAPE).SerializeToString()

    assert build(content, SHAPE, tmp_path, "net", source=SOURCE).file.stat().st_size > 0
    with pytest.raises(EngineError, match="whose input is"):
        build(content, (2, 1, 64, 48), tmp_path, "other", source=SOURCE)


def test_a_shape_that_does_not_go_through(tmp_path: Path) -> None:
    """A shape that the network cannot take is refused in the library's words, and nothing stays."""
    draw_unet(tmp_path / "net.onnx")

    with pytest.raises(EngineError, match="dimensions must be equal"):
        build(tmp_path / "net.onnx", (1, 1, 33, 48), tmp_path, "net", source=SOURCE)
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_an_operator_that_it_does_not_know(tmp_path: Path) -> None:
    """A network with an operator that the library does not take is refused, the node named."""
    content = filtering(kind="Det").SerializeToString()

    with pytest.raises(EngineError, match="only"):
        build(content, SHAPE, tmp_path, "net", source=SOURCE)


def test_progress_is_told(tmp_path: Path) -> None:
    """While it builds, phases and their steps are told, each to its end."""
    draw_unet(tmp_path / "net.onnx")
    told: list[Progress] = []

    build(tmp_path / "net.onnx", SHAPE, tmp_path, "net", source=SOURCE, progress=told.append)

    assert {each.phase for each in told if each.done == 0} == {
        each.phase for each in told if each.done == each.steps
    }
    assert all(0 <= each.done <= each.steps for each in told)


def test_an_interrupt_stops_the_build(tmp_path: Path) -> None:
    """An interrupt by the keyboard while it builds stops the build and is not lost."""
    draw_unet(tmp_path / "net.onnx")

    def interrupt(_progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "net.onnx", SHAPE, tmp_path, "net", source=SOURCE, progress=interrupt)

    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.UINT8])
def test_numbers_that_are_not_carried(kind: int) -> None:
    """An image of other numbers than single or half precision is refused, the type named."""
    model = filtering(kind="Identity")
    model.graph.input[0].type.tensor_type.elem_type = kind
    model.graph.output[0].type.tensor_type.elem_type = kind

    with pytest.raises(ModelError, match="float32 or float16"):
        checked(model.SerializeToString())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """An engine that cannot be written is an error that names its file."""
    draw_unet(tmp_path / "net.onnx")
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(StorageError, match=r"net\.tensorrt_rtx-fp32\.engine"):
        build(tmp_path / "net.onnx", SHAPE, tmp_path / "file", "net", source=SOURCE)


@pytest.mark.skipif("tensorrt" in installed(), reason="full TensorRT is installed")
def test_full_tensorrt_needs_its_gpu(tmp_path: Path) -> None:
    """An engine of full TensorRT is refused in words where that cannot be used."""
    with pytest.raises(EngineError, match="tensorrt is not installed") as refused:
        build(
            filtering().SerializeToString(),
            SHAPE,
            tmp_path,
            "net",
            source=SOURCE,
            flavour="tensorrt",
        )

    assert "tensorrt_rtx" in refused.value.remedy


def test_what_is_not_installed_is_named() -> None:
    """A flavour that is not installed is named with the command that installs it."""
    missing = [name for name in FLAVOURS if name not in installed()]
    for flavour in missing:
        with pytest.raises(UsageError, match="pip install"):
            load(flavour)
