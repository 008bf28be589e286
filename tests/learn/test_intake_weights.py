"""Plain weights: loaded into the architecture that is named, strictly."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from segbatch.acquire.simulate import write_run
from segbatch.errors import ModelError
from segbatch.infer.engine.cpu.onnxruntime_engine import OnnxRuntimeEngine
from segbatch.infer.engine.manifest import load_model
from segbatch.learn.intake import load_network
from segbatch.learn.intake.forms.arch import network_for
from segbatch.learn.intake.forms.smp import Encoder, SmpUnet
from segbatch.learn.nets import Architecture, build
from tests.service import runs

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.learn

# Names and shapes of `Unet(ENCODER, in_channels=1, classes=2)` in segmentation-models-pytorch
# 0.6.0, one a line and sorted: how many, and their SHA-256.
LAYOUTS = {
    "resnet34": (278, "96437769ccca5d2a4f049aa816d1337535c546f11e0cd7d62f388d2a9fcdb19d"),
    "resnet50": (380, "e642c147e599074282160fda9f7bce7616f77ffdecc46444a62d87a6141cd990"),
    "vgg16": (100, "0956c772e7ef87e35aa5e8fdcee637aa84f3be6d13ddf61dd0f3f0a04eb9b50a"),
    "vgg16_bn": (165, "27f70510b81f0b556b73ed01538e375eb6274841f4fb318234c3321d94d8101f"),
}
WIDTHS = [256, 128, 64, 32, 16]


@pytest.mark.parametrize("encoder", LAYOUTS)
def test_weights_have_the_names_and_shapes_of_the_library(encoder: Encoder) -> None:
    """Our networks hold tensors of exactly the names and shapes that the library's do."""
    with torch.device("meta"):
        state = SmpUnet(encoder, 1, 2, WIDTHS).state_dict()
    lines = sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in state.items())
    found = hashlib.sha256("\n".join(lines).encode()).hexdigest()

    assert (len(lines), found) == LAYOUTS[encoder]


@pytest.mark.parametrize("encoder", LAYOUTS)
@pytest.mark.parametrize(("channels", "classes", "widths"), [(1, 1, WIDTHS), (3, 4, [24, 16, 8])])
def test_what_is_not_named_is_read_off_the_shapes(
    encoder: Encoder, channels: int, classes: int, widths: list[int], tmp_path: Path
) -> None:
    """Channels, classes and the decoder's widths and depth follow from the weights."""
    torch.manual_seed(0)
    net = SmpUnet(encoder, channels, classes, widths).eval()
    again, told = network_for(net.state_dict(), f"smp-unet-{encoder}", tmp_path)
    image = torch.randn(1, channels, 64, 96)
    with torch.inference_mode():
        assert torch.equal(again.eval()(image), net(image))

    assert (told["in_channels"], told["classes"], told["widths"]) == (channels, classes, widths)


@pytest.mark.parametrize("wrapped", ["plain", "state_dict", "module."])
def test_weights_are_found_in_what_trainers_save(wrapped: str, tmp_path: Path) -> None:
    """Weights by themselves, in a trainer's checkpoint, or under a common prefix are the same."""
    net = build(Architecture(base=4, depth=2, convolutions=1, up="bilinear"), 3).eval()
    state = net.state_dict()
    saved: object = state
    if wrapped == "state_dict":
        saved = {"epoch": 7, "state_dict": state}
    elif wrapped == "module.":
        saved = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save(saved, tmp_path / "net.pt")
    model = load_model(load_network(tmp_path / "net.pt", tmp_path / "out", arch="segbatch-unet"))
    image = np.random.default_rng(0).random((1, 1, 16, 24), np.float32)
    engine = OnnxRuntimeEngine(model.file, 1)
    with torch.inference_mode():
        wanted = net(torch.from_numpy(image)).numpy()

    np.testing.assert_allclose(engine.run(image), wanted, atol=1e-5)
    assert model.manifest.training["architecture"]["depth"] == 2


def test_a_run_is_processed_with_plain_weights(tmp_path: Path) -> None:
    """`process --model` takes weights alone where `--arch` names their network."""
    net = build(Architecture(base=4, depth=2, convolutions=1), 3).eval()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    write_run(tmp_path / "run", 1, seed=1, height_px=64, width_px=96)
    asked = ("process", tmp_path / "run", "--model", tmp_path / "net.pt")
    refused = runs.segbatch(*asked)
    done = runs.segbatch(*asked, "--arch", "segbatch-unet", "--set", "quality.enabled=false")

    assert refused.returncode == 3
    assert "--arch segbatch-unet" in refused.stderr
    assert done.returncode == 0, done.stderr
    (record,) = runs.records(tmp_path / "run")
    assert record["model"]["name"] == "net"


@pytest.mark.parametrize("arch", [None, "unknown", "smp-unet-vgg16"])
def test_the_architecture_that_fits_is_named(arch: str | None, tmp_path: Path) -> None:
    """Without an architecture, or with a wrong one, the error says which one the weights fit."""
    torch.save(SmpUnet("resnet34", 1, 1, [8, 8, 8, 8, 8]).state_dict(), tmp_path / "net.pt")

    with pytest.raises(ModelError, match=r"without their network|do not fit") as caught:
        load_network(tmp_path / "net.pt", tmp_path / "out", arch=arch)
    assert caught.value.remedy == "they fit --arch smp-unet-resnet34"


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    """Weights that fit nothing known are refused with the architectures that there are."""
    torch.save({"weight": torch.zeros(3)}, tmp_path / "net.pt")

    with pytest.raises(ModelError, match="without their network") as caught:
        load_network(tmp_path / "net.pt", tmp_path / "out")
    assert "smp-unet-resnet50" in caught.value.wanted


def test_a_missing_tensor_is_an_error(tmp_path: Path) -> None:
    """Weights are loaded strictly: one that is missing is named."""
    state = build(Architecture(base=4, depth=1), 0).state_dict()
    del state["head.bias"]
    torch.save(state, tmp_path / "net.pt")

    with pytest.raises(ModelError, match=r"head\.bias"):
        load_network(tmp_path / "net.pt", tmp_path / "out", arch="segbatch-unet")


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["resnet34", "resnet50", "vgg16"])
def test_large_encoders_are_taken_in(encoder: Encoder, tmp_path: Path) -> None:
    """Weights of a full-sized network become a model of stride 32 with a finite halo."""
    torch.manual_seed(0)
    torch.save(SmpUnet(encoder, 1, 1, WIDTHS).state_dict(), tmp_path / "net.pt")
    arch = f"smp-unet-{encoder}"
    manifest = load_model(load_network(tmp_path / "net.pt", tmp_path / "out", arch=arch)).manifest

    assert manifest.stride == 32
    assert manifest.exact_tiling
