"""Files made to harm are refused before they can, and the error names what was found."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from torch import nn

from segbatch.errors import ModelError
from segbatch.infer.engine.models import open_model
from segbatch.learn.intake import load_network
from segbatch.learn.intake.__main__ import main
from segbatch.learn.intake.bioimageio.describe import Description, Operation, Tensor
from segbatch.learn.intake.bioimageio.steps import honour_after, honour_before
from segbatch.learn.intake.facts import Facts
from segbatch.learn.intake.forms.script_code import OddError
from segbatch.learn.intake.forms.script_graph import look_at_graphs
from segbatch.learn.intake.forms.torchscript import looked_at
from segbatch.learn.nets import Architecture, build
from tests.infer.networks import draw_unet

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.learn, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


class Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


def net() -> nn.Module:
    """Return a small network."""
    return build(Architecture(base=2, depth=1, convolutions=1), 0).eval()


def refused(source: Path, folder: Path, *named: str) -> None:
    """Take a source in through the command; its error has to name some things."""
    said = io.StringIO()
    with redirect_stdout(said):
        code = main([str(source), str(folder / "out")])
    answer = json.loads(said.getvalue())

    assert code == 3
    assert answer["wanted"]
    assert answer["remedy"]
    for each in named:
        assert each in answer["got"]
    assert not list((folder / "out").glob("*.onnx"))


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """Copy a zip archive with changed members; None leaves one out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            if (content := change(name, old.read(name))) is not None:
                new.writestr(name, content)
    return target


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_not_run(legacy: bool, tmp_path: Path) -> None:
    """A checkpoint that would run a function when it is loaded is refused by its name."""
    content = {"state_dict": Touch(tmp_path / "ran")}
    torch.save(content, tmp_path / "net.pt", _use_new_zipfile_serialization=not legacy)
    refused(tmp_path / "net.pt", tmp_path, "net.pt", "system")

    assert not (tmp_path / "ran").exists()


def test_a_bare_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    """A plain pickle that would run a command is refused and not run."""
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    refused(tmp_path / "net.pkl", tmp_path, "net.pkl")

    assert not (tmp_path / "ran").exists()


def test_processing_with_such_a_model_ends_with_its_own_exit_code(tmp_path: Path) -> None:
    """`segbatch process` ends with exit code 3 and the reason, before it looks at a frame."""
    torch.save({"net": Touch(tmp_path / "ran")}, tmp_path / "net.pt")
    (tmp_path / "frames").mkdir()
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(tmp_path / "frames" / "a.tif")
    command = [sys.executable, "-m", "segbatch", "process", str(tmp_path / "frames")]
    command += ["--model", str(tmp_path / "net.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 3
    assert "system" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_open_model_does_not_run_code_either(tmp_path: Path) -> None:
    """The way that `process --model` takes refuses such a pickle with the same words."""
    torch.save({"net": Touch(tmp_path / "ran")}, tmp_path / "net.pt")

    with pytest.raises(ModelError, match="system") as caught:
        open_model(tmp_path / "net.pt")
    assert "run code" in caught.value.wanted
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", ["pt", "pt2", "onnx", "jit"])
@pytest.mark.parametrize("part", [0.0, 0.5, 0.97])
def test_truncated_files_are_refused(suffix: str, part: float, tmp_path: Path) -> None:
    """The first part of a checkpoint, program, TorchScript or ONNX file is refused."""
    file = tmp_path / f"net.{suffix}"
    if suffix == "pt":
        torch.save(net().state_dict(), file)
    elif suffix == "pt2":
        torch.export.save(torch.export.export(net(), (torch.zeros(1, 1, 8, 8),)), file)
    elif suffix == "jit":
        torch.jit.trace(net(), torch.zeros(1, 1, 8, 8)).save(file)
    else:
        draw_unet(file)
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])

    with pytest.raises(ModelError, match="net"):
        load_network(file, tmp_path / "out")


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """An archive that would unpack to far more than it is, is refused with both sizes."""
    file = tmp_path / "net.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", b"\x80\x02}.")
        for part in range(4):
            archive.writestr(f"net/data/{part}", bytes(64 << 20))

    refused(file, tmp_path, str(4 * (64 << 20) + 4), str(file.stat().st_size))


