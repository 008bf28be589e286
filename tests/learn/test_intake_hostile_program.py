"""Programs made to harm are refused before they can, and the error names what was found."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from segbatch.learn.intake import load_network
from tests.learn.hostile import Touch, program, refused, rewritten

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.learn, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.mark.parametrize("where", ["weights", "constants"])
def test_programs_with_pickles_are_refused(where: str, tmp_path: Path) -> None:
    """An exported program that asks for a weight or constant to be unpickled is refused."""
    code = io.BytesIO()
    pickle.dump(Touch(tmp_path / "ran"), code)

    def change(name: str, content: bytes) -> bytes:
        if name.endswith("model_weights_config.json") and where == "weights":
            config = json.loads(content)
            next(iter(config["config"].values()))["use_pickle"] = True
            return json.dumps(config).encode()
        if name.endswith("model_constants_config.json") and where == "constants":
            entry = {"path_name": "opaque_obj_0", "use_pickle": True, "is_param": False}
            return json.dumps({"config": {"evil": {**entry, "tensor_meta": None}}}).encode()
        evil = where == "weights" and name.endswith("weight_0")
        return code.getvalue() if evil else content

    refused(rewritten(program(tmp_path), tmp_path / "net.pt2", change), tmp_path, "is pickled")

    assert not (tmp_path / "ran").exists()


def test_what_a_program_does_not_need_is_not_read(tmp_path: Path) -> None:
    """Sample inputs, guards and metadata, which torch would unpickle or run, are left alone."""

    def change(name: str, content: bytes) -> bytes:
        if "sample_inputs" in name:
            return pickle.dumps(Touch(tmp_path / "ran"))
        if name.endswith("models/model.json"):
            whole = json.loads(content)
            evil = f"__import__('pathlib').Path({str(tmp_path / 'ran')!r}).touch()"
            whole["range_constraints"] = {evil: {"min_val": 0, "max_val": 9}}
            whole["guards_code"] = [evil]
            return json.dumps(whole).encode()
        return content

    load_network(rewritten(program(tmp_path), tmp_path / "net.pt2", change), tmp_path / "out")

    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "target", ["torch.os.system", "torch.ops.aten.from_file.default", "_operator.attrgetter", "#x"]
)
def test_programs_with_other_operators_are_refused(target: str, tmp_path: Path) -> None:
    """A call in an exported program of anything but arithmetic is refused by its name."""

    def change(name: str, content: bytes) -> bytes:
        if name.endswith("models/model.json"):
            whole = json.loads(content)
            whole["graph_module"]["graph"]["nodes"][0]["target"] = target
            return json.dumps(whole).encode()
        return content

    refused(rewritten(program(tmp_path), tmp_path / "net.pt2", change), tmp_path, target)


CODE = "alpha = (open('FILE', 'w').write('x') and 1)) #"


def changed_program(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Write an exported program with another graph."""

    def rewrite(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        whole = json.loads(content)
        change(whole["graph_module"])
        return json.dumps(whole).encode()

    return rewritten(program(folder), folder / "net.pt2", rewrite)


@pytest.mark.parametrize("name", [CODE, "class", "a b", "", "no_such_argument", "x=1,y", 7, None])
@pytest.mark.parametrize("on_sizes", [False, True])
def test_a_program_cannot_name_keywords(name: Any, on_sizes: bool, tmp_path: Path) -> None:
    """A keyword that is no argument of its operator is refused, and becomes no code."""
    file = str(tmp_path / "ran")
    evil = name.replace("FILE", file) if isinstance(name, str) else name

    def change(module: dict[str, Any]) -> None:
        node = module["graph"]["nodes"][0]
        if on_sizes:
            node["target"] = "_operator.add"
        node["inputs"].append({"name": evil, "kind": 2, "arg": {"as_none": True}})

    refused(changed_program(tmp_path, change), tmp_path, "net.pt2")

    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "value",
    [
        {"as_int": CODE},
        {"as_int": {CODE: 1}},
        {"as_ints": [1, CODE]},
        {"as_float": CODE},
        {"as_bool": CODE},
        {"as_string": CODE},
        {"as_strings": [CODE]},
        {"as_scalar_type": CODE},
        {"as_name": CODE},
        {"as_operator": CODE},
        {"as_expr": CODE},
    ],
)
def test_a_program_cannot_spell_values(value: dict[str, Any], tmp_path: Path) -> None:
    """A value that is not of the kind it says, or a word with quotes, is refused."""

    def change(module: dict[str, Any]) -> None:
        module["graph"]["nodes"][0]["inputs"][-1]["arg"] = value

    refused(changed_program(tmp_path, change), tmp_path, "net.pt2")


@pytest.mark.parametrize("name", ["__class__", "__init__", "overloads", "name", "\u00e9"])
def test_a_program_calls_operators_only(name: str, tmp_path: Path) -> None:
    """An attribute of an operator that is no operator itself is not called."""

    def change(module: dict[str, Any]) -> None:
        module["graph"]["nodes"][0]["target"] = f"torch.ops.aten.add.{name}"

    refused(changed_program(tmp_path, change), tmp_path, "net.pt2")


def test_names_of_a_program_become_no_code(tmp_path: Path) -> None:
    """Values, weights and inputs may be called anything: those names are never written."""

    def renamed(said: Any) -> Any:
        if isinstance(said, dict):
            return {
                key: CODE.replace("FILE", str(tmp_path / "ran")) + str(each)
                if key == "name" and isinstance(each, str) and "kind" not in said
                else renamed(each)
                for key, each in said.items()
            }
        return [renamed(each) for each in said] if isinstance(said, list) else said

    def change(module: dict[str, Any]) -> None:
        module.update(renamed(module))

    load_network(changed_program(tmp_path, change), tmp_path / "out")

    assert not (tmp_path / "ran").exists()
