"""ONNX files from anywhere: read as data, refused where they hold or point to anything odd."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx.inliner
import onnx.version_converter
from google.protobuf.message import DecodeError

from segbatch.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGEST_BYTES = 2 * 1024**3 - 1  # of a protobuf message
STANDARD = ("", "ai.onnx")
# Below it Softmax and the clipping operators mean something else than today.
OLDEST_OPSET = 13
EXPORT = "export it again as one ONNX file of standard operators"


def read_onnx(file: Path) -> tuple[Any, list[Path]]:
    """Return a model with all its weights inside, and the files that were read.

    Raises
    ------
    ModelError
        It is no ONNX file, is truncated, points out of its folder, or needs operators that
        are not ONNX's own.
    """
    size = file.stat().st_size
    if size > LARGEST_BYTES:
        raise ModelError(f"{file}: {size} bytes", f"at most {LARGEST_BYTES}", EXPORT)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise ModelError(f"{file}: {error}", "a whole ONNX file", "copy it again") from error
    if not model.graph.node or not model.graph.input or not model.graph.output:
        raise ModelError(
            f"{file}: an ONNX graph of {len(model.graph.node)} operators, "
            f"{len(model.graph.input)} inputs and {len(model.graph.output)} outputs",
            "a network",
            "copy it again",
        )
    others = _gather(model, file)
    return vetted(model, str(file)), [file, *others]


def vetted(model: Any, told: str) -> Any:
    """Return ``model`` with its functions written out and a current operator set.

    Raises
    ------
    ModelError
        It uses operators that are not ONNX's own, or is not valid.
    """
    try:
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        for node in nodes_of(model.graph):
            if node.domain not in STANDARD or not onnx.defs.has(node.op_type):
                raise ModelError(
                    f"{told}: operator {node.op_type} of domain {node.domain or 'ai.onnx'!r}",
                    "operators of the ONNX standard, which every engine runs",
                    EXPORT,
                )
        opset = max((o.version for o in model.opset_import if o.domain in STANDARD), default=0)
        if opset < OLDEST_OPSET:
            model = onnx.version_converter.convert_version(model, OLDEST_OPSET)
        onnx.checker.check_model(model, full_check=True)
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        RuntimeError,
        ValueError,
    ) as error:
        raise ModelError(
            f"{told}: {' '.join(str(error).split())[:400]}", "a valid ONNX network", EXPORT
        ) from error
    return without_remarks(model)


def without_remarks(model: Any) -> Any:
    """Return the graph without what its exporter noted, such as where a node came from."""
    for node in nodes_of(model.graph):
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.metadata_props[:], model.metadata_props[:], model.training_info[:]
    return model


def nodes_of(graph: Any) -> Iterator[Any]:
    """Yield every node of a graph and of the graphs inside it."""
    for node in graph.node:
        yield node
        for inner in _subgraphs(node):
            yield from nodes_of(inner)


def _subgraphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for inner in _subgraphs(node):
            yield from _tensors(inner)


def _gather(model: Any, file: Path) -> list[Path]:
    """Load weights that lie in other files of the folder; return those files."""
    folder = file.parent.resolve()
    found: dict[Path, None] = {}
    total = 0
    tensors = [*_tensors(model.graph)]
    for function in model.functions:
        tensors += _tensors(onnx.helper.make_graph(function.node, "f", [], []))
    for tensor in tensors:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        said = {entry.key: entry.value for entry in tensor.external_data}
        where = said.get("location", "")
        beside = _inside(folder, where)
        if beside is None:
            raise ModelError(
                f"{file}: weights of {tensor.name!r} in {where!r}",
                "weights in the file itself, or in a file of its own folder",
                EXPORT,
            )
        total += _length(said, beside, file, tensor.name)
        if total > LARGEST_BYTES:
            raise ModelError(f"{file}: more than {total} bytes of weights", "at most 2 GiB", EXPORT)
        onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
        found[beside] = None
    return list(found)


def _inside(folder: Path, where: str) -> Path | None:
    """Return the file that ``where`` names, None unless it is a plain file inside the folder."""
    if not where or "\\" in where or Path(where).is_absolute() or ".." in Path(where).parts:
        return None
    named = folder / where
    real = Path(os.path.realpath(named))
    if real != named or not real.is_relative_to(folder) or not real.is_file():
        return None
    return real


def _length(said: dict[str, str], beside: Path, file: Path, tensor: str) -> int:
    size = beside.stat().st_size
    try:
        offset = int(said.get("offset") or 0)
        length = int(said.get("length") or size - offset)
    except ValueError:
        offset = length = -1
    if offset < 0 or length < 0 or offset + length > size:
        raise ModelError(
            f"{file}: weights of {tensor!r} at {said.get('offset')} + {said.get('length')} "
            f"of {beside.name}, which has {size} bytes",
            "weights that are whole",
            "copy the files again",
        )
    return length
