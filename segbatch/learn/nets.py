"""The U-Net family: convolutions, pooling and upsampling only, so that tiles can be exact."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import msgspec
import torch
from torch import Tensor, nn

Up = Literal["transpose", "bilinear"]


class Architecture(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a ``UNet`` is built from; stands in checkpoints so that they can be rebuilt.

    ``base`` channels at full resolution, doubled at each of ``depth`` poolings;
    ``convolutions`` of 3x3 a block; ``up`` is a learnt 2x2 transposed
    convolution or bilinear interpolation followed by a 1x1 convolution.
    """

    in_channels: int = 1
    classes: int = 1
    base: int = 32
    depth: int = 4
    convolutions: int = 2
    up: Up = "transpose"

    @property
    def stride(self) -> int:
        """Sides of an input must be multiples of this, px."""
        return int(2**self.depth)


# What speed is compared on: 7.76 million parameters, 7.24 million with bilinear upsampling.
LARGE = Architecture(base=32, depth=4)
# The shipped bead network; docs/model.md has the measurements that it was chosen by.
BEADS = Architecture(base=8, depth=3)


class _Block(nn.Sequential):
    """3x3 convolutions, same-padded with zeros, each with batch norm and ReLU."""

    def __init__(self, channels_in: int, channels_out: int, convolutions: int) -> None:
        layers: list[nn.Module] = []
        for i in range(convolutions):
            layers += [
                nn.Conv2d(
                    channels_in if i == 0 else channels_out, channels_out, 3, 1, 1, bias=False
                ),
                nn.BatchNorm2d(channels_out),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)


class UNet(nn.Module):
    """U-Net (Ronneberger et al., MICCAI 2015) with batch norm and same padding.

    Parameters
    ----------
    architecture
        Its shape.

    Notes
    -----
    Maps float32 (N, ``in_channels``, Y, X) to logits (N, ``classes``, Y, X),
    Y and X multiples of ``architecture.stride``. In evaluation mode batch norm
    is a fixed scale and shift, and no layer sees the whole image, so a finite
    halo makes tiles exact.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = a = architecture
        widths = [a.base * 2**level for level in range(a.depth + 1)]
        self.down = nn.ModuleList(
            _Block(i, o, a.convolutions) for i, o in pairwise([a.in_channels, *widths])
        )
        self.up = nn.ModuleList(_upsampler(a.up, 2 * w, w) for w in reversed(widths[:-1]))
        self.merge = nn.ModuleList(_Block(2 * w, w, a.convolutions) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(widths[0], a.classes, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of ``x``."""
        skips: list[Tensor] = []
        for block in self.down[:-1]:
            x = block(x)
            skips.append(x)
            x = self.pool(x)
        x = self.down[-1](x)
        for upsample, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat((skips.pop(), upsample(x)), 1))
        return self.head(x)  # type: ignore[no-any-return]


def _upsampler(up: Up, channels_in: int, channels_out: int) -> nn.Module:
    if up == "transpose":
        return nn.ConvTranspose2d(channels_in, channels_out, 2, 2)
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        nn.Conv2d(channels_in, channels_out, 1),
    )


def build(architecture: Architecture, seed: int) -> UNet:
    """Return a network with He-initialised weights that follow from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = UNet(architecture)
        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return net
