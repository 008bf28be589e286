"""What a network answers: brought to logits of one output, or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from segbatch.errors import ModelError
from segbatch.infer.decide import sigmoid, softmax
from segbatch.learn.intake import load_network
from tests.infer.networks import Graph, draw_unet, save
from tests.learn.forms import answer, noise, of_torch, taken, tiny, write

if TYPE_CHECKING:
    from pathlib import Path

# The exporter for TorchScript is on its way out of torch, and says so.
pytestmark = [pytest.mark.learn, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


class Sharp(nn.Module):
    """Nought or one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return decisions."""
        return (x > 0.2).float()


class Batched(nn.Module):
    """Subtracts the mean of the whole batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return deviations."""
        return x - x.mean(0, keepdim=True)


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


def test_a_network_in_training_is_refused(tmp_path: Path) -> None:
    """A network whose answer to an image depends on the others of its batch is refused."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), Batched()).eval()
    with pytest.raises(ModelError, match="in a batch"):
        load_network(write("traced", net, tmp_path), tmp_path / "out")
