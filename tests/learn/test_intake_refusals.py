"""What is refused is named in plain words: what the file is, what was wanted, what to do."""

from __future__ import annotations

import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from segbatch.errors import ModelError
from segbatch.infer.engine.network.models import open_model
from segbatch.learn.intake import load_network
from segbatch.learn.nets import Architecture, build
from tests.infer.networks import draw_unet
from tests.learn.hostile import Touch, net, scripted

pytestmark = [pytest.mark.learn, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def refusal(source: Path, arch: str | None = None) -> ModelError:
    """Take a source in and return its refusal, which names the file and a remedy."""
    with pytest.raises(ModelError) as caught:
        load_network(source, source.parent / "out", arch=arch)
    assert str(source) in caught.value.got
    assert caught.value.wanted
    assert caught.value.remedy
    return caught.value


def weights() -> dict[str, torch.Tensor]:
    """Return weights of a small network."""
    return dict(net().state_dict())


def traced(module: nn.Module, file: Path, *images: torch.Tensor) -> Path:
    """Write a module as TorchScript."""
    torch.jit.trace(module.eval(), images, check_trace=False).save(file)
    return file


@pytest.mark.parametrize("protocol", range(6))
def test_a_plain_pickle_is_called_one(protocol: int, tmp_path: Path) -> None:
    """A pickle of plain values is refused as that, whatever its protocol."""
    (tmp_path / "net.pt").write_bytes(pickle.dumps({"a": [1, 2]}, protocol=protocol))
    error = refusal(tmp_path / "net.pt")

    assert "plain pickle" in error.got
    assert "torch.save(net.state_dict(), FILE)" in error.remedy


@pytest.mark.parametrize("protocol", range(6))
def test_what_a_plain_pickle_calls_is_named(protocol: int, tmp_path: Path) -> None:
    """A pickle that would call a function is refused by the function's name, and not run."""
    said = pickle.dumps({"a": Touch(tmp_path / "ran")}, protocol=protocol)
    (tmp_path / "net.pt").write_bytes(said)
    error = refusal(tmp_path / "net.pt")

    assert "system" in error.got
    assert "run code" in error.wanted
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_of_a_later_protocol_are_called_that(zipped: bool, tmp_path: Path) -> None:
    """Weights in a pickle that torch's safe reader does not read are named by its protocol."""
    torch.save(
        weights(),
        tmp_path / "net.pt",
        pickle_protocol=4,
        _use_new_zipfile_serialization=zipped,
    )
    error = refusal(tmp_path / "net.pt")

    assert "torch.save" in error.got
    assert "protocol 4" in error.got
    assert "calls" not in error.got


def test_a_texts_second_use_is_followed(tmp_path: Path) -> None:
    """A function whose name is put together of texts seen before is named rightly."""
    said = [Touch(tmp_path / "one"), "posix", "system", Touch(tmp_path / "two")]
    (tmp_path / "net.pt").write_bytes(pickle.dumps(said[1:], protocol=4))

    assert "calls posix.system" in refusal(tmp_path / "net.pt").got


def test_a_saved_module_is_named_by_its_class(tmp_path: Path) -> None:
    """A whole module in a pickle is refused by its class, with the way to save its weights."""
    torch.save(nn.Sequential(net()), tmp_path / "net.pt")
    error = refusal(tmp_path / "net.pt")

    assert "torch.nn.modules.container.Sequential" in error.got
    assert "state_dict" in error.remedy


@pytest.mark.parametrize(
    ("content", "told"), [([1, 2], "a list"), ({"epoch": 1, "loss": 0.5}, "epoch, loss")]
)
def test_files_without_weights_say_what_they_hold(content: Any, told: str, tmp_path: Path) -> None:
    """A file of torch.save without weights is refused by what it holds instead."""
    torch.save(content, tmp_path / "net.pt")

    assert told in refusal(tmp_path / "net.pt").got


def test_torchscript_without_its_parts_is_called_that(tmp_path: Path) -> None:
    """An archive that only looks like TorchScript is refused by the part that it lacks."""
    with (
        zipfile.ZipFile(scripted(tmp_path)) as whole,
        zipfile.ZipFile(tmp_path / "net.pt", "w") as part,
    ):
        for name in whole.namelist():
            if not name.endswith("/data.pkl"):
                part.writestr(name, whole.read(name))

    assert "TorchScript archive without data.pkl" in refusal(tmp_path / "net.pt").got


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "an empty file"),
        (b"this is a text\n", "a text file that begins with 'this is a text'"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
        (b'\x28\0\0\0\0\0\0\0{"a":{}}', "safetensors"),
        (b"ftrt" + bytes(64), "TensorRT"),
        (b"\x1f\x8b\x08" + bytes(64), "compressed"),
        (b"\x7fELF\x02\x01", "first bytes"),
    ],
)
def test_other_files_are_called_what_they_are(content: bytes, told: str, tmp_path: Path) -> None:
    """A file that is no network is refused as what its first bytes say, whatever its name."""
    (tmp_path / "net.onnx").write_bytes(content)

    assert told in refusal(tmp_path / "net.onnx").got


def test_a_folder_without_description_names_the_network_in_it(tmp_path: Path) -> None:
    """A folder that is no package is refused with the file in it that could be meant."""
    draw_unet(tmp_path / "net.onnx", depth=1)

    with pytest.raises(ModelError, match=r"rdf\.yaml") as caught:
        open_model(tmp_path)
    assert str(tmp_path / "net.onnx") in caught.value.remedy


