"""The networks in torch, with the weights of their ONNX files, and the decision behind them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from segbatch.learn.nets import Architecture, UNet

if TYPE_CHECKING:
    from segbatch.infer.engine.manifest import Model


def as_trained(model: Model) -> UNet:
    """Return the network as its users have it: in fp32, with batch norm after convolutions.

    The file has batch norm folded into the convolutions; here it adds what was folded in. So
    the function is that of the file, and the work that of the network as it was trained.
    """
    architecture = msgspec.convert(model.manifest.training["architecture"], Architecture)
    net = UNet(architecture)
    graph = onnx.load(model.file).graph
    known = {
        each.name: torch.from_numpy(numpy_helper.to_array(each).copy())
        for each in graph.initializer
    }
    state = net.state_dict()
    for name in list(state):
        if name in known:
            state[name] = known[name]
    for name, folded in known.items():
        if name.endswith(".weight_bias"):
            block, _, place = name.removesuffix(".weight_bias").rpartition(".")
            norm = f"{block}.{int(place) + 1}"
            state[f"{norm}.weight"] = torch.full_like(folded, math.sqrt(1.0 + 1e-5))
            state[f"{norm}.bias"] = folded
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


def folded(net: UNet) -> UNet:
    """Return the network with batch norm folded into its convolutions."""
    made = copy.deepcopy(net)
    for block in (*made.down, *made.merge):
        layers: list[nn.Module] = []
        for layer in block:
            if isinstance(layer, nn.BatchNorm2d):
                convolution: Any = layers[-1]
                layers[-1] = fuse_conv_bn_eval(convolution, layer)
            else:
                layers.append(layer)
        block._modules.clear()
        for at, layer in enumerate(layers):
            block.add_module(str(at), layer)
    return made


class CudnnUNet(nn.Module):
    """The folded network, each convolution with its bias and rectifier as one call of cuDNN."""

    def __init__(self, net: UNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of ``x``; see ``UNet.forward``."""
        net = self.net
        skips: list[Tensor] = []
        for block in net.down[:-1]:
            x = _block(block, x)
            skips.append(x)
            x = net.pool(x)
        x = _block(net.down[-1], x)
        for upsample, merge in zip(net.up, net.merge, strict=True):
            x = _block(merge, torch.cat((skips.pop(), upsample(x)), 1))
        return net.head(x)  # type: ignore[no-any-return]


def _block(block: Any, x: Tensor) -> Tensor:
    for layer in block:
        if isinstance(layer, nn.Conv2d):
            if x.is_cuda:
                x = torch.cudnn_convolution_relu(
                    x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, 1
                )
            else:
                x = functional.relu(layer(x))
    return x


def deciding(
    net: Callable[[Tensor], Tensor], stride: int, threshold: float
) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Return what gives logits, mask, confidence and entropy, as ``learn.export.head`` does."""
    least = math.log(threshold / (1.0 - threshold))

    def decide(image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits = net(image).float()
        mask = (logits[:, 0] > least).to(torch.uint8)
        apart = logits.abs()
        rare = torch.exp(-apart)
        minor = rare / (1.0 + rare)
        # p log p of both classes, without a logarithm of what may be zero.
        entropy = (torch.log1p(rare) + apart * minor) / math.log(2.0)
        p = torch.sigmoid(logits)
        confidence = torch.where(logits > least, p, 1.0 - p)
        blocks = [functional.avg_pool2d(each, stride)[:, 0] for each in (confidence, entropy)]
        return logits, mask, blocks[0], blocks[1]

    return decide
