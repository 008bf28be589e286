"""Engines of networks that were taken in from elsewhere, which needs torch."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner

from segbatch.cli import main
from segbatch.infer.engine.choice import choose
from segbatch.infer.engine.network.models import open_model
from segbatch.settings import Settings
from tests.infer.conftest import MakeModel
from tests.learn.packages import plain

SHAPE = ("--frame-shape", "96x128")
pytestmark = pytest.mark.learn


def test_an_engine_of_a_network_from_elsewhere_is_taken_by_itself(
    make_model: MakeModel, tmp_path: Path
) -> None:
    """Of a file without a manifest the engine goes where `process` looks when it is named again."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    source = folder / "plain.onnx"
    source.write_bytes(make_model(net={"seed": 41}).file.read_bytes())
    options = [*SHAPE, "--engine", "openvino", "--precision", "fp32", "--force"]
    done = CliRunner().invoke(main, ["export-engine", str(source), *options])
    model = open_model(source)
    settings = msgspec.convert(
        {"threads": 1, "model": str(source), "precision": "fp32", "engine": "openvino"}, Settings
    )

    assert done.exit_code == 0, done.output
    assert f"segbatch process FOLDER --model {source}\n" in done.stdout
    assert "--out DIR makes a folder" in done.stdout
    assert {file.name for file in folder.iterdir()} == {"plain.onnx"}
    assert choose(model, settings).artifact is not None


def test_out_makes_a_folder_of_a_network_from_elsewhere(
    make_model: MakeModel, tmp_path: Path
) -> None:
    """With --out model and engine stand together, and the line to use them names that folder."""
    source = tmp_path / "plain.onnx"
    source.write_bytes(make_model(net={"seed": 42}).file.read_bytes())
    out = tmp_path / "made"
    options = [*SHAPE, "--precision", "fp32", "--force", "--out", str(out)]
    done = CliRunner().invoke(main, ["export-engine", str(source), *options])

    assert done.exit_code == 0, done.output
    assert f"--model {out / 'plain.json'}" in done.stdout
    assert "cache folder" not in done.stdout
    assert {"plain.json", "plain.onnx"} < {file.name for file in out.iterdir()}


@pytest.mark.parametrize("command", ["export-engine", "process"])
def test_an_architecture_is_refused_where_there_is_one(
    command: str, make_model: MakeModel, tmp_path: Path
) -> None:
    """`--arch` with a file that says itself what it is ends with exit code 2, and says so."""
    source = tmp_path / "plain.onnx"
    source.write_bytes(make_model(net={"seed": 43}).file.read_bytes())
    tifffile.imwrite(tmp_path / "frame.tif", np.zeros((96, 128), np.uint16))
    named = [str(source)] if command == "export-engine" else [str(tmp_path / "frame.tif")]
    named += ["--model", str(source)] if command == "process" else []
    done = CliRunner().invoke(main, [command, *named, "--arch", "smp-unet-resnet34"])

    assert done.exit_code == 2, done.output
    assert "smp-unet-resnet34 with model" in done.output
    assert "leave --arch out" in done.output


@pytest.mark.parametrize("kind", ["plain.onnx", "package"])
def test_what_was_made_of_a_source_is_found_by_its_name(
    kind: str, make_model: MakeModel, tmp_path: Path
) -> None:
    """`engine-info` of a network from elsewhere, or of its package, lists the engine of it."""
    source = tmp_path / "theirs" / kind
    source.parent.mkdir()
    if kind == "package":
        plain(source).write()
    else:
        source.write_bytes(make_model(net={"seed": 44}).file.read_bytes())
    asked = ["engine-info", str(source), "--json"]
    before = CliRunner().invoke(main, asked)
    options = [*SHAPE, "--engine", "openvino", "--precision", "fp32", "--force", "--json"]
    made = CliRunner().invoke(main, ["export-engine", str(source), *options])
    written = json.loads(made.stdout)["written"]
    after = CliRunner().invoke(main, asked)

    assert before.exit_code == 3, before.output
    assert "no model was taken in from it" in json.loads(before.stdout)["error"]["got"]
    assert f"segbatch export-engine {source}" in json.loads(before.stdout)["error"]["remedy"]
    assert json.loads(after.stdout)["engines_made"] == {written: "yes"}