@pytest.mark.parametrize("form", ["onnx", "ts", "pt2", "pt"])
def test_four_channels_are_counted(form: str, tmp_path: Path) -> None:
    """A network of four input channels is refused by that number in every form."""
    file = tmp_path / f"net.{form}"
    made = build(Architecture(in_channels=4, base=2, depth=1, convolutions=1), 0).eval()
    image = torch.zeros(1, 4, 16, 16)
    if form == "onnx":
        draw_unet(file, channels=4, depth=1)
    elif form == "ts":
        traced(made, file, image)
    elif form == "pt2":
        torch.export.save(torch.export.export(made, (image,)), file)
    else:
        torch.save(made.state_dict(), file)
    error = refusal(file, "segbatch-unet" if form == "pt" else None)

    assert error.got.endswith("4 input channels")


@pytest.mark.parametrize("form", ["ts", "pt2", "pt"])
def test_three_dimensions_are_named(form: str, tmp_path: Path) -> None:
    """A three-dimensional network is refused as one in every form."""
    file = tmp_path / f"net.{form}"
    made = nn.Sequential(nn.Conv3d(1, 1, 3, padding=1)).eval()
    image = torch.zeros(1, 1, 8, 8, 8)
    if form == "ts":
        traced(made, file, image)
    elif form == "pt2":
        torch.export.save(torch.export.export(made, (image,)), file)
    else:
        torch.save(made.state_dict(), file)

    assert "three-dimensional" in refusal(file).got


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("form", ["onnx", "ts", "pt"])
def test_weights_that_are_no_numbers_are_named(form: str, value: float, tmp_path: Path) -> None:
    """NaN or infinity in weights is refused by the weights' name."""
    file = tmp_path / f"net.{form}"
    state = weights()
    state["head.weight"].view(-1)[0] = value
    if form == "onnx":
        draw_unet(file, depth=1)
        model = onnx.load(file)
        tensor = model.graph.initializer[0]
        array = onnx.numpy_helper.to_array(tensor).copy()
        array.flat[0] = value
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, "first"))
        for node in model.graph.node:
            node.input[:] = ["first" if name == "w0" else name for name in node.input]
        onnx.save(model, file)
    elif form == "ts":
        made = net()
        made.load_state_dict(state)
        traced(made, file, torch.zeros(1, 1, 8, 8))
    else:
        torch.save(state, file)
    error = refusal(file, "segbatch-unet" if form == "pt" else None)

    assert ("first" if form == "onnx" else "head.weight") in error.got
    assert "NaN or infinity" in error.got


class Two(nn.Module):
    """Takes two images."""

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return their sum."""
        return one + other


def test_inputs_are_counted_and_named(tmp_path: Path) -> None:
    """A script of two inputs is refused by their names."""
    image = torch.zeros(1, 1, 8, 8)

    assert "2 inputs (one, other)" in refusal(traced(Two(), tmp_path / "n.pt", image, image)).got


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (nn.Conv2d(1, 1, 3, 2, 1), "(1, 1, 32, 32) for an image of (1, 1, 64, 64)"),
        (nn.Upsample(scale_factor=2), "(1, 1, 128, 128) for an image of (1, 1, 64, 64)"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), "(1, 1) for an image"),
    ],
)
def test_answers_of_other_sizes_are_stated(made: nn.Module, told: str, tmp_path: Path) -> None:
    """A network whose answer does not follow its input is refused with both shapes."""
    assert told in refusal(traced(made, tmp_path / "net.pt", torch.zeros(1, 1, 32, 32))).got


def test_the_first_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    """Weights with the wrong architecture are refused by the first names on either side."""
    torch.save(weights(), tmp_path / "net.pt")
    error = refusal(tmp_path / "net.pt", "smp-unet-resnet34")

    assert "decoder.blocks.0.conv1.0.weight" in error.got
    assert "down.0.0.weight" in error.got
    assert error.remedy == "they fit --arch segbatch-unet"


def test_missing_weights_and_those_too_many_are_named(tmp_path: Path) -> None:
    """Of nearly fitting weights the error says which are missing, unknown or of another shape."""
    state = weights()
    state["extra"] = state.pop("head.bias")
    torch.save(state, tmp_path / "net.pt")
    error = refusal(tmp_path / "net.pt", "segbatch-unet")

    assert "missing head.bias" in error.got
    assert "not known extra" in error.got


def test_weights_alone_are_told_how_to_be_named(tmp_path: Path) -> None:
    """Without an architecture the error lists them, and what the weights are called."""
    torch.save({"stem.weight": torch.zeros(3)}, tmp_path / "net.pt")
    error = refusal(tmp_path / "net.pt")

    assert "stem.weight" in error.got
    assert "--arch smp-unet-vgg16" in error.wanted


@pytest.mark.parametrize("words", [["process", "run"], ["export-engine"]])
def test_commands_print_the_refusal_and_end_with_3(words: list[str], tmp_path: Path) -> None:
    """Both commands print what was found, wanted and to be done, without a traceback."""
    (tmp_path / "run").mkdir()
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(tmp_path / "run" / "a.tif")
    (tmp_path / "net.onnx").write_text("no network")
    model = ["--model", "net.onnx"] if words[0] == "process" else ["net.onnx"]
    done = subprocess.run(
        [sys.executable, "-m", "segbatch", *words, *model],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )

    assert done.returncode == 3, done.stderr
    assert "a text file that begins with 'no network'" in done.stderr
    assert "remedy: name the network's own file" in done.stderr
    assert "Traceback" not in done.stderr
