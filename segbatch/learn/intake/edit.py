"""Small changes to an ONNX graph: what it takes, what it gives, and steps before and after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from segbatch.errors import ModelError
from segbatch.learn.intake.graph import nodes_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from segbatch.learn.intake.facts import Activation, Step

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
INPUT, OUTPUT = "image", "logits"


def constant(model: Any, values: NDArray[Any]) -> str:
    """Store a tensor in the model and return its name."""
    name = f"segbatch_{len(model.graph.initializer)}"
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def value_of(model: Any, name: str) -> NDArray[Any] | None:
    """Return a constant tensor by its name, None where it is computed."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return np.asarray(numpy_helper.to_array(tensor))
    for node in model.graph.node:
        if name in node.output and node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    return np.asarray(numpy_helper.to_array(attribute.t))
    return None


def not_finite(model: Any) -> str:
    """Return the name of the first weights that hold NaN or infinity, empty where none do."""
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            return str(tensor.name)
    return ""


def attribute(node: Any, name: str, default: Any) -> Any:
    """Return an attribute of a node."""
    for each in node.attribute:
        if each.name == name:
            return helper.get_attribute_value(each)
    return default


def inputs_of(model: Any) -> list[Any]:
    """Return the inputs that are not weights."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def sides_of(value: Any) -> list[int | None]:
    """Return the sides of an input or output, None where one is free."""
    return [
        side.dim_value if side.HasField("dim_value") and side.dim_value > 0 else None
        for side in value.type.tensor_type.shape.dim
    ]


def one_in_one_out(model: Any, told: str, output: str | None) -> None:
    """Leave one image input and one output, both four-dimensional floating-point tensors.

    Raises
    ------
    ModelError
        There are several inputs, or several outputs and none was chosen, or they are no images.
    """
    inputs = inputs_of(model)
    if len(inputs) != 1:
        several = ", ".join(value.name for value in inputs)
        raise ModelError(
            f"{told}: {len(inputs)} inputs ({several})",
            "one, an image",
            "export the network with its image as the only input",
        )
    names = [value.name for value in model.graph.output]
    if output not in names and (output is not None or len(names) > 1):
        raise ModelError(
            f"{told}: outputs {', '.join(names)}"
            + (f", none of them {output}" if output is not None else ""),
            "one that is taken as the logits",
            "name it with --output",
        )
    kept = [value for value in model.graph.output if output in (None, value.name)]
    del model.graph.output[:]
    model.graph.output.append(kept[0])
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    for what, value in (("input", inputs[0]), ("output", kept[0])):
        tensor = value.type.tensor_type
        if tensor.elem_type not in FLOATS and made_by.get(value.name) != "ArgMax":
            number = TensorProto.DataType.Name(tensor.elem_type)
            raise ModelError(
                f"{told}: {what} {value.name} of {number}",
                "floating-point numbers",
                "export it with a float32 input and its logits as output",
            )
        if what == "input" and len(tensor.shape.dim) != 4:
            raise ModelError(
                f"{told}: {what} {value.name} with {len(tensor.shape.dim)} axes"
                + (", a three-dimensional network" if len(tensor.shape.dim) == 5 else ""),
                "four: (N, C, Y, X)",
                "export the two-dimensional network with an axis for batches and one for channels",
            )
    prune(model)


def prune(model: Any) -> None:
    """Remove what the outputs do not need."""
    needed = {value.name for value in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(_used_by(node))
    kept.reverse()
    weights = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    inputs = inputs_of(model)
    for field, values in (("node", kept), ("initializer", weights), ("input", inputs)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del getattr(model.graph, field)[:]
        getattr(model.graph, field).extend(copies)
    del model.graph.value_info[:]


def _used_by(node: Any) -> set[str]:
    """Return the names that a node reads, those of the graphs inside it included."""
    used = set(node.input)
    for each in node.attribute:
        if each.type == onnx.AttributeProto.GRAPH:
            for inner in each.g.node:
                used |= _used_by(inner)
            used.update(value.name for value in each.g.output)
    return used


def strip_activation(model: Any) -> Activation:
    """Take the activation off the end of the graph and say which it was.

    ``ArgMax`` over channels goes as well: of its input softmax takes the same class.
    """
    made_by = {name: node for node in model.graph.node for name in node.output}
    at, found = model.graph.output[0].name, "none"
    while (node := made_by.get(at)) is not None:
        axis = attribute(node, "axis", -1 if node.op_type != "ArgMax" else 0)
        if node.op_type == "Sigmoid" and found == "none":
            found = "sigmoid"
        elif (
            node.op_type in ("Softmax", "LogSoftmax", "ArgMax")
            and axis in (1, -3)
            and found in ("none", "softmax")
        ):
            found = "softmax"
        elif node.op_type == "Cast" and attribute(node, "to", 0) in FLOATS:
            pass
        elif node.op_type != "Identity":
            break
        at = node.input[0]
        if found != "none":
            end = at
    if found != "none":
        del model.graph.output[:]
        model.graph.output.append(_image(end, _type_of(model, end)))
        prune(model)
    return found  # type: ignore[return-value]


def _image(name: str, kind: int) -> Any:
    return helper.make_tensor_value_info(name, kind, ["n", "k", "y_out", "x_out"])


def state_channels(model: Any, inputs: int, outputs: int) -> None:
    """Write down how many channels the finished model takes and gives."""
    inputs_of(model)[0].type.tensor_type.shape.dim[1].dim_value = inputs
    del model.graph.output[:]
    model.graph.output.append(
        helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", outputs, "y", "x"])
    )


def _type_of(model: Any, name: str) -> int:
    known = onnx.shape_inference.infer_shapes(model).graph
    for value in (*known.value_info, *known.input):
        if value.name == name:
            return int(value.type.tensor_type.elem_type)
    return int(TensorProto.FLOAT)


def free_axes(model: Any) -> None:
    """Make batch, Y and X of any size; resizing to a stated size becomes resizing by a factor."""
    value = inputs_of(model)[0]
    sides = sides_of(value)
    if None not in sides:
        _factors_for_sizes(model)
    dims = value.type.tensor_type.shape.dim
    for place, name in ((0, "n"), (2, "y"), (3, "x")):
        dims[place].dim_param = name
    kind = model.graph.output[0].type.tensor_type.elem_type
    name = model.graph.output[0].name
    del model.graph.output[:]
    model.graph.output.append(_image(name, kind))
    del model.graph.value_info[:]


def _factors_for_sizes(model: Any) -> None:
    known = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    sides = {v.name: sides_of(v) for v in (*known.value_info, *known.input, *known.output)}
    for node in model.graph.node:
        if node.op_type != "Resize" or len(node.input) < 4 or not node.input[3]:
            continue
        wanted, given = value_of(model, node.input[3]), sides.get(node.input[0])
        if wanted is None or not given or None in given:
            continue
        factors = wanted / np.array(given, np.float64)
        node.input[2] = constant(model, factors.astype(np.float32))
        del node.input[3]


def prepend(model: Any, steps: Sequence[Step]) -> None:
    """Put constant steps on the input before the network."""
    nodes: list[Any] = []
    at = INPUT
    for step in steps:
        if any(value != 1.0 for value in step.scale) or any(step.offset):
            for kind, values in (("Mul", step.scale), ("Add", step.offset)):
                factor = constant(model, np.array(values, np.float32).reshape(1, -1, 1, 1))
                at = _chain(nodes, kind, [at, factor])
        if step.low is not None or step.high is not None:
            bounds = [
                "" if bound is None else constant(model, np.array(bound, np.float32))
                for bound in (step.low, step.high)
            ]
            at = _chain(nodes, "Clip", [at, *bounds])
    before(model, nodes, at)


def _chain(nodes: list[Any], kind: str, inputs: list[str], **attributes: Any) -> str:
    name = f"segbatch_before_{len(nodes)}"
    nodes.append(helper.make_node(kind, inputs, [name], **attributes))
    return name


def before(model: Any, nodes: list[Any], last: str) -> None:
    """Put ``nodes``, which read ``INPUT`` and end in ``last``, before the whole network."""
    if not nodes:
        return
    for node in nodes_of(model.graph):
        for i, name in enumerate(node.input):
            if name == INPUT:
                node.input[i] = last
    rest = [type(node).FromString(node.SerializeToString()) for node in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])


def after(model: Any, kind: str, *others: str, **attributes: Any) -> None:
    """Put one node between the network's last tensor and its output."""
    inner = f"segbatch_after_{len(model.graph.node)}"
    rename(model, OUTPUT, inner)
    model.graph.output[0].name = OUTPUT
    model.graph.node.append(helper.make_node(kind, [inner, *others], [OUTPUT], **attributes))


