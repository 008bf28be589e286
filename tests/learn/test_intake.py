"""Any network in: recognised by content, looked at, and the same network as before."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from segbatch.errors import ModelError
from segbatch.infer.decide import sigmoid, softmax
from segbatch.infer.engine.manifest import Fixed, Manifest, ZScore, load_model
from segbatch.infer.engine.onnxruntime_engine import OnnxRuntimeEngine
from segbatch.learn.checkpoint import Card, save_checkpoint
from segbatch.learn.intake import load_network
from segbatch.learn.intake.facts import Wishes
from segbatch.learn.intake.forms.export import module_to_onnx
from segbatch.learn.nets import Architecture, build
from tests.infer.networks import Graph, draw_unet, save

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# The exporter for TorchScript is on its way out of torch, and says so.
pytestmark = [pytest.mark.learn, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

TINY = Architecture(base=4, depth=2, convolutions=1)


class WithLists(nn.Module):
    """A network that keeps its skips in a list and resizes to a skip's size."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)])
        self.head = nn.Conv2d(12, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        skips: list[torch.Tensor] = []
        for conv in self.down:
            x = torch.relu(conv(x))
            skips.append(x)
            x = nn.functional.max_pool2d(x, 2)
        wide = nn.functional.interpolate(x, scale_factor=4.0, mode="nearest")
        near = nn.functional.interpolate(skips[-1], scale_factor=2.0, mode="bilinear")
        return self.head(torch.cat((skips[0], near, wide), 1))  # type: ignore[no-any-return]


def tiny(seed: int = 0, **changes: Any) -> nn.Module:
    """Return a small U-Net of random weights."""
    from msgspec.structs import replace

    return build(replace(TINY, **changes), seed).eval()


def taken(source: Path, folder: Path, **wishes: Any) -> tuple[Manifest, Path]:
    """Take a network in and return its manifest and ONNX file."""
    model = load_model(load_network(source, folder, wishes=Wishes(**wishes)))
    return model.manifest, model.file


def answer(network: Path, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a network with the reference engine."""
    engine = OnnxRuntimeEngine(network, 1)
    try:
        return engine.run(image)
    finally:
        engine.close()


def noise(*shape: int) -> NDArray[np.float32]:
    """Return an image of noise."""
    return np.random.default_rng(8).random(shape, np.float32)


def of_torch(net: nn.Module, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a module."""
    with torch.inference_mode():
        return np.asarray(net(torch.from_numpy(image)).numpy())


def write(kind: str, net: nn.Module, folder: Path) -> Path:
    """Write a network in one of the forms that torch has."""
    file = folder / f"net.{kind}"
    example = torch.zeros(2, 1, 32, 48)
    if kind == "traced":
        torch.jit.trace(net, example).save(file)
    elif kind == "scripted":
        torch.jit.script(net).save(file)
    elif kind == "static":
        torch.export.save(torch.export.export(net, (example,)), file.with_suffix(".pt2"))
        return file.with_suffix(".pt2")
    elif kind == "dynamic":
        free = {0: torch.export.Dim("n"), **{i: 4 * torch.export.Dim(f"s{i}") for i in (2, 3)}}
        program = torch.export.export(net, (example,), dynamic_shapes=(free,))
        torch.export.save(program, file.with_suffix(".pt2"))
        return file.with_suffix(".pt2")
    return file


@pytest.mark.parametrize("kind", ["traced", "static", "dynamic"])
@pytest.mark.parametrize("up", ["transpose", "bilinear"])
def test_torch_forms_become_the_same_network(kind: str, up: str, tmp_path: Path) -> None:
    """A traced module and an exported program answer as the module they were made of."""
    net = tiny(up=up)
    manifest, network = taken(write(kind, net, tmp_path), tmp_path / "out")
    image = noise(2, 1, 40, 36)

    assert (manifest.stride, manifest.exact_tiling, manifest.output) == (4, True, "sigmoid")
    np.testing.assert_allclose(answer(network, image), of_torch(net, image), atol=1e-5)


def test_scripted_lists_are_gone(tmp_path: Path) -> None:
    """A scripted network that keeps its skips in a list becomes plain operators of any size."""
    net = WithLists().eval()
    _, network = taken(write("scripted", net, tmp_path), tmp_path / "out")
    image = noise(2, 1, 40, 36)

    assert not any("Sequence" in node.op_type for node in onnx.load(network).graph.node)
    np.testing.assert_allclose(answer(network, image), of_torch(net, image), atol=1e-5)


def test_a_checkpoint_says_everything(tmp_path: Path) -> None:
    """Of a checkpoint of segbatch nothing is assumed."""
    card = Card(
        name="squares",
        classes=["square"],
        architecture=TINY,
        normalisation=ZScore(),
        threshold=0.3,
        command="segbatch train",
    )
    net = build(TINY, 4).eval()
    save_checkpoint(tmp_path / "c.pt", net, card)
    manifest, network = taken(tmp_path / "c.pt", tmp_path / "out")
    image = noise(1, 1, 24, 24)

    assert manifest.source is not None
    assert (manifest.source.kind, manifest.source.assumed) == ("checkpoint", [])
    assert (manifest.name, manifest.classes, manifest.threshold) == ("squares", ["square"], 0.3)
    np.testing.assert_allclose(answer(network, image), of_torch(net, image), atol=1e-5)


@pytest.mark.parametrize("outputs", [1, 3])
def test_an_activation_is_taken_off(outputs: int, tmp_path: Path) -> None:
    """Sigmoid or softmax at the end of a graph is removed, and the manifest says which it was."""
    net = tiny(classes=outputs)
    active = nn.Sequential(net, nn.Sigmoid() if outputs == 1 else nn.Softmax(1)).eval()
    manifest, network = taken(write("traced", active, tmp_path), tmp_path / "out")
    image = noise(1, 1, 24, 24)

    assert manifest.output == ("sigmoid" if outputs == 1 else "softmax")
    assert len(manifest.classes) == max(1, outputs - 1)
    np.testing.assert_allclose(answer(network, image), of_torch(net, image), atol=1e-5)


@pytest.mark.parametrize("outputs", [1, 3])
def test_an_activation_of_other_operators_is_undone(outputs: int, tmp_path: Path) -> None:
    """Probabilities made by other operators are recognised, and given back by what follows."""
    net = tiny(classes=outputs)

    class Active(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if outputs == 1:
                return 0.5 * torch.tanh(0.5 * x) + 0.5
            grown = torch.exp(x - x.amax(1, keepdim=True))
            return grown / grown.sum(1, keepdim=True)

    active = nn.Sequential(net, Active()).eval()
    manifest, network = taken(write("traced", active, tmp_path), tmp_path / "out")
    image = noise(1, 1, 24, 24)
    logits = answer(network, image)[0]
    found = sigmoid(logits) if manifest.output == "sigmoid" else softmax(logits)

    np.testing.assert_allclose(found, of_torch(active, image)[0], atol=1e-5)


def test_an_argmax_is_taken_off(tmp_path: Path) -> None:
    """A network that ends in the most probable class is read up to its logits."""
    draw_unet(tmp_path / "net.onnx", outputs=4)
    model = onnx.load(tmp_path / "net.onnx")
    name = model.graph.output[0].name
    model.graph.node.append(helper.make_node("ArgMax", [name], ["mask"], axis=1))
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("mask", TensorProto.INT64, ["n", 1, "y", "x"])
    )
    onnx.save(model, tmp_path / "mask.onnx")
    manifest, network = taken(tmp_path / "mask.onnx", tmp_path / "out")
    image = noise(1, 1, 24, 24)

    assert manifest.output == "softmax"
    np.testing.assert_array_equal(answer(network, image), answer(tmp_path / "net.onnx", image))


def test_decisions_are_refused(tmp_path: Path) -> None:
    """A network that answers zeros and ones has no probabilities to record."""
    net = nn.Sequential(tiny(), nn.Hardtanh(0, 1), nn.ReLU(), Sharp()).eval()
    with pytest.raises(ModelError, match="zeros and ones"):
        load_network(write("traced", net, tmp_path), tmp_path / "out")


class Sharp(nn.Module):
    """Nought or one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return decisions."""
        return (x > 0.2).float()


def test_several_independent_answers_need_a_choice(tmp_path: Path) -> None:
    """Probabilities that do not exclude each other are refused until one channel is named."""
    net = tiny(classes=2)
    active = nn.Sequential(net, nn.Sigmoid()).eval()
    file = write("traced", active, tmp_path)
    with pytest.raises(ModelError, match="do not exclude") as caught:
        load_network(file, tmp_path / "out")
    manifest, network = taken(file, tmp_path / "out", channel=1, classes=["edge"])
    image = noise(1, 1, 24, 24)

    assert "--channel" in caught.value.remedy
    assert (manifest.output, manifest.classes) == ("sigmoid", ["edge"])
    np.testing.assert_allclose(answer(network, image), of_torch(net, image)[:, 1:], atol=1e-5)


def test_several_outputs_need_a_choice(tmp_path: Path) -> None:
    """A network of several outputs is refused until one is named."""
    graph = Graph(1, seed=1)
    first = graph.convolve(1, rectify=False)
    graph.last = "image"
    graph.channels = 1
    graph.convolve(1, rectify=False)
    save(tmp_path / "net.onnx", graph, 1, 1)
    model = onnx.load(tmp_path / "net.onnx")
    model.graph.output.append(
        helper.make_tensor_value_info(first, TensorProto.FLOAT, ["n", 1, "y", "x"])
    )
    onnx.save(model, tmp_path / "two.onnx")
    with pytest.raises(ModelError, match="--output"):
        load_network(tmp_path / "two.onnx", tmp_path / "out")
    _, network = taken(tmp_path / "two.onnx", tmp_path / "out", output=graph.last)
    image = noise(1, 1, 9, 9)

    np.testing.assert_array_equal(answer(network, image), answer(tmp_path / "net.onnx", image))


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_found(channels: int, tmp_path: Path) -> None:
    """Whether a network takes grey or colour frames is found out of what it accepts."""
    net = tiny(in_channels=channels)
    torch.jit.trace(net, torch.zeros(1, channels, 32, 32)).save(tmp_path / "net.pt")

    assert taken(tmp_path / "net.pt", tmp_path / "out")[0].input_channels == channels


def test_two_channels_are_refused(tmp_path: Path) -> None:
    """A network of two input channels has no frame to run on."""
    draw_unet(tmp_path / "net.onnx", channels=2)

    with pytest.raises(ModelError, match="2 input channels"):
        load_network(tmp_path / "net.onnx", tmp_path / "out")


@pytest.mark.parametrize("up", ["nearest", "linear"])
def test_a_network_of_one_size_is_freed(up: str, tmp_path: Path) -> None:
    """A graph that states one size, also to resize to, runs on any multiple of its stride."""
    draw_unet(tmp_path / "free.onnx", up=up, depth=1)
    model = onnx.load(tmp_path / "free.onnx")
    for place, side in ((0, 1), (2, 32), (3, 48)):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_value = side
        model.graph.output[0].type.tensor_type.shape.dim[place].dim_value = side
    [resize] = [node for node in model.graph.node if node.op_type == "Resize"]
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.array([1, 8, 32, 48], np.int64), "sizes")
    )
    resize.input[2] = ""
    resize.input.append("sizes")
    onnx.save(model, tmp_path / "stated.onnx")
    manifest, network = taken(tmp_path / "stated.onnx", tmp_path / "out")
    image = noise(2, 1, 20, 34)

    assert manifest.stride == 2
    np.testing.assert_allclose(
        answer(network, image), answer(tmp_path / "free.onnx", image), atol=1e-6
    )


