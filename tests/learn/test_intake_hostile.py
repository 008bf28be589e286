"""Files made to harm are refused before they can, and the error names what was found."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from segbatch.errors import ModelError
from segbatch.infer.engine.network.models import open_model
from segbatch.learn.intake import load_network
from segbatch.learn.intake.bioimageio.describe import Description, Operation, Tensor
from segbatch.learn.intake.bioimageio.steps import honour_after, honour_before
from segbatch.learn.intake.facts import Facts
from tests.infer.networks import draw_unet
from tests.learn.hostile import Touch, net, refused

if TYPE_CHECKING:
    pass

pytestmark = [pytest.mark.learn, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


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
