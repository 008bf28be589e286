"""Small torch networks: written in each form that torch has, taken in, and run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from segbatch.infer.engine.cpu.onnxruntime_engine import OnnxRuntimeEngine
from segbatch.infer.engine.manifest import Manifest, load_model
from segbatch.learn.intake import load_network
from segbatch.learn.intake.facts import Wishes
from segbatch.learn.nets import Architecture, build

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

TINY = Architecture(base=4, depth=2, convolutions=1)


def tiny(seed: int = 0, **changes: Any) -> nn.Module:
    """Return a small U-Net of random weights."""
    from msgspec.structs import replace

    return build(replace(TINY, **changes), seed).eval()


def taken(source: Path, folder: Path, **wishes: Any) -> tuple[Manifest, Path]:
    """Take a network in and return its manifest and ONNX file."""
    model = load_model(load_network(source, folder, wishes=Wishes(**wishes)))
    return model.manifest, model.file


def answer(network: Path, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a network with the reference engine."""
    engine = OnnxRuntimeEngine(network, 1)
    try:
        return engine.run(image)
    finally:
        engine.close()


def noise(*shape: int) -> NDArray[np.float32]:
    """Return an image of noise."""
    return np.random.default_rng(8).random(shape, np.float32)


def of_torch(net: nn.Module, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a module."""
    with torch.inference_mode():
        return np.asarray(net(torch.from_numpy(image)).numpy())


def write(kind: str, net: nn.Module, folder: Path) -> Path:
    """Write a network in one of the forms that torch has."""
    file = folder / f"net.{kind}"
    example = torch.zeros(2, 1, 32, 48)
    if kind == "traced":
        torch.jit.trace(net, example).save(file)
    elif kind == "scripted":
        torch.jit.script(net).save(file)
    elif kind == "static":
        torch.export.save(torch.export.export(net, (example,)), file.with_suffix(".pt2"))
        return file.with_suffix(".pt2")
    elif kind == "dynamic":
        free = {0: torch.export.Dim("n"), **{i: 4 * torch.export.Dim(f"s{i}") for i in (2, 3)}}
        program = torch.export.export(net, (example,), dynamic_shapes=(free,))
        torch.export.save(program, file.with_suffix(".pt2"))
        return file.with_suffix(".pt2")
    return file
