"""Programs of ``torch.export`` (.pt2), rebuilt here from their JSON instead of being loaded.

``torch.export.load`` unpickles with code where the archive asks for it, and evaluates the
archive's strings as expressions. A program is a list of operator calls and raw tensors: it is
read as that, and every call checked against ``allowed``.
"""

from __future__ import annotations

import json
import math
import operator
import re
from typing import TYPE_CHECKING, Any

import torch

from segbatch.errors import ModelError
from segbatch.learn.intake.archive import opened, text
from segbatch.learn.intake.forms.allowed import allowed
from segbatch.learn.intake.forms.export import module_to_onnx
from segbatch.learn.intake.forms.sound import in_training, look_at_weights

if TYPE_CHECKING:
    import zipfile
    from pathlib import Path

REMEDY = "save it again with torch.export.save, or export it as ONNX"
ATEN = re.compile(r"torch\.ops\.aten\.([A-Za-z0-9_]+)\.([A-Za-z0-9_]+)")
# What modes and equations consist of.
WORD = re.compile(r"[A-Za-z0-9_ ,.>-]{0,200}")
ON_SIZES = {
    **{
        f"_operator.{name}": getattr(operator, name)
        for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "pos", "truediv", "pow")
    },
    **{
        f"_operator.{name}": getattr(operator, name)
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
    },
    **{
        f"torch.sym_{name}": getattr(torch, f"sym_{name}")
        for name in ("max", "min", "int", "float")
    },
}
# What these layers are told of training, by the name of the argument.
LAYERS, MODES = ("batch_norm", "dropout", "rrelu"), ("training", "train")
ASSERTIONS = ("_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range_for_size")
# torch._export.serde.schema.ScalarType
TYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
MEMORY = {1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format}
PLAIN = ("int", "float", "bool", "string")
# JSON has no such numbers; torch writes these words.
NO_NUMBERS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def read_program(file: Path) -> Any:
    """Return the vetted ONNX graph of a program.

    Raises
    ------
    ModelError
        It holds pickles or operators that do more than compute, or cannot be rebuilt.
    """
    with opened(file) as archive:
        names = archive.namelist()
        root = names[0].partition("/")[0] + "/"
        models = [name for name in names if name.startswith(f"{root}models/")]
        if len(models) != 1:
            raise ModelError(f"{file}: {len(models)} programs", "one", REMEDY)
        try:
            stem = models[0].rpartition("/")[2].removesuffix(".json")
            whole = json.loads(text(archive, models[0], file))
            weights: dict[str, torch.Tensor] = {}
            for kind in ("weights", "constants"):
                config = f"{root}data/{kind}/{stem}_{kind}_config.json"
                payloads = json.loads(text(archive, config, file))["config"]
                for name, payload in payloads.items():
                    weights[name] = _tensor(archive, f"{root}data/{kind}/", name, payload, file)
                    if payload.get("is_param"):
                        look_at_weights([(name, weights[name])], str(file))
            module = _Program(file, whole["graph_module"], weights).module()
        except (
            KeyError,
            TypeError,
            ValueError,
            IndexError,
            AttributeError,
            RuntimeError,
        ) as error:
            raise ModelError(
                f"{file}: {type(error).__name__} {' '.join(str(error).split())[:200]}",
                "a program as torch.export.save writes it",
                REMEDY,
            ) from error
    return module_to_onnx(module, str(file))


def _tensor(
    archive: zipfile.ZipFile, folder: str, name: str, payload: dict[str, Any], file: Path
) -> torch.Tensor:
    """Return a raw tensor, refusing pickled ones."""
    meta, path = payload["tensor_meta"], payload["path_name"]
    if payload["use_pickle"] or meta is None or not re.fullmatch(r"(weight|tensor)_\d+", path):
        raise ModelError(
            f"{file}: {name!r} is pickled",
            "raw tensors: a pickle would run code when it is loaded",
            REMEDY,
        )
    if meta["dtype"] not in TYPES:
        raise ModelError(f"{file}: {name!r} of type {meta['dtype']}", "plain numbers", REMEDY)
    size = [each["as_int"] for each in meta["sizes"]]
    stride = [each["as_int"] for each in meta["strides"]]
    start = meta["storage_offset"]["as_int"]
    content = bytearray(text(archive, folder + path, file, largest=1 << 31))
    if not content:
        return torch.zeros(size, dtype=TYPES[meta["dtype"]])
    flat = torch.frombuffer(content, dtype=TYPES[meta["dtype"]])
    last = start + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min([*size, *stride, start]) < 0 or (0 not in size and last >= len(flat)):
        raise ModelError(f"{file}: {name!r} of {len(flat)} values", f"{last + 1}", "copy it again")
    return torch.as_strided(flat, size, stride, start).clone()


