"""U-Nets with encoders of image classification, as segmentation-models-pytorch lays them out.

That package cannot be asked for (it brings torchvision, and with it a torch for GPUs), but its
weights are common: modules here have its names and order, so that its ``state_dict`` fits
strictly. Sources: He et al., CVPR 2016 (ResNet, with torchvision's stride on the 3x3 layer of a
bottleneck); Simonyan and Zisserman, ICLR 2015 (VGG); segmentation-models-pytorch 0.6.0.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

Encoder = Literal["resnet34", "resnet50", "vgg16", "vgg16_bn"]
RESNETS: dict[str, tuple[int, ...]] = {"resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
VGG16 = (2, 2, 3, 3, 3)
VGG_WIDTHS = (64, 128, 256, 512, 512)


class _Residual(nn.Module):
    """Two 3x3 layers, or 1x1, 3x3 and 1x1 with ``wide``, and the way around them."""

    def __init__(self, channels_in: int, planes: int, stride: int, wide: bool) -> None:
        super().__init__()
        out = 4 * planes if wide else planes
        if wide:
            self.conv1 = nn.Conv2d(channels_in, planes, 1, bias=False)
            self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
            self.conv3 = nn.Conv2d(planes, out, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(out)
        else:
            self.conv1 = nn.Conv2d(channels_in, planes, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(planes), nn.BatchNorm2d(planes)
        self.wide = wide
        self.downsample: nn.Module | None = None
        if stride != 1 or channels_in != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return what follows of ``x``."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.wide:
            y = self.bn3(self.conv3(torch.relu(y)))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class _ResNet(nn.Module):
    """Features at 1/2, 1/4 ... 1/32 of the input's sides."""

    def __init__(self, name: str, in_channels: int) -> None:
        super().__init__()
        wide = name == "resnet50"
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.widths, channels = [64], 64
        for stage, blocks in enumerate(RESNETS[name]):
            planes = 64 << stage
            layers = []
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                layers.append(_Residual(channels, planes, stride, wide))
                channels = 4 * planes if wide else planes
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
            self.widths.append(channels)

    def forward(self, x: Tensor, depth: int) -> list[Tensor]:
        """Return ``depth`` features, finest first."""
        features = [torch.relu(self.bn1(self.conv1(x)))]
        for stage in range(1, depth):
            x = self.maxpool(features[0]) if stage == 1 else features[-1]
            features.append(getattr(self, f"layer{stage}")(x))
        return features


class _Vgg(nn.Module):
    """Features at 1/2, 1/4 ... 1/32 of the input's sides, each before its pooling but the last."""

    def __init__(self, normed: bool, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, self.pools = in_channels, []
        for width, count in zip(VGG_WIDTHS, VGG16, strict=True):
            for _ in range(count):
                layers.append(nn.Conv2d(channels, width, 3, 1, 1))
                layers += [nn.BatchNorm2d(width)] if normed else []
                layers.append(nn.ReLU())
                channels = width
            self.pools.append(len(layers))
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.widths = [*VGG_WIDTHS[1:], VGG_WIDTHS[-1]]

    def forward(self, x: Tensor, depth: int) -> list[Tensor]:
        """Return ``depth`` features, finest first."""
        features = []
        ends = [*self.pools[1:], len(self.features)]
        x = self.features[: self.pools[0]](x)
        for start, stop in pairwise([self.pools[0], *ends[:depth]]):
            x = self.features[start:stop](x)
            features.append(x)
        return features


def _layer(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, 1, 1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


class _Merge(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = _layer(channels_in, channels_out)
        self.conv2 = _layer(channels_out, channels_out)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """Return ``x`` at twice its size, merged with what skipped it."""
        x = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv2(self.conv1(x if skip is None else torch.cat((x, skip), 1)))  # type: ignore[no-any-return]


class _Decoder(nn.Module):
    def __init__(self, encoder: list[int], widths: list[int], center: bool) -> None:
        super().__init__()
        deep = encoder[len(widths) - 1]
        self.center = nn.Sequential(_layer(deep, deep), _layer(deep, deep)) if center else None
        skips = [*encoder[: len(widths) - 1][::-1], 0]
        self.blocks = nn.ModuleList(
            _Merge(channels + skip, out)
            for channels, skip, out in zip([deep, *widths[:-1]], skips, widths, strict=True)
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return features of the input's size."""
        x = features[-1] if self.center is None else self.center(features[-1])
        skips: list[Tensor | None] = [*features[-2::-1], None]
        for block, skip in zip(self.blocks, skips, strict=True):
            x = block(x, skip)
        return x


class SmpUnet(nn.Module):
    """A U-Net on an encoder, with the module names of segmentation-models-pytorch.

    Parameters
    ----------
    encoder
        Which one.
    in_channels, classes
        Of input and output.
    widths
        Channels of the decoder's blocks, coarsest first; as many as the encoder has depth.

    Notes
    -----
    Maps float32 (N, ``in_channels``, Y, X) to logits (N, ``classes``, Y, X), Y and X multiples
    of ``2**len(widths)``.
    """

    def __init__(self, encoder: Encoder, in_channels: int, classes: int, widths: list[int]) -> None:
        super().__init__()
        vgg = encoder.startswith("vgg")
        made = _Vgg(encoder == "vgg16_bn", in_channels) if vgg else _ResNet(encoder, in_channels)
        self.encoder = made
        self.decoder = _Decoder(made.widths, widths, center=vgg)
        self.segmentation_head = nn.Sequential(nn.Conv2d(widths[-1], classes, 3, 1, 1))
        self.depth = len(widths)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of ``x``."""
        return self.segmentation_head(self.decoder(self.encoder(x, self.depth)))  # type: ignore[no-any-return]
