"""TorchScript made to harm is refused before it can, and the error names what was found."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from segbatch.errors import ModelError
from segbatch.infer.engine.network.models import open_model
from segbatch.learn.intake.forms.script_code import OddError
from segbatch.learn.intake.forms.script_graph import look_at_graphs
from segbatch.learn.intake.forms.torchscript import looked_at
from tests.learn.hostile import refused, rewritten, scripted

if TYPE_CHECKING:
    pass

pytestmark = [pytest.mark.learn, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


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
    monkeypatch.setattr("segbatch.infer.engine.network.reading.TIMEOUT_S", 8.0)

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
    monkeypatch.setattr("segbatch.infer.engine.network.reading.MEMORY_GIB", 4.0)

    with pytest.raises(ModelError, match=r"net\.pt"):
        open_model(tmp_path / "net.pt")
