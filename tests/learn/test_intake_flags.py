"""What the caller says of a network: it wins, or is refused by its name."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from segbatch.infer.engine.manifest import Fixed, load_model
from tests.infer.networks import draw_unet

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
