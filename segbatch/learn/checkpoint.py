"""Checkpoints: a trained network, and what must be known of it, in one ``.pt`` file."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import torch

from segbatch.errors import ModelError, StorageError
from segbatch.infer.engine.manifest import Normalisation
from segbatch.learn.nets import Architecture, UNet
from segbatch.wholefile import whole_file

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA: Literal["segbatch.checkpoint/1"] = "segbatch.checkpoint/1"


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a checkpoint says of its network; becomes the exported model's manifest."""

    schema: Literal["segbatch.checkpoint/1"] = SCHEMA
    name: str
    classes: list[str]
    architecture: Architecture
    normalisation: Normalisation
    threshold: float = 0.5
    command: str = ""
    training: dict[str, Any] = {}
    metrics: dict[str, Any] = {}


def save_checkpoint(file: Path, net: UNet, card: Card) -> None:
    """Write weights and card so that ``torch.load(weights_only=True)`` reads them.

    Raises
    ------
    StorageError
        The file cannot be written.
    """
    part = file.with_name(f".{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(part, file) as handle:
            torch.save({"manifest": msgspec.to_builtins(card), "weights": net.state_dict()}, handle)
    except (OSError, RuntimeError) as error:
        raise StorageError(f"{file}: {error}", "a file that can be written") from error


def load_checkpoint(file: Path) -> tuple[UNet, Card]:
    """Read a checkpoint; its network is in evaluation mode on the processor.

    Raises
    ------
    ModelError
        The file cannot be read, holds code, or is not such a checkpoint.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        card = msgspec.convert(content["manifest"], Card)
        net = UNet(card.architecture)
        net.load_state_dict(content["weights"])
    except (
        OSError,
        EOFError,
        pickle.UnpicklingError,
        RuntimeError,
        KeyError,
        TypeError,
        msgspec.ValidationError,
    ) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"checkpoint {file}: {said[0]}",
            f"a {SCHEMA} file of plain weights",
            "train the network again, or give an ONNX file with its manifest",
        ) from error
    return net.eval(), card
