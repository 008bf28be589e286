"""What is taken in is kept under all that was read, and never taken from who uses it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from structlog.testing import capture_logs
from torch import nn

from segbatch.errors import ModelError
from segbatch.infer.engine import cache
from segbatch.infer.engine.made.artifact import engines_of
from segbatch.infer.engine.manifest import load_model
from segbatch.infer.engine.network import reading
from segbatch.infer.engine.network.models import open_model
from tests.infer.networks import draw_unet
from tests.learn.packages import Package, counts, exported, network, run

pytestmark = [pytest.mark.learn, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep models in a folder of each test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def kept_files() -> list[Path]:
    """Return every file and folder below the kept models, apart from the models' own."""
    return [
        each
        for each in (cache.cache_folder() / "models").rglob("*")
        if each.is_dir() or each.suffix not in (".json", ".onnx")
    ]


def trained(folder: Path, value: float) -> Path:
    """Write a network whose main file says nothing of its weights, which are all ``value``."""
    folder.mkdir()
    draw_unet(folder / "net.onnx", depth=1)
    model = onnx.load(folder / "net.onnx")
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 4:
            array = np.full(tuple(tensor.dims), value, np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save_model(
        model, folder / "net.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    return folder / "net.onnx"


def test_trainings_with_equal_main_files_are_different_models(tmp_path: Path) -> None:
    """Two networks whose main files are equal and whose weights are not stay two, kept at once."""
    one, two = trained(tmp_path / "one", 0.5), trained(tmp_path / "two", 0.25)
    first, second = open_model(one), open_model(two)

    assert load_model(first.file.with_suffix(".json")) == first
    assert one.read_bytes() == two.read_bytes()
    assert first.manifest.sha256 != second.manifest.sha256
    assert open_model(one) == first
    assert open_model(two) == second


def test_weights_that_change_leave_what_was_kept(tmp_path: Path) -> None:
    """New weights beside the same main file are taken in without removing the old model."""
    file = trained(tmp_path / "one", 0.5)
    first = open_model(file)
    trained(tmp_path / "two", 0.25).with_name("w.bin").replace(file.with_name("w.bin"))
    second = open_model(file)

    assert first.manifest.sha256 != second.manifest.sha256
    assert load_model(first.file.with_suffix(".json")).manifest == first.manifest


def test_the_same_files_at_two_places_are_taken_in_once(tmp_path: Path) -> None:
    """A copy of a network, with its weights, opens what was kept for the first."""
    one, two = trained(tmp_path / "one", 0.5), trained(tmp_path / "two", 0.5)

    assert open_model(one) == open_model(two)


SLOW = """
import sys, time
from pathlib import Path
from segbatch.infer.engine.network import adopt
source, mine, others = map(Path, sys.argv[1:])
real = adopt.read_apart
def run(*arguments):
    made = real(*arguments)
    mine.touch()
    while not others.exists():
        time.sleep(0.01)
    return made
adopt.read_apart = run
kept = adopt.adopt(source)
print(kept, kept.stat().st_ino)
"""


def two_at_once(tmp_path: Path) -> list[str]:
    """Take a network in by two processes at once; return which file each has, and its inode."""
    marks = [tmp_path / "first", tmp_path / "second"]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", SLOW, str(tmp_path / "net.onnx"), *map(str, order)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for order in (marks, marks[::-1])
    ]
    return [process.communicate()[0].splitlines()[-1] for process in both]


def test_two_processes_that_take_in_one_network_keep_one(tmp_path: Path) -> None:
    """Who is second uses what the first has kept, and leaves it as it is."""
    draw_unet(tmp_path / "net.onnx", depth=1)
    said = two_at_once(tmp_path)
    kept, inode = said[0].rsplit(" ", 1)

    assert said[0] == said[1]
    assert Path(kept).stat().st_ino == int(inode)
    assert len(kept_files()) == 2  # its key, and below it one model


@pytest.mark.parametrize("ended", [False, True])
def test_nothing_else_is_left_behind(
    ended: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Temporary files of the process that reads go with it, also when it is ended."""

    class Endless(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            while bool(x.sum() < 1e30):
                x = x * 1.0
            return x

    (tmp_path / "tmp").mkdir()
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.setenv(name, str(tmp_path / "tmp"))
    if ended:
        torch.jit.script(Endless()).save(tmp_path / "net.pt")
        monkeypatch.setattr(reading, "TIMEOUT_S", 6.0)
        with pytest.raises(ModelError, match="not read within"):
            open_model(tmp_path / "net.pt")
    else:
        draw_unet(tmp_path / "net.onnx", depth=1)
        open_model(tmp_path / "net.onnx")

    assert not list((tmp_path / "tmp").iterdir())
    assert len(kept_files()) == (1 if ended else 2)


def test_modules_of_the_current_folder_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with networks may hold Python files; none is run because one stands there."""
    for name in ("onnx", "numpy", "torch", "segbatch", "argparse"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()\nraise SystemExit(9)\n")
    draw_unet(tmp_path / "net.onnx", depth=1)
    monkeypatch.chdir(tmp_path)

    assert open_model(tmp_path / "net.onnx").manifest.stride == 2
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", ["network", "no network", "manifest"])
def test_what_is_damaged_is_put_right_in_its_place(damage: str, tmp_path: Path) -> None:
    """A damaged model is told, and made again where its engines are, which serve it as before."""
    draw_unet(tmp_path / "net.onnx", depth=1)
    first = open_model(tmp_path / "net.onnx")
    manifest_file = first.file.with_suffix(".json")
    engine = first.file.with_name("net.openvino-bf16.engine.json")
    engine.write_text("{}")
    whole, told = first.file.read_bytes(), manifest_file.read_bytes()
    if damage == "network":
        first.file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    elif damage == "no network":
        first.file.unlink()
    else:
        manifest_file.write_bytes(told[:-20])
    with capture_logs() as lines:
        second = open_model(tmp_path / "net.onnx")
    [warned] = [line for line in lines if "damaged" in line["event"]]

    assert second == first
    assert (first.file.read_bytes(), manifest_file.read_bytes()) == (whole, told)
    assert engines_of(manifest_file, first.manifest.sha256) == [engine]
    assert warned["log_level"] == "warning"
    assert str(first.file.parent) in warned["why"]
    assert [each.name for each in kept_files()] == [
        first.file.parent.parent.name,
        first.file.parent.name,
    ]


def test_two_processes_that_put_one_network_right_keep_one(tmp_path: Path) -> None:
    """A damaged model that two processes make again at once is whole, and in its place."""
    draw_unet(tmp_path / "net.onnx", depth=1)
    first = open_model(tmp_path / "net.onnx")
    first.file.write_bytes(b"damaged")
    said = two_at_once(tmp_path)

    assert {Path(each.rsplit(" ", 1)[0]) for each in said} == {first.file.with_suffix(".json")}
    assert load_model(first.file.with_suffix(".json")) == first
    assert len(kept_files()) == 2


def test_its_steps_are_logged(tmp_path: Path) -> None:
    """While a network is taken in, the log says what is being done and that it may take long."""
    draw_unet(tmp_path / "net.onnx", depth=1)
    with capture_logs() as lines:
        open_model(tmp_path / "net.onnx")
    events = [line["event"] for line in lines if line["log_level"] == "info"]

    assert events == [
        "model is taken in; large networks take minutes",
        "reading the network",
        "trying the network on noise",
        "finding the network's halo",
        "model taken in",
    ]
    assert {line["model"] for line in lines} == {str(tmp_path / "net.onnx")}


def package(folder: Path, **changes: object) -> Package:
    """Return a bioimage.io package of one class, with links to nothing else."""
    image = counts()
    answer = 1 / (1 + np.exp(-run(network(), image).astype(np.float64)))
    made = Package(folder, "0.5.4", network(), [], [("sigmoid", {})], image, answer)
    made.told.update(changes)
    return made


@pytest.mark.parametrize("form", ["folder", "zip", "rdf"])
@pytest.mark.parametrize("changed", ["test_input.npy", "test_output.npy", "weights.onnx"])
def test_every_file_of_a_package_counts(form: str, changed: str, tmp_path: Path) -> None:
    """A package is tried anew when any file that was read to take it in has changed."""
    made = package(tmp_path / "p")
    del made.told["weights"]["onnx"]["sha256"]

    def source() -> Path:
        if form == "zip":
            return made.zipped()
        return made.write() / ("rdf.yaml" if form == "rdf" else "")

    opened = open_model(source())
    file = tmp_path / "p" / changed
    whole = file.read_bytes()
    if changed.endswith(".npy"):
        np.save(file, np.load(file) * 0 + 0.5)
    else:
        file.write_bytes(exported(network(seed=1)))
    with pytest.raises(ModelError, match="not reproduced"):
        open_model(source())
    file.write_bytes(whole)

    # An archive that is written again holds other times.
    assert open_model(source()).manifest.sha256 == opened.manifest.sha256


def test_a_package_behind_a_link_is_taken_in_once(tmp_path: Path) -> None:
    """A package whose folder is reached through a link opens what was kept before."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "p").symlink_to(package(tmp_path / "deep" / "er" / "p").write())
    opened = open_model(tmp_path / "p")

    assert opened.manifest.source is not None
    assert set(opened.manifest.source.files) == {
        *("rdf.yaml", "test_input.npy", "test_output.npy", "weights.onnx")
    }
    with capture_logs() as lines:
        assert open_model(tmp_path / "p") == opened
    assert not any("taken in" in line["event"] for line in lines)


def test_a_model_is_called_after_what_is_named_now(tmp_path: Path) -> None:
    """The same content under two names is two models, each called as it was named."""
    draw_unet(tmp_path / "one.onnx", depth=1)
    (tmp_path / "two.onnx").write_bytes((tmp_path / "one.onnx").read_bytes())
    for name in ("three", "four"):
        package(tmp_path / name, name="").write()
    named = ("one.onnx", "two.onnx", "three", "four", "one.onnx", "three")
    names = [open_model(tmp_path / name).manifest.name for name in named]

    assert names == ["one", "two", "three", "four", "one", "three"]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("ä.onnx", "ä"),
        ("a\u0308.onnx", "ä"),
        ("mein Netz ü ö.onnx", "mein_Netz_ü_ö"),
        ("細胞核.v2.onnx", "細胞核.v2"),
        ("कोशिका.onnx", "कोशिका"),
        ("a'b$c\u202e.onnx", "a_b_c"),
        ("½ .onnx", "½"),
        ("(!).onnx", "model"),
    ],
)
def test_letters_of_any_script_stay_in_a_name(file: str, name: str, tmp_path: Path) -> None:
    """A model keeps the letters of its file's name, composed; what is unsafe becomes ``_``."""
    draw_unet(tmp_path / "net.onnx", depth=1)
    (tmp_path / "net.onnx").rename(tmp_path / file)
    opened = open_model(tmp_path / file)

    assert opened.manifest.name == name
    assert opened.file.name == f"{name}.onnx"


def test_letters_of_any_script_stay_in_a_package_s_name(tmp_path: Path) -> None:
    """A package is called as it says, and a long name is cut between two letters."""
    first = open_model(package(tmp_path / "one", name="Zellkerne, groß").write())
    second = open_model(package(tmp_path / "two", name="細" * 200).write())

    assert first.manifest.name == "Zellkerne_groß"
    assert second.manifest.name == "細" * 60


def test_a_manifest_does_not_tell_where_its_source_lay(tmp_path: Path) -> None:
    """The same package at two places is one model, also where some of it was refused."""
    folder = tmp_path / "one" / "p"
    made = package(folder)
    torch.jit.trace(network(), torch.zeros(1, 1, 32, 32)).save(folder / "weights.pt")
    made.told["weights"]["torchscript"] = {"source": "weights.pt"}
    odd = onnx.load(folder / "weights.onnx")
    odd.graph.node[0].domain = "com.evil"
    onnx.save(odd, folder / "weights.onnx")
    del made.told["weights"]["onnx"]["sha256"]
    zipped, opened = open_model(made.zipped()), open_model(folder)
    shutil.copytree(folder, tmp_path / "two" / "p")

    assert open_model(tmp_path / "two" / "p") == opened
    for manifest in (zipped.manifest, opened.manifest):
        assert manifest.source is not None
        assert any("com.evil" in each for each in manifest.source.assumed)
        assert str(tmp_path) not in str(manifest)
        assert "segbatch-" not in str(manifest.source.assumed)
