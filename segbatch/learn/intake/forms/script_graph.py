"""What torch made of a TorchScript archive, looked at before any of it runs."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch

from segbatch.learn.intake.forms.allowed import allowed
from segbatch.learn.intake.forms.script_code import OddError

if TYPE_CHECKING:
    from collections.abc import Iterator

_VALUES = """
    Constant GetAttr SetAttr ListConstruct ListUnpack TupleConstruct TupleUnpack TupleIndex
    TupleSlice DictConstruct CreateObject If Loop Uninitialized unchecked_cast isinstance
    StringIndex EnumName EnumValue ModuleContainerIndex
"""
_OPERATORS = """
    _set_item str fill index_put __xor__ percentFormat IntImplicit
"""
# Where the layers that training changes are told so: which argument it is.
MODES = {
    "batch_norm": 5,
    "instance_norm": 5,
    "dropout": 2,
    "feature_dropout": 2,
    "alpha_dropout": 2,
    "feature_alpha_dropout": 2,
    "rrelu": 3,
}
LAYERS = {
    "batch_norm": "batch norm",
    "instance_norm": "instance norm",
    "rrelu": "a random rectifier",
}
# What torch makes of syntax: values, branches, loops, attributes, subscripts, Python's operators.
SYNTAX = frozenset(
    [f"prim::{name}" for name in _VALUES.split()] + [f"aten::{name}" for name in _OPERATORS.split()]
)


def look_at_graphs(script: Any) -> None:
    """Raise OddError where a method of any module, with all it calls, does more than compute."""
    for module in script.modules():
        for name in module._c._method_names():
            for node in _nodes(module._c._get_method(name).inlined_graph):
                kind = node.kind()
                space, _, operator = kind.partition("::")
                plain = kind if kind.endswith("__") else kind.rstrip("_")
                if plain not in SYNTAX and not (space in ("aten", "prim") and allowed(operator)):
                    raise OddError(f"operator {kind} in method {name}")
                # A graph inside an attribute would not be walked; functions are inlined by now.
                if any(node.kindOf(each) in ("g", "gs") for each in node.attributeNames()):
                    raise OddError(f"a graph inside {kind} in method {name}")


def trained_layer(script: Any) -> str:
    """Return which layer still behaves as in training after ``eval()``; empty where none does.

    In a script the mode is an attribute that ``eval()`` turns; in a trace it was written down
    as a constant, and what else the network does in training was traced with it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            graph = torch.jit.freeze(script, optimize_numerics=False).graph
        except RuntimeError:  # written down as they are, constants need no folding to be seen
            graph = script.inlined_graph
    for node in _nodes(graph):
        kind = node.kind().partition("::")[2].rstrip("_")
        place = MODES.get(kind)
        if place is None or node.inputsAt(place).toIValue() is not True:
            continue
        # Without running statistics, a layer takes the image's own in evaluation, too.
        if not kind.endswith("_norm") or node.inputsAt(3).type().kind() != "NoneType":
            return LAYERS.get(kind, "dropout")
    return ""


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)
