"""Lists in an ONNX graph that are filled and read at fixed places: replaced by what is in them.

Networks in TorchScript keep their skips in lists; few engines run ONNX's operators for those.
"""

from __future__ import annotations

from typing import Any

from segbatch.learn.intake import edit


def without_sequences(model: Any) -> Any:
    """Return the model without lists, as far as places in them are constant."""
    lists: dict[str, list[str]] = {}
    for node in list(model.graph.node):
        made = _list_of(model, node, lists)
        if made is not None:
            lists[node.output[0]] = made
        elif node.op_type == "SequenceAt" and node.input[0] in lists:
            place = _place(model, node.input[1])
            content = lists[node.input[0]]
            if place is not None and -len(content) <= place < len(content):
                edit.rename(model, node.output[0], content[place])
                model.graph.node.remove(node)
        elif node.op_type == "ConcatFromSequence" and node.input[0] in lists:
            content = lists[node.input[0]]
            if not edit.attribute(node, "new_axis", 0):
                node.op_type = "Concat"
                del node.input[:]
                node.input.extend(content)
    edit.prune(model)
    return model


def _list_of(model: Any, node: Any, lists: dict[str, list[str]]) -> list[str] | None:
    """Return the names in the list that a node makes, None where it makes none that is known."""
    if node.op_type == "SequenceEmpty":
        return []
    if node.op_type == "SequenceConstruct":
        return list(node.input)
    if node.op_type == "Identity" and node.input[0] in lists:
        return lists[node.input[0]]
    if node.op_type not in ("SequenceInsert", "SequenceErase") or node.input[0] not in lists:
        return None
    content = list(lists[node.input[0]])
    given = node.input[2 if node.op_type == "SequenceInsert" else 1 :]
    place = _place(model, given[0]) if given and given[0] else None
    if given and given[0] and place is None:
        return None
    if node.op_type == "SequenceInsert":
        content.insert(len(content) if place is None else place, node.input[1])
    elif content:
        del content[-1 if place is None else place]
    return content


def _place(model: Any, name: str) -> int | None:
    value = edit.value_of(model, name)
    return None if value is None or value.size != 1 else int(value.reshape(-1)[0])
