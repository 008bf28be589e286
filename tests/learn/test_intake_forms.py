"""Any network in: recognised by content, looked at, and the same network as before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from segbatch.errors import ModelError
from segbatch.infer.engine.manifest import ZScore
from segbatch.learn.checkpoint import Card, save_checkpoint
from segbatch.learn.intake import load_network
from segbatch.learn.intake.forms.export import module_to_onnx
from segbatch.learn.nets import build
from tests.infer.networks import draw_unet
from tests.learn.forms import TINY, answer, noise, of_torch, taken, tiny, write

if TYPE_CHECKING:
    from pathlib import Path

# The exporter for TorchScript is on its way out of torch, and says so.
pytestmark = [pytest.mark.learn, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


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