def test_half_precision_and_old_operators_are_read(tmp_path: Path) -> None:
    """A graph with half-precision ends and an old operator set becomes one of today, in float32."""
    draw_unet(tmp_path / "net.onnx", depth=1)
    model = onnx.load(tmp_path / "net.onnx")
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    model.opset_import[0].version = 11
    onnx.save(model, tmp_path / "half.onnx")
    _, network = taken(tmp_path / "half.onnx", tmp_path / "out")
    image = noise(1, 1, 16, 16)
    found = onnx.load(network)

    assert found.opset_import[0].version >= 13
    np.testing.assert_allclose(
        answer(network, image), answer(tmp_path / "net.onnx", image), atol=2e-2
    )


def test_functions_of_a_model_are_written_out(tmp_path: Path) -> None:
    """Operators that a file defines itself, out of standard ones, are read."""
    draw_unet(tmp_path / "net.onnx", depth=1)
    model = onnx.load(tmp_path / "net.onnx")
    [relu, *_] = [node for node in model.graph.node if node.op_type == "Relu"]
    standard = [helper.make_opsetid("", 17)]
    body = [helper.make_node("Relu", ["a"], ["b"])]
    model.functions.append(helper.make_function("own", "Bend", ["a"], ["b"], body, standard))
    model.opset_import.append(helper.make_opsetid("own", 1))
    relu.op_type, relu.domain = "Bend", "own"
    onnx.save(model, tmp_path / "own.onnx")
    _, network = taken(tmp_path / "own.onnx", tmp_path / "out")
    image = noise(1, 1, 16, 16)

    np.testing.assert_array_equal(answer(network, image), answer(tmp_path / "net.onnx", image))


