"""Weights in a pickle: tensors and plain values only, never code."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from segbatch.errors import ModelError
from segbatch.learn.checkpoint import SCHEMA, Card
from segbatch.learn.intake.facts import name_of
from segbatch.learn.intake.forms.export import module_to_onnx
from segbatch.learn.intake.forms.pickles import told_of
from segbatch.learn.intake.forms.sound import look_at_weights
from segbatch.learn.nets import UNet

if TYPE_CHECKING:
    from pathlib import Path

    from segbatch.learn.intake.facts import Facts, Wishes

RESAVE = (
    "load it where it was made and save only the weights, torch.save(net.state_dict(), FILE), "
    "or export to ONNX"
)
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
    except (
        *(OSError, EOFError, RuntimeError, KeyError, ValueError, TypeError, IndexError),
        *(AttributeError, AssertionError, pickle.UnpicklingError),
    ) as error:
        raise _refusal(file) from error


def _refusal(file: Path) -> ModelError:
    """Say in plain words what a file is that torch does not load as weights."""
    try:
        form, called = told_of(file)
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        return ModelError(f"{file}: {_short(error)}", "a whole file of torch.save", "copy it again")
    if called:
        return ModelError(
            f"{file}: {form} that calls {called}",
            "tensors and plain values: a pickle of anything else would run code when it is loaded",
            RESAVE,
        )
    if "protocol" in form or form.startswith("a plain pickle"):
        return ModelError(
            f"{file}: {form}", "weights as torch.save writes them by itself, of protocol 2", RESAVE
        )
    return ModelError(
        f"{file}: {form}, of which a part is missing or damaged",
        "a whole file of torch.save",
        "copy it again",
    )


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
        holds = f"a {type(content).__name__}"
        if isinstance(content, dict):
            holds = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise ModelError(
            f"{file}: a file of torch.save with {holds}, no table of tensors",
            f"weights by name, or a {SCHEMA} checkpoint",
            "save the weights by themselves, torch.save(net.state_dict(), FILE)",
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
        look_at_weights(content["weights"].items(), str(file))
        card = msgspec.convert(content["manifest"], Card)
        net = UNet(card.architecture)
        net.load_state_dict(content["weights"])
    except (msgspec.ValidationError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"checkpoint {file}: {_short(error)}",
            f"a {SCHEMA} file of plain weights",
            "train the network again, or give an ONNX file",
        ) from error
    facts.kind, facts.name = "checkpoint", name_of(card.name)
    facts.classes, facts.normalisation = card.classes, card.normalisation
    facts.threshold, facts.command = card.threshold, card.command
    facts.metrics = card.metrics
    facts.training = {"architecture": msgspec.to_builtins(card.architecture), **card.training}
    facts.outside = "sigmoid" if card.architecture.classes == 1 else "softmax"
    return module_to_onnx(net.eval(), str(file))
