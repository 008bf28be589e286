"""What an export says of what it cannot do, did not try, and wrote all the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from structlog.testing import capture_logs

from segbatch.acquire.simulate import write_run
from segbatch.cli import main
from segbatch.errors import UsageError
from segbatch.infer.engine.made.artifact import (
    Likeness,
    Verdict,
    own_folder,
    read_manifest,
    write_artifact,
)
from segbatch.infer.engine.manifest import Model
from segbatch.infer.engine.network.models import open_model
from segbatch.learn.export.blame import none_passed
from segbatch.learn.export.candidates import Offer
from segbatch.learn.export.command import rebuild_wish
from segbatch.learn.export.exporting import Entry, Result, _pick
from segbatch.learn.export.frames import gather
from tests.infer.conftest import MakeModel

SHAPE = ("--frame-shape", "96x128")


def export(*arguments: str, code: int = 0) -> Any:
    """Run the command with --json; return its answer."""
    done = CliRunner().invoke(main, ["export-engine", *arguments, "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def complete(model: Model) -> Model:
    """Return the model with stride and halo measured."""
    return open_model(model.file.with_suffix(".json"))


def verdict(agreement: float) -> Verdict:
    """Return what the gate says of masks that agree so far."""
    likeness = Likeness(
        frames="1 of run",
        count=1,
        max_probability_difference=1.0,
        mean_probability_difference=0.5,
        mask_agreement=agreement,
        iou=None,
    )
    return Verdict(
        passed=agreement >= 0.999,
        tolerance=0.999,
        least_iou=0.98,
        reference="",
        likeness=[likeness],
    )


def result_of(model: Model, *entries: Entry) -> Result:
    """Return a comparison that came to some entries."""
    return Result(model, gather(model, None, (96, 128)), list(entries), Offer([], {}))


def test_int8_without_frames_has_the_remedy_that_helps(make_model: MakeModel) -> None:
    """Where nothing but frames is missing, they are what is wanted, and the option is named."""
    model = complete(make_model())
    error = export(str(model.file), "--precision", "int8", code=3)["error"]

    assert error["got"] == "int8 without frames to calibrate on"
    assert "frames as they will come" in error["wanted"]
    assert error["remedy"] == "name them: --frames FOLDER"


def test_int8_is_not_made_again_without_its_frames(make_model: MakeModel, tmp_path: Path) -> None:
    """Where the frames that calibrated are gone, others are asked for, and none are made up."""
    model = complete(make_model())
    where = model.file.with_name("net.openvino-int8.engine.json")
    made = Path(export(str(model.file), *SHAPE, "--precision", "fp32", "--force")["written"])
    gone = msgspec.structs.replace(
        read_manifest(made), precision="int8", options={"frames": str(tmp_path / "gone")}
    )
    write_artifact(gone, where)
    write_artifact(msgspec.structs.replace(gone, precision="fp32"), made)
    with pytest.raises(UsageError, match=f"are gone: {tmp_path / 'gone'}") as caught:
        rebuild_wish(where)
    with capture_logs() as lines:
        wish = rebuild_wish(made)

    assert caught.value.remedy == f"segbatch export-engine --rebuild {where} --frames FOLDER"
    assert rebuild_wish(where, str(tmp_path)).frames == str(tmp_path)
    assert wish.frames == ""
    assert any("are left out" in line["event"] for line in lines)


def test_a_rebuild_is_told_and_recorded_as_one(make_model: MakeModel) -> None:
    """The manifest of an engine that was made again holds that command, and no --force."""
    model = complete(make_model())
    where = export(str(model.file), *SHAPE, "--precision", "fp32", "--force")["written"]
    export("--rebuild", where)

    assert read_manifest(Path(where)).command == f"segbatch export-engine --rebuild {where}"


@pytest.mark.parametrize("option", ["--force", "--rebuild"])
def test_what_is_worse_is_written_for_the_option_that_asked(
    option: str, make_model: MakeModel
) -> None:
    """The remark names the option that was given."""
    new = Entry(("openvino", "int8"), "new", verdict=verdict(1.0), ms=9.0)
    better = Entry(("openvino", "bf16"), "built in", verdict=verdict(1.0), ms=3.0)
    result = result_of(complete(make_model()), new, better)
    _pick(result, option, named=True)

    assert result.best is new
    assert result.remarks[0].startswith(f"written because {option} was asked for, though it is")


def test_engines_of_one_kind_are_told_apart(make_model: MakeModel, tmp_path: Path) -> None:
    """Of two that are there, rows and answer say in which folder each lies."""
    model = complete(make_model(threshold=0.01))
    write_run(tmp_path / "run", 2, 1, height_px=96, width_px=128)
    int8 = ("--engine", "openvino", "--precision", "int8", "--force", "--tolerance", "0.5")
    export(str(model.file), "--frames", str(tmp_path / "run"), *int8)
    own = own_folder("net", model.manifest.sha256)
    own.mkdir(parents=True)
    for file in model.file.parent.glob("net.openvino-int8.*"):
        shutil.copy(file, own / file.name)
    asked = ["export-engine", str(model.file), *SHAPE, "--precision", "fp32", "--force"]
    told = CliRunner().invoke(main, [*asked, "--tolerance", "0.5"])
    answer = export(*asked[1:], "--tolerance", "0.5")
    there = [each["folder"] for each in answer["entries"] if each["role"] == "there"]

    assert told.exit_code == 0, told.output
    assert f"openvino int8 (there, in {model.file.parent})" in told.stdout
    assert f"openvino int8 (there, in {own})" in told.stdout
    assert there == [str(model.file.parent), str(own)]


def test_frames_that_show_nothing_are_told(tmp_path: Path) -> None:
    """Where no mask of an object was compared, answer and manifest say so; INT8 is not tried."""
    for number in range(2):
        tifffile.imwrite(tmp_path / f"{number}.tif", np.zeros((96, 128), np.uint16))
    out = str(tmp_path / "out")
    answer = export("--frames", str(tmp_path), "--engine", "openvino", "--force", "--out", out)
    outcomes = {each["precision"]: each["outcome"] for each in answer["entries"]}
    note = read_manifest(Path(answer["written"])).options["note"]

    assert note.startswith("the network finds no objects on the frames")
    assert note in answer["remarks"]
    assert outcomes["fp32"] == "passed"
    assert outcomes["int8"] == "not tried"


@pytest.mark.parametrize(("agreement", "offered"), [(0.357, False), (0.998, True)])
def test_a_tolerance_is_offered_for_masks_that_nearly_agree(
    agreement: float, offered: bool, make_model: MakeModel
) -> None:
    """No --tolerance is offered that would let a wrong mask pass."""
    entry = Entry(("openvino", "bf16"), "new", verdict=verdict(agreement), why="it departs")
    error = none_passed(result_of(complete(make_model()), entry))

    assert ("--tolerance" in error.remedy) == offered


def test_a_model_that_is_not_there_is_told_without_options_of_others(tmp_path: Path) -> None:
    """The remedy names nothing that this command does not have."""
    error = export(str(tmp_path / "none.onnx"), code=3)["error"]

    assert "no such file" in error["got"]
    assert error["remedy"] == "check the path"