@pytest.mark.parametrize("name", ["../../escape", "/root/escape", "C:\\escape", "net/../../escape"])
def test_archives_that_name_other_places_are_refused(name: str, tmp_path: Path) -> None:
    """A member with a path out of its archive is named, and nothing is unpacked."""
    file = tmp_path / "net.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("rdf.yaml", "type: model\n")
        archive.writestr(name, "x")

    refused(file, tmp_path, "escape")


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    """A member that is a symbolic link is refused."""
    file = tmp_path / "net.zip"
    link = zipfile.ZipInfo("weights.onnx")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("rdf.yaml", "type: model\n")
        archive.writestr(link, "/etc/passwd")

    refused(file, tmp_path, "a link")


def external(file: Path, location: str, **more: str) -> Path:
    """Write a network whose weights lie in another file."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1, 1, 3, 3])
    weights.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        weights.external_data.add(key=key, value=value)
    free = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        "network",
        [free("x", TensorProto.FLOAT, ["n", 1, "h", "w_"])],
        [free("y", TensorProto.FLOAT, ["n", 1, "h", "w_"])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file.write_bytes(model.SerializeToString())
    return file


@pytest.mark.parametrize(
    "location", ["../../../../etc/passwd", "/etc/passwd", "sub/../../secret", "", "missing.bin"]
)
def test_external_weights_stay_in_their_folder(location: str, tmp_path: Path) -> None:
    """Weights in a file outside the network's folder, or in none, are refused by that name."""
    refused(external(tmp_path / "net.onnx", location), tmp_path, repr(location))


def test_external_weights_behind_a_link_are_refused(tmp_path: Path) -> None:
    """A link in the folder that leads out of it is no file of the folder."""
    (tmp_path / "weights.bin").symlink_to("/etc/passwd")

    refused(external(tmp_path / "net.onnx", "weights.bin"), tmp_path, "weights.bin")


@pytest.mark.parametrize("more", [{"offset": "-4"}, {"offset": "36"}, {"length": "1e9"}])
def test_external_weights_beyond_their_file_are_refused(
    more: dict[str, str], tmp_path: Path
) -> None:
    """An offset or a length that does not lie in the file is refused."""
    (tmp_path / "weights.bin").write_bytes(bytes(36))
    more = {"length": "36", **more}

    refused(external(tmp_path / "net.onnx", "weights.bin", **more), tmp_path, "36 bytes")


def test_external_weights_beside_it_are_read(tmp_path: Path) -> None:
    """Weights in a file of the network's own folder are read, and become part of the model."""
    (tmp_path / "weights.bin").write_bytes(np.ones(9, np.float32).tobytes())
    external(tmp_path / "net.onnx", "weights.bin", length="36")
    model = open_model(tmp_path / "net.onnx")
    first = model.manifest.sha256
    (tmp_path / "weights.bin").write_bytes(np.full(9, 2, np.float32).tobytes())

    assert model.manifest.halo_px == 1
    assert open_model(tmp_path / "net.onnx").manifest.sha256 != first


@pytest.mark.parametrize(
    ("kind", "domain"), [("Evil", "com.evil"), ("FusedConv", "com.microsoft"), ("Nonsense", "")]
)
def test_operators_of_others_are_refused(kind: str, domain: str, tmp_path: Path) -> None:
    """An ONNX operator outside the standard is refused by its name and domain."""
    draw_unet(tmp_path / "net.onnx", depth=1)
    model = onnx.load(tmp_path / "net.onnx")
    model.graph.node[0].op_type, model.graph.node[0].domain = kind, domain
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    onnx.save(model, tmp_path / "net.onnx")

    refused(tmp_path / "net.onnx", tmp_path, kind, domain)


