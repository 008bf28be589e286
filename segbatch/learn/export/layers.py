"""Where two versions of a network part: the values of every layer, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from segbatch.infer.engine.cpu.openvino_engine import HINTS, load_openvino

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

# A layer diverges where its values differ by this part of their own size, root mean square;
# bf16 differs by 0.005 in one step, and by 0.02 after the twenty steps of a U-Net.
DIVERGING = 0.05
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
_ROUNDING = ("QuantizeLinear", "DequantizeLinear")
# Layers whose values are kept at a time.
_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Exposed:
    """An ONNX network whose layers' values are outputs.

    ``layers`` are the layers in their order, by the name of their tensor; ``read_at`` says which
    output holds it: in a quantised network what the next layer is given, not what was clipped.
    """

    network: bytes
    layers: dict[str, str]
    read_at: dict[str, str]


@dataclass(frozen=True, slots=True)
class Parting:
    """The first layer whose values diverge, or, where none does, the one that adds most.

    ``difference`` is relative to the layer's own values, ``before`` that of the layers before it.
    """

    layer: str
    difference: float
    before: float

    def __str__(self) -> str:
        first = "departs first" if self.difference > DIVERGING else "departs bit by bit, most"
        return (
            f"{first} in layer {self.layer}: its values differ by {self.difference:.2%} of their "
            f"size, those before it by at most {self.before:.2%}"
        )


def exposed(network: bytes) -> Exposed:
    """Return the network with the value of every layer as an output of its own."""
    model = onnx.load_from_string(network)
    known = onnx.shape_inference.infer_shapes(model).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*known.value_info, *known.output)}
    layers, read_at = {}, {}
    rounding = [node for node in model.graph.node if node.op_type in _ROUNDING]
    rounded = {node.input[0]: node.output[0] for node in rounding}
    already = {each.name for each in model.graph.output}
    for place, node in enumerate(model.graph.node, 1):
        for name in node.output[:1]:
            if kinds.get(name) not in _FLOATS or node.op_type in _ROUNDING:
                continue
            told = f"{node.name or name} ({node.op_type}, {place} of {len(model.graph.node)})"
            layers[name] = told
            read_at[name] = shown = rounded.get(rounded.get(name, ""), name)
            if shown not in already:
                already.add(shown)
                declared = onnx.helper.make_tensor_value_info(shown, kinds[name], None)
                model.graph.output.append(declared)
    return Exposed(model.SerializeToString(), layers, read_at)


def activations(
    shown: Exposed, image: NDArray[np.float32], *, named: bool = False
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield layer and values on one input, by ONNX Runtime; the tensor's name where ``named``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        shown.network, options, providers=["CPUExecutionProvider"]
    )
    given = session.get_inputs()[0]
    image = image.astype(np.float16) if given.type == "tensor(float16)" else image
    names = list(shown.layers)
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        read = [shown.read_at[name] for name in some]
        for name, values in zip(some, session.run(read, {given.name: image}), strict=True):
            yield (name if named else shown.layers[name]), values


def openvino_activations(
    shown: Exposed, image: NDArray[np.float32], precision: str
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield tensor name and values on one input, as OpenVINO computes them in a precision."""
    openvino = load_openvino()
    core = openvino.Core()
    model = core.read_model(shown.network)
    model.reshape(list(image.shape))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": HINTS[precision]})
    request = compiled.create_infer_request()
    request.infer([image])
    for output in compiled.outputs:
        for name in output.get_names() & shown.layers.keys():
            yield name, np.asarray(request.get_tensor(output).data, np.float32)


def parting(
    source: bytes, other: bytes, image: NDArray[np.float32], *, openvino_precision: str = ""
) -> Parting | None:
    """Find where a network made of ``source`` departs from it on one input (1, C, Y, X).

    Parameters
    ----------
    source, other
        Two ONNX networks that share the names of their tensors.
    image
        Both run on it, with every layer's values held in memory.
    openvino_precision
        Run ``other`` in this precision by OpenVINO instead of by ONNX Runtime as it stands.

    Returns
    -------
    Parting or None
        None where the two share no layer.
    """
    first = exposed(source)
    wanted = dict(activations(first, image, named=True))
    second = first if other == source else exposed(other)
    found = (
        openvino_activations(second, image, openvino_precision)
        if openvino_precision
        else activations(second, image, named=True)
    )
    differences = {
        name: _difference(wanted[name], values) for name, values in found if name in wanted
    }
    before = 0.0
    steps = []
    for name, layer in first.layers.items():
        if name not in differences:
            continue
        steps.append(Parting(layer, differences[name], before))
        if not differences[name] <= DIVERGING:
            return steps[-1]
        before = max(before, differences[name])
    return max(steps, key=lambda step: step.difference - step.before, default=None)


def _difference(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    if wanted.shape != found.shape:
        return float("inf")
    right = wanted.astype(np.float64)
    size = float(np.sqrt(np.mean(np.square(right)))) or 1.0
    off = float(np.sqrt(np.mean(np.square(found.astype(np.float64) - right)))) / size
    return off if np.isfinite(off) else float("inf")
