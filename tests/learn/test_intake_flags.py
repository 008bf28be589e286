"""What the caller says of a network: it wins, or is refused by its name."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from segbatch.errors import ModelError
from segbatch.infer.engine.made.artifact import EngineManifest, write_artifact
from segbatch.infer.engine.manifest import Fixed, load_model
from segbatch.learn.checkpoint import Card, save_checkpoint
from segbatch.learn.intake import load_network
from segbatch.learn.nets import build
from tests.infer.networks import draw_unet
from tests.learn.forms import TINY

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.learn


def test_what_the_caller_says_wins(tmp_path: Path) -> None:
    """Flags replace what would have been assumed, and nothing is then said to be assumed of it."""
    draw_unet(tmp_path / "net.onnx", outputs=1)
    command = [sys.executable, "-m", "segbatch.learn.intake"]
    command += [str(tmp_path / "net.onnx"), str(tmp_path / "out"), "--name", "mine"]
    command += ["--class", "cell", "--normalisation", "fixed:100:0.5", "--threshold", "0.7"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    manifest = load_model(tmp_path / "out" / "mine.json").manifest

    assert said["assumed"] == ["the answers are logits, no activation was found: sigmoid"]
    assert (manifest.name, manifest.classes, manifest.threshold) == ("mine", ["cell"], 0.7)
    assert manifest.normalisation == Fixed(100.0, 0.5)


@pytest.mark.parametrize(
    ("flags", "code", "named"),
    [
        (["--normalisation", "magic"], 2, "magic"),
        (["--class", "a", "--class", "b"], 3, "2 class names"),
        (["--channel", "7"], 3, "channel 7"),
        (["--name", "../ö"], 3, "../"),
        (["--output", "nothing"], 3, "nothing"),
    ],
)
def test_wrong_flags_are_named(flags: list[str], code: int, named: str, tmp_path: Path) -> None:
    """A flag that does not fit ends the command with its exit code and a reason in JSON."""
    draw_unet(tmp_path / "net.onnx", outputs=1)
    command = [sys.executable, "-m", "segbatch.learn.intake"]
    command += [str(tmp_path / "net.onnx"), str(tmp_path / "out"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == code
    assert named in json.loads(done.stdout)["got"]


def test_an_engine_is_not_taken_in(tmp_path: Path) -> None:
    """Who takes in an engine's own network, by its file or its manifest, is told its model."""
    draw_unet(tmp_path / "net.onnxruntime-int8.0123456789ab.onnx", outputs=1)
    manifest = EngineManifest(
        model="net",
        file="net.onnxruntime-int8.0123456789ab.onnx",
        sha256="1" * 64,
        source_sha256="2" * 64,
        engine="onnxruntime",
        version="1",
        precision="int8",
    )
    write_artifact(manifest, tmp_path / "net.onnxruntime-int8.engine.json")
    for name in (manifest.file, "net.onnxruntime-int8.engine.json"):
        with pytest.raises(ModelError, match=r"an engine of net\.json"):
            load_network(tmp_path / name, tmp_path / "out")


def test_a_checkpoint_is_not_written_elsewhere(tmp_path: Path) -> None:
    """What a checkpoint says that it is called leads to no other folder."""
    card = Card(name="../ü", classes=["a"], architecture=TINY, normalisation=Fixed(0.0, 1.0))
    save_checkpoint(tmp_path / "c.pt", build(TINY, 4).eval(), card)

    assert load_network(tmp_path / "c.pt", tmp_path / "out") == tmp_path / "out" / "ü.json"
