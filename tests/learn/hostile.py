"""Files made to harm, and the way that each of them is refused."""

from __future__ import annotations

import io
import json
import os
import zipfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from segbatch.learn.intake.__main__ import main
from segbatch.learn.nets import Architecture, build

if TYPE_CHECKING:
    from collections.abc import Callable


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


def scripted(folder: Path) -> Path:
    """Write a TorchScript file."""
    file = folder / "plain.pt"
    torch.jit.trace(net(), torch.zeros(1, 1, 8, 8)).save(file)
    return file


def program(folder: Path) -> Path:
    """Write an exported program."""
    file = folder / "plain.pt2"
    torch.export.save(torch.export.export(net(), (torch.zeros(1, 1, 8, 8),)), file)
    return file
