"""The frames that an export is given: those that cannot be used are named and left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner

from segbatch.acquire.simulate import write_run
from segbatch.cli import main
from segbatch.infer.engine.network.models import open_model
from segbatch.learn.export.frames import MOST_NAMED, gather

FP32 = ("--engine", "openvino", "--precision", "fp32", "--force", "--tolerance", "0.5")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a folder of four frames of 96 x 128 px."""
    write_run(tmp_path / "run", 4, 1, height_px=96, width_px=128)
    return tmp_path / "run"


def export(frames: Path, code: int = 0) -> Any:
    """Export with frames; return the answer of --json."""
    out = frames.with_name("made")
    asked = ["export-engine", "--frames", str(frames), *FP32, "--out", str(out), "--json"]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def spoil(run: Path) -> list[Path]:
    """Cut one frame off, empty another, and put two more beside them that are none."""
    first, second, *_ = sorted(run.glob("img_????.tif"))
    first.write_bytes(first.read_bytes()[:2000])
    second.write_bytes(b"")
    text, endless = run / "img_0008.tif", run / "img_0009.tif"
    text.write_text("no image")
    tifffile.imwrite(endless, np.full((96, 128), np.nan, np.float32))
    return [first, second, text, endless]


def test_frames_that_cannot_be_used_are_left_out_by_name(run: Path) -> None:
    """Each of them has its remark, and the others judge and calibrate."""
    bad = spoil(run)
    answer = export(run)
    told = [each for each in answer["remarks"] if "left out" in each]

    assert len(told) == len(bad)
    for file in bad:
        assert any(file.name in each for each in told)
    assert answer["entries"][0]["parity"]["likeness"][0]["frames"] == "1 of run"


def test_where_no_frame_is_left_that_is_an_error(run: Path) -> None:
    """The error names the folder, the first frames, and what to do."""
    bad = spoil(run)
    for file in run.glob("*.tif"):
        if file not in bad:
            file.unlink()
    error = export(run, 2)["error"]

    assert str(run) in error["got"]
    assert bad[0].name in error["got"]
    assert error["wanted"]
    assert "--frames" in error["remedy"]


def test_a_bad_frame_of_a_stack_leaves_the_others(tmp_path: Path) -> None:
    """Of a stack the frames that can be used are taken, and the other is named by its number."""
    stack = np.ones((5, 96, 128), np.float32)
    stack[2, 0, 0] = np.inf
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    material = gather(open_model(""), tmp_path / "stack.tif", None)

    assert [each for each in material.remarks if "stack.tif frame 2" in each]
    assert len(material.sets[0].inputs) == 2


def test_many_bad_frames_are_not_all_named(tmp_path: Path) -> None:
    """Beyond some, the others are counted, and good frames are found behind them."""
    for number in range(60):
        (tmp_path / f"img_{number:04}.tif").write_bytes(b"no image")
    tifffile.imwrite(tmp_path / "img_0031.tif", np.zeros((96, 128), np.uint16))
    material = gather(open_model(""), tmp_path, None)
    told = [each for each in material.remarks if "left out" in each]

    assert len(told) == MOST_NAMED + 1
    assert told[-1] == f"{59 - MOST_NAMED} more were left out"
    assert len(material.sets) == 2