def rename(model: Any, old: str, new: str) -> None:
    """Give a tensor of the outer graph another name, wherever it is made or read."""
    for node in nodes_of(model.graph):
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new
    for value in (*model.graph.input, *model.graph.output):
        if value.name == old:
            value.name = new


def name_ends(model: Any) -> None:
    """Call the input ``image`` and the output ``logits``, both float32."""
    source, result = inputs_of(model)[0], model.graph.output[0]
    for taken in (INPUT, OUTPUT):
        rename(model, taken, f"segbatch_was_{taken}")
    if result.name == source.name or not any(
        result.name in node.output for node in model.graph.node
    ):
        raise ModelError("a network whose output is its input or a constant", "a network")
    rename(model, source.name, INPUT)
    rename(model, result.name, OUTPUT)
    if (kind := source.type.tensor_type.elem_type) != TensorProto.FLOAT:
        nodes: list[Any] = []
        before(model, nodes, _chain(nodes, "Cast", [INPUT], to=kind))
        source.type.tensor_type.elem_type = TensorProto.FLOAT
    if result.type.tensor_type.elem_type != TensorProto.FLOAT:
        result.type.tensor_type.elem_type = TensorProto.FLOAT
        after(model, "Cast", to=TensorProto.FLOAT)


def pick_channel(model: Any, channel: int) -> None:
    """Leave one channel of the output."""
    after(model, "Gather", constant(model, np.array([channel], np.int64)), axis=1)


