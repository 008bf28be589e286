"""How many floating-point operations a frame costs, counted in the ONNX graph."""

from __future__ import annotations

import math
from typing import Any

import onnx
from onnx import shape_inference

Shape = tuple[int, int, int, int]


def operations(network: bytes, shape: Shape) -> float:
    """Return the operations of one input of ``shape``, a multiplication and an addition being two.

    Convolutions and matrix products are counted; what is done once a value (additions of a
    bias, rectifiers, pooling) is not, being a few in a hundred thousand.

    Raises
    ------
    ValueError
        The graph has a product whose shapes cannot be inferred.
    """
    model = onnx.load_from_string(network)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    for dim, side in zip(dims, shape, strict=True):
        dim.Clear()
        dim.dim_value = side
    del model.graph.value_info[:]  # inferred again, from the input's sides
    for each in model.graph.output:
        each.type.tensor_type.ClearField("shape")
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    sides = {each.name: list(each.dims) for each in graph.initializer}
    for each in (*graph.input, *graph.value_info, *graph.output):
        sides[each.name] = [dim.dim_value for dim in each.type.tensor_type.shape.dim]
    return sum(_of_node(node, sides) for node in graph.node)


def _of_node(node: Any, sides: dict[str, list[int]]) -> float:
    if node.op_type not in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
        return 0.0
    a, b, out = (sides.get(name, []) for name in (node.input[0], node.input[1], node.output[0]))
    if not (a and b and out and all(a) and all(out)):
        raise ValueError(f"{node.op_type} {node.output[0]}: shapes {a}, {b}, {out}")
    if node.op_type == "Conv":  # each output value is a product over one filter
        return 2.0 * math.prod(out) * math.prod(b[1:])
    if node.op_type == "ConvTranspose":  # each input value is spread by one filter
        return 2.0 * math.prod(a) * math.prod(b[1:])
    if node.op_type == "Gemm":
        transposed = any(each.name == "transA" and each.i for each in node.attribute)
        return 2.0 * math.prod(out) * a[0 if transposed else 1]
    return 2.0 * math.prod(out) * a[-1]
