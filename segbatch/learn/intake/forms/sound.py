"""Weights of torch's forms, looked at before a network is built of them or run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from segbatch.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable

EVAL = "call model.eval() before torch.jit.save, torch.export.export or torch.onnx.export"


def look_at_weights(weights: Iterable[tuple[str, torch.Tensor]], told: str) -> None:
    """Raise ModelError where weights are of a 3-D network, or are no numbers."""
    for name, tensor in weights:
        if tensor.ndim == 5:
            raise ModelError(
                f"{told}: a three-dimensional network: {name} has the shape {tuple(tensor.shape)}",
                "a two-dimensional one, whose convolutions have four axes",
                "train or export a network of two-dimensional convolutions",
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"{told}: {name} holds NaN or infinity",
                "finite weights",
                "take an earlier checkpoint: its training had diverged",
            )


def in_training(told: str, layer: str) -> ModelError:
    """Return the refusal of a network whose ``layer`` was written down in training mode."""
    return ModelError(
        f"{told}: {layer} in training mode, which answers otherwise than it was validated with",
        "a network in evaluation mode",
        EVAL,
    )
