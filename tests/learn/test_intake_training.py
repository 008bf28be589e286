"""Networks that were saved in training mode: turned to evaluation, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from segbatch.errors import ModelError
from segbatch.infer.engine.cpu.onnxruntime_engine import OnnxRuntimeEngine
from segbatch.infer.engine.manifest import load_model
from segbatch.learn.intake import load_network

pytestmark = [
    pytest.mark.learn,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # Tracing follows the checks of sizes inside the layers, and says so.
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


def network(layer: str, nested: bool) -> nn.Module:
    """Return a small network with one layer that training changes."""
    torch.manual_seed(0)
    made = {
        "batch norm": nn.BatchNorm2d(4),
        "dropout": nn.Dropout(0.5),
        "dropout of channels": nn.Dropout2d(0.5),
    }[layer]
    inside = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), made, nn.ReLU(), nn.Conv2d(4, 1, 1))
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sequential(inside)) if nested else inside
    # Running statistics that are not those of noise.
    for step in range(3):
        net(torch.rand(4, 1, 16, 16) * 5 + step)
    return net.train()


LAYERS = ("batch norm", "dropout", "dropout of channels")


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("nested", [False, True])
def test_a_script_is_turned_to_evaluation(layer: str, nested: bool, tmp_path: Path) -> None:
    """A script that was saved in training mode answers as its network does in evaluation."""
    net = network(layer, nested)
    torch.jit.script(net).save(tmp_path / "net.pt")
    model = load_model(load_network(tmp_path / "net.pt", tmp_path / "out"))
    image = np.random.default_rng(1).random((2, 1, 16, 24), np.float32)
    engine = OnnxRuntimeEngine(model.file, 1)
    with torch.inference_mode():
        wanted = net.eval()(torch.from_numpy(image)).numpy()

    np.testing.assert_allclose(engine.run(image), wanted, atol=1e-5)
    engine.close()


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("form", ["traced", "program"])
def test_what_was_traced_in_training_is_refused(
    form: str, layer: str, nested: bool, tmp_path: Path
) -> None:
    """A trace or program of training mode, which nothing turns back, is refused by its layer."""
    net, image = network(layer, nested), torch.rand(2, 1, 16, 16)
    if form == "traced":
        torch.jit.trace(net, image, check_trace=False).save(tmp_path / "net.pt")
    else:
        torch.export.save(torch.export.export(net, (image,)), tmp_path / "net.pt2")
    (file,) = tmp_path.glob("net.*")

    with pytest.raises(ModelError, match=f"{layer.partition(' of')[0]} in training mode") as caught:
        load_network(file, tmp_path / "out")
    assert "call model.eval() before torch.jit.save" in caught.value.remedy
    assert not list((tmp_path / "out").iterdir())


def test_a_trace_in_evaluation_is_taken(tmp_path: Path) -> None:
    """Batch norm, dropout and instance norm that were traced in evaluation mode are taken in."""
    layers = (nn.BatchNorm2d(4), nn.Dropout2d(0.5), nn.InstanceNorm2d(4, affine=True))
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *layers, nn.Conv2d(4, 1, 1)).eval()
    torch.jit.trace(net, torch.rand(2, 1, 16, 16)).save(tmp_path / "net.pt")

    assert load_network(tmp_path / "net.pt", tmp_path / "out").is_file()
