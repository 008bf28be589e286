"""What torch made of a TorchScript archive, looked at before any of it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)