def scripted(folder: Path) -> Path:
    """Write a TorchScript file."""
    file = folder / "plain.pt"
    torch.jit.trace(net(), torch.zeros(1, 1, 8, 8)).save(file)
    return file


@pytest.mark.parametrize(
    "line",
    [
        'torch.save(input, "FILE")',
        '_0 = torch.from_file("/etc/passwd", False, 10)',
        'ops.aten.save(input, "FILE")',
        "_0 = ops.image.read_file('/etc/passwd')",
        "_0 = torch.classes.evil.Thing()",
        'input.save("FILE")',
        'f = input.save\n    f("FILE")',
        "import os",
        "fork(input)",
        "print(input)",
        "_0 = lambda: 0",
    ],
)
def test_torchscript_that_does_more_than_compute_is_refused(line: str, tmp_path: Path) -> None:
    """Code in a TorchScript archive that reaches for files, threads or classes is not loaded."""
    changed = []

    def change(name: str, content: bytes) -> bytes:
        code = content.decode() if name.endswith(".py") else ""
        if found := re.search(r"def forward\(self: [^,]+,\s*(\w+): Tensor\) -> Tensor:\n", code):
            evil = line.replace("FILE", str(tmp_path / "ran")).replace("input", found[1])
            changed.append(name)
            return f"{code[: found.end()]}    {evil}\n{code[found.end() :]}".encode()
        return content

    evil = rewritten(scripted(tmp_path), tmp_path / "net.pt", change)
    refused(evil, tmp_path, "TorchScript with")

    assert changed
    assert not (tmp_path / "ran").exists()


EVIL = 'zzz(input, "FILE")'
OWN = "def zzz(self, a: Tensor, b: str) -> Tensor:\n    return a"


@pytest.mark.parametrize(
    ("lines", "method"),
    [
        (['zzz = getattr(ops.aten, "save")', EVIL], OWN),
        (["zzz = ops.aten.save", EVIL], OWN),
        (["zzz = torch.save", EVIL], OWN),
        (["zzz = input.save", 'zzz("FILE")'], OWN),
        (["len = input.save", 'len("FILE")'], ""),
        (['_0 = getattr(input, "save")', '_0("FILE")'], ""),
        (['(getattr(input, "save"))("FILE")'], ""),
        (["zzz, yyy = ops.aten.save, 1", EVIL], OWN),
        (["zzz = (ops.aten.save, 1)", '(zzz)[0](input, "FILE")'], OWN),
        (["zzz: Tensor = ops.aten.save", EVIL], OWN),
        (["o = ops", 'o.aten.save(input, "FILE")'], "def save(self) -> int:\n    return 1"),
        (["a = ops.aten", 'a.save(input, "FILE")'], "def save(self) -> int:\n    return 1"),
        (["ops = torch", "ops.aten.relu(input)"], ""),
        (["zzz = __torch__.torch", "zzz.classes.quantized.zzz()"], OWN),
        (["_0 = annotate(__torch__.torch.classes.a.B, input)"], ""),
        (["_0 = __torch__.other.function(input)"], ""),
        (["_0 = [zzz(input, 'FILE') for zzz in (ops.aten.save,)]"], OWN),
        (["for zzz in [ops.aten.save]:", f"  {EVIL}"], OWN),
        (["def zzz(a: Tensor, b: str) -> Tensor:", "  return a", EVIL], ""),
        (["_0 = input"], "def zzz(self, f: Tensor = ops.aten.save) -> int:\n    return 1"),
        (["_0 = input"], "def __setstate__(self, state: Tensor) -> None:\n    return None"),
        (["_0 = input"], '__forward_hooks__ = ["forward", ]'),
        (["_0 = input"], "@property\n  def zzz(self) -> int:\n    return 1"),
        (['#+AAo-    """', "ops.aten.save(input, 'FILE')", '#"""'], "coding: utf-7"),
        (["_0 = input  # \u00e9"], ""),
        (['"""', 'ops.aten.save(input, "FILE")', '"""'], ""),
    ],
)
def test_torchscript_cannot_hide_what_it_calls(
    lines: list[str], method: str, tmp_path: Path
) -> None:
    """No other name, form or spelling leads a TorchScript file to an operator on files."""
    head = "# coding: utf-7\n" if method.startswith("coding") else ""
    changed = []

    def change(name: str, content: bytes) -> bytes:
        code = content.decode() if name.endswith(".py") else ""
        if found := re.search(r"def forward\(self: [^,]+,\s*(\w+): Tensor\) -> Tensor:\n", code):
            evil = "".join(f"    {line}\n" for line in lines)
            evil = evil.replace("FILE", str(tmp_path / "ran")).replace("input", found[1])
            own = f"  {method}\n" if method and not head else ""
            code = f"{head}{code[: found.end()]}{evil}{code[found.end() :].rstrip()}\n{own}"
            changed.append(name)
        return code.encode() or content

    evil = rewritten(scripted(tmp_path), tmp_path / "net.pt", change)
    refused(evil, tmp_path, "TorchScript with")

    assert changed
    assert not (tmp_path / "ran").exists()


