"""The decision as part of the network: logits become a mask before they leave the device.

A mask is one byte a pixel where logits are two or four a class, and on a GPU what crosses the
bus and what the processor then does a pixel is what an engine waits for. The graph that is
appended repeats ``segbatch.infer.decide``: the same comparison of logits with the threshold,
the same class of a tie, the same confidence and entropy, the latter two as means over blocks.

It computes in fp32 whatever the network does, with no exponential of a positive number, so that
nothing overflows; logits that are not finite make the entropy of their block NaN, by which
they are noticed.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from segbatch.errors import ModelError
from segbatch.infer.decide import logit

LOGITS: Final = "logits"
MASK: Final = "mask"
CONFIDENCE: Final = "confidence"
ENTROPY: Final = "entropy"
OLDEST_OPSET: Final = 13
# ReduceMax takes its axes as an input from this operator set on.
AXES_AS_INPUT_OPSET: Final = 18


def append_decision(
    network: onnx.ModelProto, *, stride: int, threshold: float | None = None
) -> onnx.ModelProto:
    """Return the network with its decision appended; ``network`` is left as it is.

    Parameters
    ----------
    network
        One output, logits (N, K, Y, X), K stated, of any floating-point type.
    stride
        Side of the blocks, pixels: that of the network.
    threshold
        Probability above which a pixel is of the single class; only for K = 1. For K > 1 the
        most probable class wins, the lower index in a tie.

    Returns
    -------
    onnx.ModelProto
        Outputs ``logits`` as before (under that name); ``mask`` uint8 (N, Y, X), class indices;
        ``confidence`` and ``entropy`` float32 (N, Y // stride, X // stride), means over blocks
        of stride x stride pixels of the winning class's probability and of the entropy of the
        class probabilities in bits. Rows and columns after the last whole block are not in them.

    Raises
    ------
    ModelError
        The graph has no such output, or the threshold does not go with it.
    """
    model = onnx.ModelProto()
    model.CopyFrom(network)
    graph = model.graph
    classes = _classes(graph)
    opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST_OPSET:
        raise ModelError(
            f"a network of ONNX operator set {opset}",
            f"operator set {OLDEST_OPSET} or newer",
            "export the network again with a newer operator set",
        )
    if (classes == 1) != (threshold is not None):
        raise ModelError(
            f"logits of {classes} channels with threshold {threshold}",
            "a threshold for one channel, none for several: there the most probable class wins",
        )
    nodes = _Nodes(opset)
    found = graph.output[0]
    if found.name != LOGITS:
        nodes.add("Identity", [found.name], name=LOGITS)
    logits = nodes.add("Cast", [LOGITS], to=TensorProto.FLOAT)
    if threshold is None:
        confidence, entropy = _classes_decided(nodes, logits)
    else:
        confidence, entropy = _binary_decided(nodes, logits, threshold)
    for image, name in ((confidence, CONFIDENCE), (entropy, ENTROPY)):
        blocks = nodes.add(
            "AveragePool", [image], kernel_shape=[stride, stride], strides=[stride, stride]
        )
        nodes.add("Squeeze", [blocks, nodes.constant([1], np.int64)], name=name)
    graph.node.extend(nodes.made)
    graph.initializer.extend(nodes.constants)
    _declare(graph, stride)
    onnx.checker.check_model(model)
    return model


def _classes(graph: onnx.GraphProto) -> int:
    """Return K of the only output."""
    names = [each.name for each in graph.output]
    if len(names) != 1:
        raise ModelError(f"a network with outputs {names}", "one output: logits (N, K, Y, X)")
    shape = graph.output[0].type.tensor_type.shape.dim
    if len(shape) != 4 or shape[1].dim_value < 1:
        sides = [each.dim_value or each.dim_param or "?" for each in shape]
        raise ModelError(
            f"an output {names[0]} of shape {sides}", "logits (N, K, Y, X) with K stated"
        )
    return int(shape[1].dim_value)


def _binary_decided(nodes: _Nodes, logits: str, threshold: float) -> tuple[str, str]:
    """Add the mask of one class; return images (N, 1, Y, X) of confidence and entropy.

    The winner's probability is ``sigmoid(l)`` above the threshold and ``sigmoid(-l)`` below;
    with ``e = exp(-|l|)`` the entropy is ``log(1 + e) + |l| * e / (1 + e)`` nats.
    """
    wins = nodes.add("Greater", [logits, nodes.constant(logit(threshold), np.float32)])
    # TensorRT takes bytes as an output only, so that the conversion comes last.
    flat = nodes.add("Squeeze", [wins, nodes.constant([1], np.int64)])
    nodes.add("Cast", [flat], name=MASK, to=TensorProto.UINT8)
    winner = nodes.add("Where", [wins, logits, nodes.add("Neg", [logits])])
    size = nodes.add("Abs", [logits])
    scores = nodes.add("Exp", [nodes.add("Neg", [size])])
    total = nodes.add("Add", [scores, nodes.constant(1.0, np.float32)])
    weighted = nodes.add("Mul", [size, nodes.add("Div", [scores, total])])
    nats = nodes.add("Add", [nodes.add("Log", [total]), weighted])
    return nodes.add("Sigmoid", [winner]), _bits(nodes, nats)


def _classes_decided(nodes: _Nodes, logits: str) -> tuple[str, str]:
    """Add the mask of the most probable class; return images as ``_binary_decided`` does.

    With ``m`` the logits less their largest and ``Z = sum(exp(m))``, the winner's probability
    is ``1 / Z`` and the entropy ``log Z - sum(exp(m) * m) / Z`` nats.
    """
    index = nodes.add("ArgMax", [logits], axis=1, keepdims=0, select_last_index=0)
    nodes.add("Cast", [index], name=MASK, to=TensorProto.UINT8)
    margin = nodes.add("Sub", [logits, nodes.over_classes("ReduceMax", logits)])
    scores = nodes.add("Exp", [margin])
    total = nodes.over_classes("ReduceSum", scores)
    weighted = nodes.over_classes("ReduceSum", nodes.add("Mul", [scores, margin]))
    nats = nodes.add("Sub", [nodes.add("Log", [total]), nodes.add("Div", [weighted, total])])
    return nodes.add("Div", [nodes.constant(1.0, np.float32), total]), _bits(nodes, nats)


def _bits(nodes: _Nodes, nats: str) -> str:
    return nodes.add("Mul", [nats, nodes.constant(1.0 / math.log(2.0), np.float32)])


def _declare(graph: onnx.GraphProto, stride: int) -> None:
    """Say in the graph what its outputs are, with the sides that are known."""
    logits = graph.output[0]
    logits.name = LOGITS
    batch, _, y, x = logits.type.tensor_type.shape.dim
    blocks = [
        side.dim_value // stride if side.dim_value else f"blocks_{axis}"
        for side, axis in ((y, "y"), (x, "x"))
    ]
    sides = [each.dim_value or each.dim_param or None for each in (batch, y, x)]
    declare = helper.make_tensor_value_info
    graph.output.append(declare(MASK, TensorProto.UINT8, sides))
    for name in (CONFIDENCE, ENTROPY):
        graph.output.append(declare(name, TensorProto.FLOAT, [sides[0], *blocks]))


class _Nodes:
    """Nodes and constants to be appended, under names that no network has."""

    def __init__(self, opset: int) -> None:
        self.made: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._opset = opset

    def add(self, kind: str, inputs: list[str], *, name: str = "", **attributes: Any) -> str:
        """Add a node of one output and return the output's name."""
        output = name or f"segbatch/decision/{len(self.made)}"
        label = f"segbatch/decision/{kind}{len(self.made)}"
        self.made.append(helper.make_node(kind, inputs, [output], label, **attributes))
        return output

    def constant(self, value: Any, dtype: type[np.generic]) -> str:
        """Add a constant and return its name."""
        name = f"segbatch/decision/constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def over_classes(self, kind: str, image: str) -> str:
        """Add a reduction of (N, K, Y, X) to (N, 1, Y, X)."""
        if kind == "ReduceMax" and self._opset < AXES_AS_INPUT_OPSET:
            return self.add(kind, [image], axes=[1], keepdims=1)
        return self.add(kind, [image, self.constant([1], np.int64)], keepdims=1)
