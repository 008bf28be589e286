"""The networks that speed is compared on, each as an exported model and as torch runs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import nn

from segbatch.acquire.simulate import write_varied
from segbatch.infer.engine.machine import available_threads
from segbatch.infer.engine.manifest import Model, ZScore
from segbatch.infer.engine.network.models import open_model
from segbatch.learn.checkpoint import Card
from segbatch.learn.data import Example, Patches, read_examples
from segbatch.learn.export.network import export
from segbatch.learn.nets import LARGE, Architecture, UNet, build

SEED = 1
_SIDE_PX = 256
_PATCHES = 12


@dataclass(frozen=True)
class Network:
    """A model for the engines and the same architecture for torch."""

    label: str
    model: Model
    torch: UNet

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return sum(weights.numel() for weights in self.torch.parameters())


def shipped() -> Network:
    """Return the bead network of the package.

    Its ONNX file has batch norm folded away, so torch runs the architecture
    with other weights: time does not depend on them.
    """
    model = open_model("")
    architecture = msgspec.convert(model.manifest.training["architecture"], Architecture)
    return Network("shipped bead network", model, build(architecture, SEED).eval())


def large(folder: Path) -> Network:
    """Build, fit a little and export the large U-Net into ``folder``.

    Untrained, it would answer frames with noise, and the time to count and
    write a mask of noise says nothing. So batch norm is calibrated on simulated
    frames, and the last layer, a weighted sum of features, is solved for the
    true masks by least squares.
    """
    manifest_file = folder / "large.json"
    normalisation = ZScore()
    net, examples = fitted(folder / "material", normalisation)
    card = Card(
        name="large",
        classes=["bead"],
        architecture=LARGE,
        normalisation=normalisation,
        command="python bench/throughput.py",
    )
    crops = [
        Example(e.name, e.pixels[:512, :512], e.truth[:512, :512], e.offset, e.scale)
        for e in examples[:2]
    ]
    export(net, card, manifest_file, crops, available_threads())
    return Network("U-Net, depth 4, base 32", open_model(manifest_file), net)


def fitted(material: Path, normalisation: ZScore) -> tuple[UNet, list[Example]]:
    """Return the large U-Net, fitted a little, and the frames, written to ``material``."""
    write_varied(material, 6, SEED)
    examples = read_examples(material, normalisation)
    net = build(LARGE, SEED)
    _fit_last_layer(net, examples)
    return net.eval(), examples


def _fit_last_layer(net: UNet, examples: list[Example]) -> None:
    patches = Patches(examples, _SIDE_PX, np.random.default_rng(SEED))
    image, truth = patches.batch(_PATCHES)
    features: list[torch.Tensor] = []
    hook = net.merge[-1].register_forward_hook(lambda _m, _i, out: features.append(out))
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # running statistics become the mean over the patches
        net.train()(image)
        features.clear()
        net.eval()(image)
        hook.remove()
        x = features[0].movedim(1, -1).reshape(-1, net.head.in_channels).double()
        wanted = torch.where(truth.reshape(-1) > 0, 4.0, -4.0).double()
        ones = torch.ones(len(x), 1, dtype=x.dtype)
        solved = torch.linalg.lstsq(torch.cat([x, ones], 1), wanted[:, None]).solution.float()
        net.head.load_state_dict(
            {"weight": solved[:-1].reshape(net.head.weight.shape), "bias": solved[-1]}
        )