def test_torchscript_is_loaded_as_it_was_understood(tmp_path: Path) -> None:
    """Torch is given code without comments, which it and the look at it could read differently."""

    def change(name: str, content: bytes) -> bytes:
        return content + b"# a comment\n" if name.endswith(".py") else content

    source = rewritten(scripted(tmp_path), tmp_path / "net.pt", change)
    with zipfile.ZipFile(looked_at(source)) as archive:
        code = [archive.read(name) for name in archive.namelist() if name.endswith(".py")]

    assert code
    assert not any(b"#" in each for each in code)


@pytest.mark.parametrize(
    "line",
    [
        'ops.aten.save(input, "FILE")',
        'input = torch.add(input, torch.from_file("/etc/passwd", False, 10))',
        "print(input)",
        'if bool(torch.gt(torch.sum(input), 0)):\n      ops.aten.save(input, "FILE")',
    ],
)
def test_what_torch_made_of_a_script_is_looked_at_again(line: str, tmp_path: Path) -> None:
    """An operator that reached the loaded graph is refused there, before anything is run."""

    def change(name: str, content: bytes) -> bytes | None:
        code = content.decode() if name.endswith(".py") else ""
        if found := re.search(r"def forward\(self: [^,]+,\s*(\w+): Tensor\) -> Tensor:\n", code):
            evil = line.replace("FILE", str(tmp_path / "ran")).replace("input", found[1])
            return f"{code[: found.end()]}    {evil}\n{code[found.end() :]}".encode()
        return None if name.endswith(".debug_pkl") else content

    look_at_graphs(torch.jit.load(scripted(tmp_path)))
    evil = torch.jit.load(rewritten(scripted(tmp_path), tmp_path / "net.pt", change))

    with pytest.raises(OddError, match="in method forward"):
        look_at_graphs(evil)


def test_torchscript_with_other_files_of_code_is_refused(tmp_path: Path) -> None:
    """Every file of an archive's code is read; one of another kind is refused by its name."""
    evil = rewritten(scripted(tmp_path), tmp_path / "net.pt", lambda _, content: content)
    with zipfile.ZipFile(evil, "a") as archive:
        archive.writestr("plain/code/odd.so", b"\x7fELF")

    refused(evil, tmp_path, "odd.so")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02c__torch__.torch.classes.evil\nThing\n)\x81.",
        b"\x80\x02c__torch__.torch\nclasses.evil.Thing\n)\x81.",
        b"\x80\x02c__torch__\ntorch.classes.evil.Thing\n)\x81.",
        b"\x80\x02c__torch__.not_of_the_archive\nThing\n)\x81.",
        b"\x80\x02cos\nsystem\n)R.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93)R.",
        b"\x80\x02(]X\x22\x00\x00\x00List[__torch__.torch.classes.ev.il]t.",
        b"\x80\x02X\xff",
    ],
)
def test_torchscript_with_objects_of_libraries_is_refused(content: bytes, tmp_path: Path) -> None:
    """An object that is none of the archive's own classes is not made, however it is spelled."""
    source = scripted(tmp_path)

    def change(name: str, before: bytes) -> bytes:
        return content if name.endswith("constants.pkl") else before

    refused(rewritten(source, tmp_path / "net.pt", change), tmp_path, "TorchScript with")


