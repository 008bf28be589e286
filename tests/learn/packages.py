"""Small bioimage.io packages, written by the tests that read them."""

from __future__ import annotations

import hashlib
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import nn

from segbatch.infer.engine.manifest import Manifest, load_model
from segbatch.learn.intake import load_network
from segbatch.learn.intake.facts import Wishes
from segbatch.learn.intake.forms.export import module_to_onnx
from segbatch.learn.nets import Architecture, build

Array = NDArray[np.float64]
Steps = list[tuple[str, dict[str, Any]]]
ZSCORE_04 = ("zero_mean_unit_variance", {"mode": "per_sample", "axes": "yx"})
SIGMOID: Steps = [("sigmoid", {})]


@cache
def network(channels: int = 1, outputs: int = 1, seed: int = 0) -> nn.Module:
    """Return a small U-Net of random weights."""
    shape = Architecture(in_channels=channels, classes=outputs, base=4, depth=1, convolutions=1)
    return build(shape, seed).eval()


@cache
def exported(net: nn.Module) -> bytes:
    """Return a network as ONNX; to export it takes seconds."""
    return module_to_onnx(net, "package").SerializeToString()  # type: ignore[no-any-return]


def counts(channels: int = 1, side: int = 32) -> NDArray[np.float32]:
    """Return a test image in counts, (1, C, Y, X)."""
    rng = np.random.default_rng(4)
    return rng.integers(80, 1000, (1, channels, side, side)).astype(np.float32)


def run(net: nn.Module, image: NDArray[Any]) -> NDArray[np.float32]:
    """Run a module on an array."""
    with torch.inference_mode():
        return np.asarray(net(torch.from_numpy(np.asarray(image, np.float32))).numpy())


def sigmoid(x: Any) -> Any:
    """Return the probability of a logit."""
    return 1.0 / (1.0 + np.exp(-np.asarray(x, np.float64)))


def zscore(x: Array) -> Array:
    """Return a frame in standard deviations from its mean."""
    return (x - x.mean()) / (x.std() + 1e-6)


class Package:
    """A package under construction: its description, to be changed, and its files.

    Parameters
    ----------
    folder
        Made.
    version
        Of the format.
    net
        The network.
    before, after
        Steps by name and arguments.
    image, answer
        The test arrays: counts, and what the whole chain gives.
    kinds
        Forms of the weights: ``onnx``, ``torchscript``, ``pytorch_state_dict``.
    """

    def __init__(
        self,
        folder: Path,
        version: str,
        net: nn.Module,
        before: Steps,
        after: Steps,
        image: NDArray[Any],
        answer: NDArray[Any],
        kinds: tuple[str, ...] = ("onnx",),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        np.save(folder / "test_input.npy", image)
        np.save(folder / "test_output.npy", answer)
        weights = {kind: self._weights(kind, net, image) for kind in kinds}
        new = version.startswith("0.5")
        tensors = self._tensors_05 if new else self._tensors_04
        self.told: dict[str, Any] = {
            "format_version": version,
            "type": "model",
            "name": "a test network",
            "weights": weights,
            **tensors(before, after, image.shape[1], answer.shape[1]),
        }

    def write(self, name: str = "rdf.yaml") -> Path:
        """Write the description and return the folder."""
        (self.folder / name).write_text(yaml.safe_dump(self.told), encoding="utf-8")
        return self.folder

    def zipped(self) -> Path:
        """Return the package as an archive."""
        self.write()
        file = self.folder.with_suffix(".zip")
        with zipfile.ZipFile(file, "w") as archive:
            for each in sorted(self.folder.iterdir()):
                archive.write(each, each.name)
        return file

    def _weights(self, kind: str, net: nn.Module, image: NDArray[Any]) -> dict[str, Any]:
        file = self.folder / f"weights.{kind}"
        if kind == "onnx":
            file.write_bytes(exported(net))
        elif kind == "torchscript":
            torch.jit.trace(net, torch.from_numpy(image)).save(file)
        else:
            torch.save(net.state_dict(), file)
        return {"source": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}

    def _tensors_04(self, before: Steps, after: Steps, inputs: int, outputs: int) -> dict[str, Any]:
        def steps(given: Steps) -> list[dict[str, Any]]:
            return [{"name": name, "kwargs": kwargs} for name, kwargs in given]

        return {
            "inputs": [{"name": "raw", "axes": "bcyx", "preprocessing": steps(before)}],
            "outputs": [{"name": "mask", "axes": "bcyx", "postprocessing": steps(after)}],
            "test_inputs": ["test_input.npy"],
            "test_outputs": ["test_output.npy"],
        }

    def _tensors_05(self, before: Steps, after: Steps, inputs: int, outputs: int) -> dict[str, Any]:
        def tensor(name: str, file: str, steps: Steps, which: str, count: int) -> dict[str, Any]:
            axes: list[dict[str, Any]] = [
                {"type": "batch"},
                {"type": "channel", "channel_names": [f"c{i}" for i in range(count)]},
                {"type": "space", "id": "y", "unit": "micrometer", "scale": 0.345, "size": 32},
                {"type": "space", "id": "x", "unit": "micrometer", "scale": 0.345, "size": 32},
            ]
            return {
                "id": name,
                "axes": axes,
                "test_tensor": {"source": file},
                which: [{"id": step, "kwargs": kwargs} for step, kwargs in steps],
            }

        return {
            "inputs": [tensor("raw", "test_input.npy", before, "preprocessing", inputs)],
            "outputs": [tensor("mask", "test_output.npy", after, "postprocessing", outputs)],
        }


def plain(folder: Path, version: str = "0.5.4", **more: Any) -> Package:
    """Return a package of one class, normalised by its own statistics."""
    net, image = network(), counts()
    before: Steps = [ZSCORE_04 if version < "0.5" else ("zero_mean_unit_variance", {})]
    answer = sigmoid(run(net, zscore(image.astype(np.float64))))
    return Package(folder, version, net, before, SIGMOID, image, answer, **more)


def taken(source: Path, folder: Path, **wishes: Any) -> Manifest:
    """Take a package in and return its manifest."""
    return load_model(load_network(source, folder, wishes=Wishes(**wishes))).manifest
