"""Architectures that plain weights can be loaded into; what they leave open is read off shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import msgspec
import torch

from segbatch.errors import ModelError
from segbatch.learn.intake.forms.smp import Encoder, SmpUnet
from segbatch.learn.intake.forms.sound import look_at_weights
from segbatch.learn.nets import Architecture, UNet

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    Weights = dict[str, torch.Tensor]

OURS = "segbatch-unet"
SHOWN = 3
NAMES = (OURS, *(f"smp-unet-{name}" for name in get_args(Encoder)))


def network_for(weights: Weights, arch: str | None, file: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network that holds these weights, and what is to be recorded of it.

    Parameters
    ----------
    weights
        By name.
    arch
        One of ``NAMES``.
    file
        For errors.

    Raises
    ------
    ModelError
        No architecture was named, an unknown one, or one that these weights do not fit.
    """
    look_at_weights(weights.items(), str(file))
    if arch not in NAMES:
        first = ", ".join(list(weights)[:SHOWN])
        raise ModelError(
            f"{file}: weights without their network ({len(weights)} tensors: {first} ...)"
            + (f", and --arch {arch} is not known" if arch else ""),
            f"an architecture: {', '.join(f'--arch {name}' for name in NAMES)}",
            _remedy(weights),
        )
    try:
        net, told = _built(weights, arch)
        net.load_state_dict(weights)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{file}: weights that do not fit --arch {arch}: {_misfit(weights, arch)}",
            f"the weights of one of {', '.join(NAMES)}",
            _remedy(weights),
        ) from error
    return net, {"name": arch, **told}


def _remedy(weights: Weights) -> str:
    fitting = [name for name in NAMES if _fits(weights, name)]
    if fitting:
        return f"they fit --arch {fitting[0]}"
    return "none of these fits: export the network as ONNX where it was trained, and give that file"


def _misfit(weights: Weights, arch: str) -> str:
    """Say which tensors are missing, too many, or of another shape; the first of each."""
    try:
        with torch.device("meta"):
            wanted = _built(weights, arch)[0].state_dict()
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        # Without these not even its size is known.
        missing = str(error.args[0]) if isinstance(error, KeyError) else f"{error}"
        return f"no {missing}, but {', '.join(list(weights)[:SHOWN])} ..."
    told = []
    for what, names in (
        ("missing", [name for name in wanted if name not in weights]),
        ("not known", [name for name in weights if name not in wanted]),
    ):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            told.append(f"{what} {', '.join(names[:SHOWN])}{more}")
    for name in wanted:
        if name in weights and weights[name].shape != wanted[name].shape:
            found, right = tuple(weights[name].shape), tuple(wanted[name].shape)
            told.append(f"{name} of shape {found} where {right} was wanted")
            break
    return "; ".join(told)


def _fits(weights: Weights, arch: str) -> bool:
    try:
        with torch.device("meta"):
            net, _ = _built(weights, arch)
    except (KeyError, IndexError, ValueError, RuntimeError):
        return False
    wanted = {name: tensor.shape for name, tensor in net.state_dict().items()}
    return wanted == {name: tensor.shape for name, tensor in weights.items()}


def _built(weights: Weights, arch: str) -> tuple[nn.Module, dict[str, Any]]:
    if arch == OURS:
        shape = _our_shape(weights)
        return UNet(shape), msgspec.to_builtins(shape)
    encoder = arch.removeprefix("smp-unet-")
    first = "encoder.conv1.weight" if "resnet" in encoder else "encoder.features.0.weight"
    widths: list[int] = []
    while (name := f"decoder.blocks.{len(widths)}.conv1.0.weight") in weights:
        widths.append(len(weights[name]))
    if not 3 <= len(widths) <= 5:
        raise ValueError("decoder of 3 to 5 blocks (decoder.blocks.0.conv1.0.weight ...)")
    told = {
        "in_channels": weights[first].shape[1],
        "classes": len(weights["segmentation_head.0.weight"]),
        "widths": widths,
    }
    return SmpUnet(encoder, **told), told  # type: ignore[arg-type]


def _our_shape(weights: Weights) -> Architecture:
    def many(pattern: str) -> int:
        count = 0
        while pattern.format(count) in weights:
            count += 1
        return count

    # A block is a list of convolution, normalisation and rectifier: every third is a convolution.
    convolutions = 0
    while f"down.0.{3 * convolutions}.weight" in weights:
        convolutions += 1
    return Architecture(
        in_channels=weights["down.0.0.weight"].shape[1],
        classes=len(weights["head.weight"]),
        base=len(weights["down.0.0.weight"]),
        depth=many("down.{}.0.weight") - 1,
        convolutions=convolutions,
        up="transpose" if "up.0.weight" in weights else "bilinear",
    )