def test_torchscript_without_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop without end costs the time limit and no more."""

    class Endless(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            while bool(x.sum() < 1e30):
                x = x * 1.0
            return x

    torch.jit.script(Endless()).save(tmp_path / "net.pt")
    monkeypatch.setattr("segbatch.infer.engine.adopt.TIMEOUT_S", 8.0)

    with pytest.raises(ModelError, match="not read within 8 s"):
        open_model(tmp_path / "net.pt")


def test_torchscript_without_measure_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor larger than the memory limit ends in an error, not in a machine out of memory."""

    class Huge(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.ones(1 << 34).sum()

    torch.jit.script(Huge()).save(tmp_path / "net.pt")
    monkeypatch.setattr("segbatch.infer.engine.adopt.MEMORY_GIB", 4.0)

    with pytest.raises(ModelError, match=r"net\.pt"):
        open_model(tmp_path / "net.pt")


def program(folder: Path) -> Path:
    """Write an exported program."""
    file = folder / "plain.pt2"
    torch.export.save(torch.export.export(net(), (torch.zeros(1, 1, 8, 8),)), file)
    return file


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


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("clip", {"min": "a"}),
        ("clip", {"max": [1]}),
        ("scale_linear", {"gain": "a"}),
        ("scale_linear", {"gain": 0}),
        ("scale_linear", {"gain": float("nan")}),
        ("scale_linear", {"gain": 1e-320, "offset": 1.0}),
        ("scale_linear", {"gain": [], "offset": 10**400}),
        ("zero_mean_unit_variance", {"mode": "fixed", "mean": 1, "std": 0, "eps": 0}),
        ("zero_mean_unit_variance", {"mode": "fixed", "mean": "a", "std": 1}),
        ("fixed_zero_mean_unit_variance", {"mean": 1, "std": 0}),
        ("fixed_zero_mean_unit_variance", {"mean": [], "std": []}),
        ("zero_mean_unit_variance", {"eps": "a"}),
        ("zero_mean_unit_variance", {"axes": 5}),
        ("scale_range", {"min_percentile": "a"}),
        ("scale_range", {"eps": {}}),
        ("binarize", {"threshold": "a"}),
        ("binarize", {}),
    ],
)
def test_steps_of_a_package_hold_numbers(name: str, given: dict[str, Any]) -> None:
    """A step with anything else than a number where one is needed is refused by its name."""
    end = Tensor("a", None, None, [Operation(name, given)], [], None)
    told = Description("told", "0.5", "net", [], end, end, 1, 0, {}, {})
    honours = (honour_after,) if name == "binarize" else (honour_before,)
    if name == "clip":
        honours = (honour_before, honour_after)

    for honour in honours:
        with pytest.raises(ModelError, match=f"step {name}"):
            honour(told, Facts("", "", []))


@pytest.mark.parametrize("content", [b"", b"text", b"\x7fELF\x02\x01", b"PK\x03\x04", b"\x89HDF"])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    """A file that is no network is refused by its first bytes, whatever its name says."""
    (tmp_path / "net.onnx").write_bytes(content)

    refused(tmp_path / "net.onnx", tmp_path, "net.onnx")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """A name that is neither file nor folder is refused at once."""
    os.mkfifo(tmp_path / "net.onnx")

    refused(tmp_path / "net.onnx", tmp_path, "net.onnx")
