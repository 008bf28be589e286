"""An engine that is replaced: the old one or the new one, whenever the export is killed."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import onnx
import pytest
from click.testing import CliRunner

from segbatch.cli import main
from segbatch.infer.engine.door import open_engine
from segbatch.infer.engine.made.artifact import (
    Likeness,
    Verdict,
    artifacts_beside,
    load_artifact,
    read_manifest,
    write_artifact,
)
from segbatch.infer.engine.manifest import Model, load_model
from segbatch.infer.engine.network.models import open_model
from segbatch.learn.export.candidates import Offer, make
from segbatch.learn.export.exporting import Entry, Result
from segbatch.learn.export.frames import gather
from segbatch.learn.export.workplace import workplace
from segbatch.learn.export.writing import write
from segbatch.settings import Settings
from tests.infer.conftest import MakeModel
from tests.infer.rtx import needs_rtx

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

WRITE = """
import os, signal, sys
from pathlib import Path
from segbatch.infer.engine.made.artifact import Likeness, Verdict
from segbatch.infer.engine.choice import Choice
from segbatch.infer.engine.network.models import open_model
from segbatch.infer.engine.probe import Probe
from segbatch.learn.export.candidates import Made, Offer
from segbatch.learn.export.exporting import Entry, Result
from segbatch.learn.export.frames import Material
from segbatch.learn.export.workplace import workplace
from segbatch.learn.export.writing import write

source, folder, last, contents = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
changes = 0
def hook(event, arguments):
    global changes
    if event in ("os.rename", "os.remove") and str(folder) in str(arguments[0]):
        changes += 1
        if changes == last:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
model = open_model(source)
for content in contents:
    with workplace(folder) as made_in:
        file = made_in / "net.onnxruntime-int8.onnx"
        file.write_bytes(Path(content).read_bytes())
        made = Made(Choice("onnxruntime", "int8", file, "", Probe("", ["1"]), "new"), b"")
        alike = Likeness(frames="", count=1, max_probability_difference=0.0,
                         mean_probability_difference=0.0, mask_agreement=1.0, iou=1.0)
        verdict = Verdict(passed=True, tolerance=0.999, least_iou=0.98, reference="",
                          likeness=[alike])
        entry = Entry(("onnxruntime", "int8"), "new", made, verdict, ms=1.0)
        material = Material((96, 128), [], [])
        result = Result(model, material, [entry], Offer([], {}))
        write(result, entry, made, folder, made_in, "")
"""
KIND = "net.onnxruntime-int8"


def write_killed(
    model: Path, folder: Path, content: Path, at: int = 0
) -> subprocess.CompletedProcess[str]:
    """Write an engine in a process that kills itself before the ``at``-th move or removal."""
    return subprocess.run(
        [sys.executable, "-c", WRITE, str(model), str(folder), str(at), str(content)],
        capture_output=True,
        text=True,
        check=False,
    )


def two_engines(model: Model, folder: Path) -> tuple[Path, Path]:
    """Return two files that are the model's network and differ in a remark."""
    network = onnx.load(model.file)
    for name in ("old", "new"):
        network.doc_string = name
        onnx.save(network, folder / name)
    return folder / "old", folder / "new"


def names(folder: Path) -> set[str]:
    """Return what lies in a folder, hidden or not."""
    return {file.name for file in folder.iterdir()}


