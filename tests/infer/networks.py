"""Small networks of random weights, drawn as ONNX graphs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segbatch.infer.engine.manifest import BitDepth, Manifest


class Graph:
    """Adds nodes of random weights one after another and names what they give."""

    def __init__(self, channels: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.last = "image"
        self.channels = channels

    def constant(self, values: NDArray[Any]) -> str:
        """Store a tensor and return its name."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """Append a node and return its output's name."""
        self.last = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [self.last], **attributes))
        return self.last

    def convolve(self, out: int, side: int = 3, rectify: bool = True) -> str:
        """Convolve with zero padding; weights scaled so that the spread is kept."""
        scale = (2.0 / (self.channels * side * side)) ** 0.5
        kernel = self.rng.normal(0, scale, (out, self.channels, side, side)).astype(np.float32)
        bias = self.rng.normal(0, 0.1, out).astype(np.float32)
        given = [self.last, self.constant(kernel), self.constant(bias)]
        self.node("Conv", given, pads=[side // 2] * 4)
        self.channels = out
        return self.node("Relu", [self.last]) if rectify else self.last

    def upsample(self, how: str, out: int) -> str:
        """Double both sides."""
        if how == "transpose":
            scale = (1.0 / self.channels) ** 0.5
            kernel = self.rng.normal(0, scale, (self.channels, out, 2, 2)).astype(np.float32)
            self.channels = out
            return self.node("ConvTranspose", [self.last, self.constant(kernel)], strides=[2, 2])
        scales = self.constant(np.array([1, 1, 2, 2], np.float32))
        self.node("Resize", [self.last, "", scales], mode=how)
        return self.convolve(out, side=1, rectify=False)

    def whole_frame_step(self, kind: str) -> None:
        """Add a step that looks at the whole frame: instance normalisation or a gate."""
        if kind == "instance":
            ones = self.constant(np.ones(self.channels, np.float32))
            zeros = self.constant(np.zeros(self.channels, np.float32))
            self.node("InstanceNormalization", [self.last, ones, zeros])
        elif kind == "gate":
            here = self.last
            pooled = self.node("GlobalAveragePool", [here])
            self.node("Mul", [here, self.node("Sigmoid", [pooled])])


def draw_unet(
    file: Path,
    *,
    channels: int = 1,
    outputs: int = 1,
    depth: int = 2,
    base: int = 4,
    up: str = "transpose",
    whole: str = "",
    seed: int = 0,
) -> None:
    """Write a U-Net of ``depth`` poolings as ONNX with free batch, Y and X."""
    graph = Graph(channels, seed)
    skips = []
    for level in range(depth + 1):
        graph.convolve(base << level)
        graph.whole_frame_step(whole)
        graph.convolve(base << level)
        if level < depth:
            skips.append(graph.last)
            graph.node("MaxPool", [graph.last], kernel_shape=[2, 2], strides=[2, 2])
    for level in reversed(range(depth)):
        graph.upsample(up, base << level)
        graph.node("Concat", [skips[level], graph.last], axis=1)
        graph.channels = 2 * (base << level)
        graph.convolve(base << level)
        graph.convolve(base << level)
    graph.convolve(outputs, side=1, rectify=False)
    save(file, graph, channels, outputs)


def save(file: Path, graph: Graph, channels: int, outputs: int) -> None:
    """Write the graph with its last tensor as output."""
    free = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "network",
            [free("image", TensorProto.FLOAT, ["n", channels, "y", "x"])],
            [free(graph.last, TensorProto.FLOAT, ["n", outputs, "y", "x"])],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(model)
    onnx.save(model, file)


def manifest_for(network: Path, **changes: Any) -> Manifest:
    """Return a minimal manifest of a network file."""
    given: dict[str, Any] = {
        "name": network.stem,
        "file": network.name,
        "sha256": hashlib.sha256(network.read_bytes()).hexdigest(),
        "classes": ["bead"],
        "normalisation": BitDepth(),
    }
    return msgspec.structs.replace(Manifest(**given), **changes)
