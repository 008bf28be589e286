"""Weights in a pickle: tensors and plain values only, never code."""

from __future__ import annotations

import pickle
import re
import warnings
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from segbatch.errors import ModelError
from segbatch.learn.checkpoint import SCHEMA, Card
from segbatch.learn.intake.forms.export import module_to_onnx
from segbatch.learn.nets import UNet

if TYPE_CHECKING:
    from pathlib import Path

    from segbatch.learn.intake.facts import Facts, Wishes

# Where trainers keep the weights in what they save.
INSIDE = ("state_dict", "model_state_dict", "model", "net", "weights", "params")


def read_weights(file: Path, facts: Facts, wishes: Wishes) -> Any:
    """Return the network of a segbatch checkpoint or of weights with ``--arch``.

    Raises
    ------
    ModelError
        The file holds code, is truncated, or its weights fit no architecture that was named.
    """
    content = load_plain(file)
    if isinstance(content, dict) and isinstance(content.get("manifest"), dict):
        return _checkpoint(file, content, facts)
    from segbatch.learn.intake.forms.arch import network_for

    facts.kind = "state_dict"
    net, told = network_for(plain_weights(content, file), wishes.arch, file)
    facts.training["architecture"] = told
    return module_to_onnx(net.eval(), str(file))


def load_plain(file: Path) -> Any:
    """Unpickle tensors and plain values; anything else in the file is refused and named."""
    try:
        with warnings.catch_warnings():  # of pickles of other versions
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        called = re.search(r"(?:GLOBAL|class|operand) ([\w.]+)", str(error))
        raise ModelError(
            f"{file}: {f'a pickle that calls {called[1]}' if called else _short(error)}",
            "tensors and plain values: a pickle of anything else would run code when it is loaded",
            "save only the weights, torch.save(net.state_dict(), FILE), or export to ONNX",
        ) from error
    except (OSError, EOFError, RuntimeError, KeyError, ValueError, TypeError, IndexError) as error:
        raise ModelError(
            f"{file}: {_short(error)}", "a whole file of torch.save", "copy it again"
        ) from error


def _short(error: object) -> str:
    return " ".join(str(error).split())[:200]


def plain_weights(content: Any, file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors by name from what a trainer saved.

    A name that all have before them (``module.``, ``model.``, ``net.``) is taken off.
    """
    for key in INSIDE:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(v, torch.Tensor) for v in content.values())
    ):
        raise ModelError(
            f"{file}: {type(content).__name__} that is no table of tensors",
            f"weights by name, or a {SCHEMA} checkpoint",
            "save net.state_dict()",
        )
    weights = {str(name): tensor.detach() for name, tensor in content.items()}
    while True:
        first = next(iter(weights)).partition(".")[0] + "."
        if first not in ("module.", "model.", "net.", "_orig_mod.") or not all(
            name.startswith(first) for name in weights
        ):
            return weights
        weights = {name.removeprefix(first): tensor for name, tensor in weights.items()}


def _checkpoint(file: Path, content: dict[str, Any], facts: Facts) -> Any:
    try:
        card = msgspec.convert(content["manifest"], Card)
        net = UNet(card.architecture)
        net.load_state_dict(content["weights"])
    except (msgspec.ValidationError, RuntimeError, KeyError, TypeError) as error:
        raise ModelError(
            f"checkpoint {file}: {_short(error)}",
            f"a {SCHEMA} file of plain weights",
            "train the network again, or give an ONNX file",
        ) from error
    facts.kind, facts.name = "checkpoint", card.name
    facts.classes, facts.normalisation = card.classes, card.normalisation
    facts.threshold, facts.command = card.threshold, card.command
    facts.metrics = card.metrics
    facts.training = {"architecture": msgspec.to_builtins(card.architecture), **card.training}
    facts.outside = "sigmoid" if card.architecture.classes == 1 else "softmax"
    return module_to_onnx(net.eval(), str(file))