def sha256_of(file: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


@posix
@pytest.mark.parametrize("named", ["", f"{KIND}.onnx"])  # as they were once named
def test_an_engine_that_is_replaced_is_there_at_any_moment(
    named: str, make_model: MakeModel, tmp_path: Path
) -> None:
    """Killed at any move or removal, the old set or the new one runs, and nothing else stays."""
    model = open_model(make_model().file)
    source, folder = model.file.with_suffix(".json"), tmp_path / "made"
    old, new = two_engines(model, tmp_path)
    manifest_file = folder / f"{KIND}.engine.json"
    assert write_killed(source, folder, old).returncode == 0
    if named:
        made = read_manifest(manifest_file)
        (folder / made.file).rename(folder / named)
        write_artifact(msgspec.structs.replace(made, file=named), manifest_file)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    wanted = Settings(threads=1, engine="onnxruntime", precision="int8")
    ran = []
    for at in range(1, 20):
        for file in folder.iterdir():
            if file.is_file():
                file.unlink()
        for name, content in before.items():
            (folder / name).write_bytes(content)
        done = write_killed(source, folder, new, at)
        opened = open_engine(open_model(folder / "net.json"), wanted)
        opened.engine.close()
        ran.append(sha256_of(load_artifact(manifest_file).file))
        told = CliRunner().invoke(main, ["engine-info", str(manifest_file), "--json"])
        assert json.loads(told.stdout)["fits"] == "yes"
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        left = folder / f"{KIND}.{'0' * 12}.onnx"  # of an export before that was killed, too
        left.write_bytes(b"left")
        assert write_killed(source, folder, new).returncode == 0
        assert names(folder) == {
            "net.json",
            "net.onnx",
            f"{KIND}.{sha256_of(new)[:12]}.onnx",
            f"{KIND}.engine.json",
        }

    assert done.returncode == 0
    assert ran == sorted(ran, key=[sha256_of(old), sha256_of(new)].index)
    assert len(ran) > 3
    assert set(ran) == {sha256_of(old), sha256_of(new)}


@posix
def test_whatever_can_be_read_is_whole(make_model: MakeModel, tmp_path: Path) -> None:
    """Killed at any move, a manifest that is there names files that are there, of its hashes."""
    model = open_model(make_model().file)
    source, folder = model.file.with_suffix(".json"), tmp_path / "made"
    _, new = two_engines(model, tmp_path)
    codes = []
    for at in range(1, 10):
        done = write_killed(source, folder, new, at)
        codes.append(done.returncode)
        for manifest in artifacts_beside(folder / "net.json"):
            assert sha256_of(load_artifact(manifest).file) == sha256_of(new)
            load_model(folder / "net.json")
        if (folder / "net.json").exists():
            assert load_model(folder / "net.json").file.exists()
        if done.returncode == 0:
            break

    assert codes[0] == -signal.SIGKILL
    assert codes[-1] == 0, done.stderr
    assert names(folder) == {
        "net.json",
        "net.onnx",
        f"{KIND}.{sha256_of(new)[:12]}.onnx",
        f"{KIND}.engine.json",
    }


@posix
def test_an_engine_is_read_while_it_is_replaced(make_model: MakeModel, tmp_path: Path) -> None:
    """Whoever reads an engine that exports replace meanwhile has the one or the other."""
    model = open_model(make_model().file)
    source, folder = model.file.with_suffix(".json"), tmp_path / "made"
    files = two_engines(model, tmp_path)
    assert write_killed(source, folder, files[0]).returncode == 0
    turns = [str(each) for each in files[::-1]] * 50
    writer = subprocess.Popen([sys.executable, "-c", WRITE, str(source), str(folder), "0", *turns])
    found = set()
    while writer.poll() is None:
        found.add(load_artifact(folder / f"{KIND}.engine.json").manifest.sha256)

    assert writer.returncode == 0
    assert found == {sha256_of(file) for file in files}


def test_what_is_not_an_engine_left_behind_stays(make_model: MakeModel, tmp_path: Path) -> None:
    """An export removes no other model's network, and no engine that a manifest names."""
    model = open_model(make_model().file)
    folder = tmp_path / "made"
    others = {
        "net.openvino-int8.onnx",
        "net.mine-int8.0123456789ab.onnx",
        f"{KIND}.json",
        f"{KIND}.onnx",
        "net.b.onnxruntime-int8.0123456789ab.onnx",
    }
    folder.mkdir()
    for name in others:
        (folder / name).write_bytes(b"another's")
    done = write_killed(model.file.with_suffix(".json"), folder, model.file)

    assert done.returncode == 0, done.stderr
    assert others < names(folder)


@needs_rtx
def test_an_engine_that_was_built_is_named_by_its_content(
    make_model: MakeModel, tmp_path: Path
) -> None:
    """TensorRT's engines are left as others are: of the model, by content, with a manifest."""
    model = open_model(make_model().file)
    folder = tmp_path / "made"
    material = gather(model, None, (96, 128))
    alike = Likeness(
        frames="",
        count=1,
        max_probability_difference=0.0,
        mean_probability_difference=0.0,
        mask_agreement=1.0,
        iou=1.0,
    )
    verdict = Verdict(passed=True, tolerance=0.999, least_iou=0.98, reference="", likeness=[alike])
    with workplace(folder) as made_in:
        made = make(model, ("tensorrt_rtx", "fp32"), material, made_in, [])
        entry = Entry(("tensorrt_rtx", "fp32"), "new", made, verdict, ms=1.0)
        result = Result(model, material, [entry], Offer([], {}))
        written = write(result, entry, made, folder, made_in, "")
    found = load_artifact(written)

    assert found.manifest.input_shape == (1, 1, 96, 128)
    assert found.file.name == f"net.tensorrt_rtx-fp32.{sha256_of(found.file)[:12]}.engine"
    assert names(folder) == {"net.json", "net.onnx", found.file.name, written.name}