def test_a_network_in_training_is_refused(tmp_path: Path) -> None:
    """A network whose answer to an image depends on the others of its batch is refused."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), Batched()).eval()
    with pytest.raises(ModelError, match="in a batch"):
        load_network(write("traced", net, tmp_path), tmp_path / "out")


class Batched(nn.Module):
    """Subtracts the mean of the whole batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return deviations."""
        return x - x.mean(0, keepdim=True)


def test_what_the_caller_says_wins(tmp_path: Path) -> None:
    """Flags replace what would have been assumed, and nothing is then said to be assumed of it."""
    draw_unet(tmp_path / "net.onnx", outputs=1)
    command = [sys.executable, "-m", "segbatch.learn.intake"]
    command += [str(tmp_path / "net.onnx"), str(tmp_path / "out"), "--name", "mine"]
    command += ["--class", "cell", "--normalisation", "fixed:100:0.5", "--threshold", "0.7"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    manifest = load_model(tmp_path / "out" / "mine.json").manifest

    assert said["assumed"] == ["the answers are logits, no activation was found: sigmoid"]
    assert (manifest.name, manifest.classes, manifest.threshold) == ("mine", ["cell"], 0.7)
    assert manifest.normalisation == Fixed(100.0, 0.5)


@pytest.mark.parametrize(
    ("flags", "code", "named"),
    [
        (["--normalisation", "magic"], 2, "magic"),
        (["--class", "a", "--class", "b"], 3, "2 class names"),
        (["--channel", "7"], 3, "channel 7"),
        (["--output", "nothing"], 3, "nothing"),
    ],
)
def test_wrong_flags_are_named(flags: list[str], code: int, named: str, tmp_path: Path) -> None:
    """A flag that does not fit ends the command with its exit code and a reason in JSON."""
    draw_unet(tmp_path / "net.onnx", outputs=1)
    command = [sys.executable, "-m", "segbatch.learn.intake"]
    command += [str(tmp_path / "net.onnx"), str(tmp_path / "out"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == code
    assert named in json.loads(done.stdout)["got"]


def test_weights_of_no_table_are_refused(tmp_path: Path) -> None:
    """A pickle of something else than weights by name is refused."""
    torch.save([1, 2], tmp_path / "net.pt")

    with pytest.raises(ModelError, match="no table of tensors"):
        load_network(tmp_path / "net.pt", tmp_path / "out")


def test_export_is_compared_with_its_module() -> None:
    """A module that answers differently once it is exported is refused."""

    class Fickle(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x if torch.compiler.is_exporting() else x

    with pytest.raises(ModelError, match="differs"):
        module_to_onnx(Fickle().eval(), "fickle")