class _Program:
    """Builds the calls of one program as a module.

    Torch writes Python source of what it is given here, and runs it. So no string of the archive
    becomes a name: attributes and the placeholder are named here, operators are found in torch's
    registry, keywords in the operator's schema, and values are of the type that they say.

    Parameters
    ----------
    file
        For errors.
    graph_module
        As parsed from JSON.
    weights
        Parameters, buffers and constants by name.
    """

    def __init__(
        self, file: Path, graph_module: dict[str, Any], weights: dict[str, torch.Tensor]
    ) -> None:
        self._file = file
        self._given = graph_module
        self._weights = weights
        self._graph = torch.fx.Graph()
        self._root = torch.nn.Module()
        self._values: dict[str, Any] = {}

    def module(self) -> torch.fx.GraphModule:
        """Return the program as a module of one image and one answer."""
        self._inputs(self._given["signature"]["input_specs"])
        for node in self._given["graph"]["nodes"]:
            self._call(node)
        outputs = [
            spec["user_output"]["arg"]["as_tensor"]["name"]
            for spec in self._given["signature"]["output_specs"]
            if "user_output" in spec
        ]
        if len(outputs) != 1:
            raise ModelError(f"{self._file}: {len(outputs)} outputs", "one", REMEDY)
        self._graph.output(self._values[outputs[0]])
        return torch.fx.GraphModule(self._root, self._graph)

    def _inputs(self, specs: list[dict[str, Any]]) -> None:
        images = 0
        for place, spec in enumerate(specs):
            [(kind, said)] = spec.items()
            if kind == "user_input":
                images += 1
                name = said["arg"]["as_tensor"]["name"]
                self._values[name] = self._graph.placeholder("image")
            elif kind in ("parameter", "buffer", "tensor_constant"):
                attribute = f"w{place}"
                tensor = self._weights[said[f"{kind}_name"]]
                self._root.register_buffer(attribute, tensor)
                self._values[said["arg"]["name"]] = self._graph.get_attr(attribute)
            else:
                raise self._odd(f"an input of kind {kind}")
        if images != 1:
            raise ModelError(f"{self._file}: {images} inputs", "one, an image", REMEDY)

    def _call(self, node: dict[str, Any]) -> None:
        target = node["target"]
        found = ATEN.fullmatch(target)
        if found and found[1] in ASSERTIONS:
            return
        if target in ON_SIZES:
            operation: Any = ON_SIZES[target]
        elif found and allowed(found[1]):
            operation = getattr(getattr(torch.ops.aten, found[1]), found[2])
            if not isinstance(operation, torch._ops.OpOverload):
                raise self._odd(f"operator {target}")
        else:
            raise self._odd(f"operator {target}")
        positional = [self._value(each["arg"]) for each in node["inputs"] if each["kind"] != 2]
        named = {
            each["name"]: self._value(each["arg"]) for each in node["inputs"] if each["kind"] == 2
        }
        schema = operation._schema.arguments if found else []
        if unknown := sorted(set(named) - {each.name for each in schema}):
            raise self._odd(f"argument {unknown[0]!r} of {target}, which has none of that name")
        given = {each.name: value for each, value in zip(schema, positional, strict=False)} | named
        if found and found[1].endswith(LAYERS) and True in (given.get(m) for m in MODES):
            raise in_training(str(self._file), found[1].strip("_").replace("_", " "))
        if named.get("device") is not None:
            named["device"] = "cpu"
        made = self._graph.call_function(operation, tuple(positional), named)
        outputs = [each for each in node["outputs"] if "as_none" not in each]
        if len(outputs) == 1 and "as_tensors" in outputs[0]:
            outputs = [{"as_tensor": each} for each in outputs[0]["as_tensors"]]
            several = True
        else:
            several = len(outputs) > 1
        for place, output in enumerate(outputs):
            [said] = output.values()
            name = said.get("name") or said.get("as_name")
            self._values[name] = (
                self._graph.call_function(operator.getitem, (made, place)) if several else made
            )

    def _value(self, said: dict[str, Any]) -> Any:
        """Return an argument: a plain value, or what an earlier call made."""
        [(kind, value)] = said.items()
        plain = kind.removeprefix("as_")
        if plain in PLAIN:
            return self._plain(plain, value)
        if plain.removesuffix("s") in PLAIN:
            return [self._plain(plain.removesuffix("s"), each) for each in value]
        if kind == "as_none":
            return None
        if kind == "as_tensor":
            return self._values[value["name"]]
        if kind in ("as_tensors", "as_sym_ints", "as_sym_floats", "as_optional_tensors"):
            wrap = "as_tensor" if kind == "as_tensors" else ""
            return [self._value({wrap: each} if wrap else each) for each in value]
        if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
            return self._value(value)
        if kind == "as_name":
            return self._values[value]
        if kind == "as_scalar_type":
            return TYPES[value]
        if kind == "as_memory_format":
            return MEMORY[value]
        if kind == "as_layout":
            return torch.strided
        if kind == "as_device":
            return "cpu"
        raise self._odd(f"an argument of kind {kind}")

    def _plain(self, kind: str, value: Any) -> int | float | bool | str:
        """Return a plain value, refusing one that is not of the kind it is said to be."""
        if kind == "float" and isinstance(value, str):
            value = NO_NUMBERS.get(value)
        fine = {
            "int": type(value) is int,
            "float": type(value) in (int, float),
            "bool": type(value) is bool,
            "string": isinstance(value, str) and WORD.fullmatch(value),
        }
        if not fine[kind]:
            raise self._odd(f"{str(value)[:100]!r} as {kind}")
        return value  # type: ignore[no-any-return]

    def _odd(self, what: str) -> ModelError:
        return ModelError(
            f"{self._file}: a program with {what}",
            "operators that compute on tensors and do nothing else",
            REMEDY,
        )