def undo_activation(model: Any, activation: Activation) -> None:
    """Append the inverse of an activation that is not an operator of its own.

    The logit of a probability cut to 1e-7 and 1 - 1e-7; the logarithm where channels add up
    to one, of which softmax gives them back.
    """
    low = constant(model, np.array(1e-7, np.float32))
    if activation == "softmax":
        after(model, "Clip", low)
        after(model, "Log")
        return
    one = constant(model, np.array(1.0, np.float32))
    after(model, "Clip", low, constant(model, np.array(1 - 1e-7, np.float32)))
    # -log(1 / p - 1), the logit of p.
    after(model, "Reciprocal")
    after(model, "Sub", one)
    after(model, "Log")
    after(model, "Neg")


def mirror(model: Any, before_px: int, after_px: int, surplus_px: int) -> None:
    """Mirror the input out on all sides and cut what is too much off the output's end."""
    pads = [0, 0, before_px, before_px, 0, 0, after_px, after_px]
    nodes: list[Any] = []
    padded = _chain(
        nodes, "Pad", [INPUT, constant(model, np.array(pads, np.int64))], mode="reflect"
    )
    before(model, nodes, padded)
    if surplus_px:
        numbers = ([0, 0], [-surplus_px, -surplus_px], [2, 3])
        after(model, "Slice", *(constant(model, np.array(n, np.int64)) for n in numbers))
