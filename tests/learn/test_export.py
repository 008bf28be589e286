"""From a model to an engine beside it, through the command that a person types."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import tifffile
from click.testing import CliRunner
from onnx import numpy_helper
from structlog.testing import capture_logs

from segbatch.acquire.simulate import write_run
from segbatch.cli import main
from segbatch.errors import EngineError, UsageError
from segbatch.infer.engine.choice import why_no_tensorrt
from segbatch.infer.engine.door import open_engine
from segbatch.infer.engine.made.artifact import Likeness, Verdict, own_folder, read_manifest
from segbatch.infer.engine.manifest import Model, load_model
from segbatch.infer.engine.network.models import open_model
from segbatch.infer.engine.probe import probe
from segbatch.infer.engine.tensorrt import fitting
from segbatch.infer.engine.tensorrt.device import DeviceMemoryError
from segbatch.infer.segment import Segmenter
from segbatch.learn.export.candidates import Offer, make, offered
from segbatch.learn.export.command import rebuild_wish
from segbatch.learn.export.exporting import Entry, best_of, export_engine
from segbatch.learn.export.frames import gather
from segbatch.settings import Settings
from tests.infer.conftest import MakeModel
from tests.infer.rtx import needs_rtx

SHAPE = ("--frame-shape", "96x128")


def call(*arguments: str, code: int = 0) -> Any:
    """Run the command with --json; return its answer."""
    done = CliRunner().invoke(main, ["export-engine", *arguments, "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout) if code == 0 else done


def complete(model: Model) -> Model:
    """Return the model with stride and halo measured."""
    return open_model(model.file.with_suffix(".json"))


def names(folder: Path) -> set[str]:
    """Return what lies in a folder, hidden or not."""
    return {file.name for file in folder.iterdir()}


def test_the_shipped_model_has_an_engine_in_one_call() -> None:
    """Without a model the shipped one is exported, and `process` takes the engine by itself."""
    answer = call(*SHAPE, "--engine", "openvino", "--precision", "int8", "--force")
    model = open_model("")
    folder = own_folder("beads", model.manifest.sha256)
    opened = open_engine(model, Settings(threads=1, precision="int8"))
    opened.engine.close()
    made = read_manifest(Path(answer["written"]))
    left = names(folder)
    for file in folder.iterdir():
        file.unlink()

    assert Path(answer["written"]).parent == folder
    assert (opened.engine.name, opened.engine.precision) == ("openvino", "int8")
    assert left == {
        "beads.json",
        "beads.onnx",
        "beads.openvino-int8.engine.json",
        f"beads.openvino-int8.{made.sha256[:12]}.onnx",
    }


def test_the_manifest_holds_what_was_found(tmp_path: Path) -> None:
    """Hashes, likeness on simulated and random frames, times and the command stand in it."""
    out = tmp_path / "made"
    answer = call(*SHAPE, "--precision", "fp32", "--force", "--out", str(out))
    manifest = read_manifest(Path(answer["written"]))

    assert manifest.parity is not None
    assert manifest.speed is not None
    assert manifest.parity.passed
    assert [each.frames for each in manifest.parity.likeness] == ["8 simulated", "4 random"]
    assert all(each.max_probability_difference is not None for each in manifest.parity.likeness)
    assert manifest.speed.engine_ms > 0
    assert manifest.speed.source == "onnxruntime fp32"
    assert manifest.speed.frame_shape == (96, 128)
    assert manifest.source_sha256 == load_model(out / "beads.json").manifest.sha256
    assert manifest.sha256 == hashlib.sha256((out / manifest.file).read_bytes()).hexdigest()
    assert manifest.command.startswith("segbatch export-engine --precision fp32")
    assert manifest.hardware.processor


def test_auto_takes_the_fastest_that_passed(make_model: MakeModel) -> None:
    """What is written passed, and nothing else that is new and passed was faster."""
    model = complete(make_model())
    answer = call(str(model.file), *SHAPE)
    passed = [each for each in answer["entries"] if each["passed"] and each["role"] == "new"]
    fastest = min(passed, key=lambda each: each["ms"])

    assert answer["best"] == f"{fastest['engine']} {fastest['precision']}"
    assert Path(answer["written"]).parent == model.file.parent
    assert any("random ones alone" in each for each in answer["remarks"])


def test_below_the_bar_nothing_is_written(make_model: MakeModel, tmp_path: Path) -> None:
    """An engine that fails leaves no file, and the error says where it departs and what to try."""
    model = complete(make_model(net={"base": 8}))
    out = tmp_path / "made"
    write_run(tmp_path / "run", 4, 1, height_px=96, width_px=128)
    wanted = ("--engine", "openvino", "--precision", "int8", "--tolerance", "1.0")
    wanted += ("--frames", str(tmp_path / "run"))
    done = call(str(model.file), *SHAPE, *wanted, "--out", str(out), code=3)
    error, _, remedy = done.output.partition("remedy:")

    assert names(out) == set()
    assert "masks agree in" in error
    assert "in layer" in error
    assert "wanted: masks that agree with the network's in 100.0000%" in error
    assert "--frames" in remedy
    assert "--tolerance" in remedy


def test_a_precision_that_overflows_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    """Where the processor computes in fp16 a network of huge values is refused by its layer."""
    model = complete(make_model())
    if not probe(model.file, model.manifest.sha256, "openvino", "fp32", 1, 4).computes_in("fp16"):
        pytest.skip("this processor does not compute in fp16")
    network = onnx.load(model.file)
    weights = next(each for each in network.graph.initializer if each.name == "w0")
    weights.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(weights) * np.float32(1e6), "w0")
    )
    huge = tmp_path / "huge"
    huge.mkdir()
    onnx.save(network, huge / "net.onnx")
    changed = msgspec.structs.replace(
        model.manifest, sha256=hashlib.sha256((huge / "net.onnx").read_bytes()).hexdigest()
    )
    (huge / "net.json").write_bytes(msgspec.json.encode(changed))
    done = call(str(huge / "net.json"), *SHAPE, "--precision", "fp16", code=3)

    assert "65504" in done.output


def test_own_frames_calibrate_and_judge(make_model: MakeModel, tmp_path: Path) -> None:
    """Frames that are named are read, half to calibrate and half to compare."""
    write_run(tmp_path / "run", 6, 1, height_px=96, width_px=128)
    model = complete(make_model(threshold=0.01))
    answer = call(
        str(model.file),
        "--frames",
        str(tmp_path / "run"),
        "--engine",
        "openvino",
        "--precision",
        "int8",
        "--tolerance",
        "0.5",
        "--force",
    )
    manifest = read_manifest(Path(answer["written"]))

    assert answer["frame_shape"] == [96, 128]
    assert [each["frames"] for each in answer["entries"][0]["parity"]["likeness"]] == [
        "3 of run",
        "4 random",
    ]
    assert manifest.options["frames"] == str(tmp_path / "run")
    assert "patches" in manifest.options["calibration"]


def test_masks_of_the_written_engine_are_the_networks(make_model: MakeModel, frame: Any) -> None:
    """Frames segmented by the engine that was written have the mask of the network."""
    model = complete(make_model())
    call(str(model.file), *SHAPE, "--precision", "fp32", "--force")
    with Segmenter(model, Settings(threads=1, precision="fp32")) as made:
        got = made.segment(frame, 10).mask
    with Segmenter(model, Settings(threads=1, engine="onnxruntime")) as source:
        wanted = source.segment(frame, 10).mask

    assert np.mean(got == wanted) > 0.9999


def test_int8_asks_for_frames(make_model: MakeModel) -> None:
    """Without frames to calibrate on INT8 is not tried, and says what it wants."""
    model = complete(make_model())
    done = call(str(model.file), "--precision", "int8", code=3)
    answer = call(str(model.file), *SHAPE)

    assert "--frames" in done.output
    assert "--frames" in answer["not_offered"]["openvino int8"]


def test_rebuild_mends_what_was_broken(make_model: MakeModel, tmp_path: Path) -> None:
    """An engine whose file was damaged is made again in its place by the command it names."""
    write_run(tmp_path / "run", 2, 1, height_px=96, width_px=128)
    model = complete(make_model(threshold=0.01))
    wanted = ("--engine", "openvino", "--precision", "int8", "--tolerance", "0.5", "--force")
    wanted += ("--frames", str(tmp_path / "run"))
    manifest_file = Path(call(str(model.file), *SHAPE, *wanted)["written"])
    before = read_manifest(manifest_file)
    file = manifest_file.parent / before.file
    file.write_bytes(file.read_bytes()[:-9])
    answer = call("--rebuild", str(manifest_file))
    after = read_manifest(manifest_file)
    file = manifest_file.parent / after.file

    assert answer["written"] == str(manifest_file)
    assert after.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert after.parity is not None
    assert after.parity.tolerance == 0.5
    assert after.speed is not None
    assert after.speed.frame_shape == (96, 128)


def test_rebuild_of_an_unreadable_manifest_goes_by_its_name(make_model: MakeModel) -> None:
    """A manifest that lost its content still says by its name what to make."""
    model = complete(make_model())
    manifest_file = model.file.with_name("net.openvino-fp32.engine.json")
    manifest_file.write_bytes(b"{")
    answer = call("--rebuild", str(manifest_file))

    assert answer["best"] == "openvino fp32"
    assert read_manifest(manifest_file).parity is not None


@pytest.mark.parametrize(
    ("ms", "agreement", "best"),
    [
        ((8.9, 8.6), (0.99995, 0.99989), 0),  # as fast, and more alike
        ((12.1, 9.8), (0.99998, 0.99983), 1),  # clearly slower
        ((9.0, 9.0), (1.0, 1.0), 0),
        ((9.0, 8.9), (1.0, 1.0), 1),
    ],
)
def test_of_engines_that_are_as_fast_the_most_alike_is_taken(
    ms: tuple[float, float], agreement: tuple[float, float], best: int
) -> None:
    """A gain in time that cannot be told from chance buys no loss of likeness."""
    entries = [
        Entry(
            ("openvino", precision),
            "new",
            verdict=Verdict(
                passed=True,
                tolerance=0.999,
                least_iou=0.98,
                reference="",
                likeness=[
                    Likeness(
                        frames="",
                        count=1,
                        noise=False,
                        max_probability_difference=0.0,
                        mean_probability_difference=0.0,
                        mask_agreement=alike,
                        iou=1.0,
                    )
                ],
            ),
            ms=each,
        )
        for precision, each, alike in zip(("bf16", "int8"), ms, agreement, strict=True)
    ]

    assert best_of(entries) is entries[best]


@needs_rtx
@pytest.mark.parametrize("precision", ["fp16", "fp32", "int8"])
def test_tensorrt_is_given_what_it_builds(
    precision: str, make_model: MakeModel, tmp_path: Path
) -> None:
    """Each precision becomes real bytes of an engine that takes frames and ends in the mask."""
    model = complete(make_model())
    write_run(tmp_path / "run", 2, 1, height_px=96, width_px=128)
    material = gather(model, tmp_path / "run", None)
    made = make(model, ("tensorrt_rtx", precision), material, tmp_path, [])
    artifact = made.choice.artifact

    assert artifact is not None
    assert artifact.manifest.decides
    assert artifact.manifest.precision == precision
    assert artifact.manifest.input_shape == (1, 1, 96, 128)
    assert artifact.manifest.source_sha256 == model.manifest.sha256
    assert artifact.manifest.parity is None
    assert artifact.file.stat().st_size > 10_000


@needs_rtx
def test_what_cannot_be_opened_makes_room_for_the_next(
    make_model: MakeModel, tmp_path: Path
) -> None:
    """Where an engine is built and does not open, its reason is kept and the next is tried."""
    if why_no_tensorrt("tensorrt_rtx") == "":
        pytest.skip("TensorRT runs here")
    model = complete(make_model())
    offer = Offer([[("tensorrt_rtx", "fp16")], [("openvino", "fp32")]], {})
    material = gather(model, None, (96, 128))
    result = export_engine(model, material, tmp_path / "made", offer, tolerance=0.999, force=True)
    refused, taken = result.entries[:2]

    assert "driver" in refused.why
    assert result.best is taken
    assert {name.rpartition(".")[2] for name in names(tmp_path / "made")} == {"json", "onnx"}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--engine", "onnxruntime", "--precision", "bf16"), 3, "bf16"),
        (("--engine", "tensorrt"), 3, "not offered"),
        (("--rebuild", "net.json"), 2, "ENGINE-PRECISION"),
        (("--rebuild", "a.openvino-fp32.engine.json", "--engine", "openvino"), 2, "alone"),
        (("--rebuild", "a.openvino-fp32.engine.json"), 2, "a.json"),
        (("missing.json",), 3, "missing.json"),
        (("--frame-shape", "96"), 2, "1080x1440"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: tuple[str, ...], code: int, said: str) -> None:
    """Each wish that cannot be met ends with its exit code and words for it."""
    assert said in call(*arguments, code=code).output


def test_another_model_of_the_name_is_not_overwritten(
    make_model: MakeModel, tmp_path: Path
) -> None:
    """A folder that holds another network of the model's name is left as it is."""
    model = complete(make_model())
    out = tmp_path / "other"
    out.mkdir()
    (out / "net.onnx").write_bytes(b"another network")
    done = call(str(model.file), *SHAPE, "--precision", "fp32", "--out", str(out), code=2)

    assert "another network" in done.output
    assert names(out) == {"net.onnx"}


def test_dry_run_writes_nothing(make_model: MakeModel, tmp_path: Path) -> None:
    """What would be tried and where it would go is said, and nothing is made."""
    model = complete(make_model())
    answer = call(str(model.file), "--out", str(tmp_path / "made"), "--dry-run")

    assert "openvino fp32" in answer["would_try"]
    assert answer["folder"] == str(tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_people_get_a_table(make_model: MakeModel) -> None:
    """Without --json a table names every engine, and a line says how to use what was written."""
    model = complete(make_model())
    wanted = ["export-engine", str(model.file), *SHAPE, "--precision", "fp32", "--force"]
    done = CliRunner().invoke(main, wanted)

    assert done.exit_code == 0, done.output
    assert "onnxruntime fp32 (source)" in done.stdout
    assert "segbatch process FOLDER --model" in done.stdout


def test_a_folder_that_cannot_be_made_is_a_matter_of_storage(
    make_model: MakeModel, tmp_path: Path
) -> None:
    """Where nothing can be written the exit code is 4, and the remedy is another folder."""
    model = complete(make_model())
    (tmp_path / "file").write_bytes(b"")
    wanted = ("--precision", "fp32", "--out", str(tmp_path / "file" / "made"))
    done = call(str(model.file), *SHAPE, *wanted, code=4)

    assert "--out" in done.output


def test_without_onnx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where onnx is not installed the error says what to install."""
    monkeypatch.setitem(sys.modules, "onnx", None)
    done = call(code=2)

    assert "segbatch[learn]" in done.output


def test_a_folder_of_another_model_is_refused_before_anything_is_built(
    make_model: MakeModel, tmp_path: Path
) -> None:
    """What could not be written in the end is not made, compared and timed first."""
    model = complete(make_model())
    out = tmp_path / "other"
    out.mkdir()
    (out / "net.onnx").write_bytes(b"another network")
    material = gather(model, None, (96, 128))
    with capture_logs() as lines, pytest.raises(UsageError, match="another network"):
        export_engine(
            model, material, out, Offer([[("openvino", "fp32")]], {}), tolerance=0.999, force=True
        )

    assert not [line for line in lines if line["event"] == "tried"]


def test_rebuild_makes_the_flavour_that_it_was(make_model: MakeModel) -> None:
    """An engine of one flavour of TensorRT is not made again as the other."""
    model = complete(make_model())
    either, exact = (
        declined_kinds(model, exact=False),
        declined_kinds(model, exact=True),
    )
    wish = rebuild_wish(model.file.with_name("net.tensorrt-fp16.engine.json"))

    assert either == {"tensorrt", "tensorrt_rtx"}
    assert exact == {"tensorrt"}
    assert wish.exact


def declined_kinds(model: Model, *, exact: bool) -> set[str]:
    """Return the engines that are tried or declined where ``tensorrt`` is asked for."""
    try:
        offer = offered(model, "tensorrt", "fp16", calibrates=False, exact=exact)
    except EngineError as error:
        return {said.split()[0] for said in error.got.split("; ") if "not offered" in said}
    return {kind[0] for kind in (*offer.declined, *(k for group in offer.groups for k in group))}


@needs_rtx
def test_an_engine_without_room_on_the_gpu_is_refused_when_it_is_made(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was built is opened where there is a GPU (here a fake one, full), once and at once."""
    model = complete(make_model())
    material = gather(model, None, (96, 128))
    asked: list[Any] = []

    def full(artifact: Any) -> None:
        asked.append(artifact.manifest.input_shape)
        raise DeviceMemoryError("no room", "more of it")

    monkeypatch.setattr(fitting, "why_unusable", lambda _flavour: None)
    monkeypatch.setattr(fitting, "TensorRtEngine", full)
    with pytest.raises(DeviceMemoryError, match="no room"):
        make(model, ("tensorrt_rtx", "fp32"), material, tmp_path, [])

    assert asked == [(1, 1, 96, 128)]


def test_int8_is_refused_where_frames_hold_no_objects(tmp_path: Path) -> None:
    """Frames of background alone do not show what INT8 loses, so it is not made of them."""
    for number in range(2):
        tifffile.imwrite(tmp_path / f"{number}.tif", np.zeros((96, 128), np.uint16))
    asked = ("--frames", str(tmp_path), "--engine", "openvino", "--out", str(tmp_path / "out"))

    assert "0 px of objects" in call(*asked, "--precision", "int8", code=3).output
    answer = call(*asked)
    assert "int8" not in Path(answer["written"]).name


def test_a_new_folder_is_made_whole_whatever_stands_elsewhere(
    make_model: MakeModel, tmp_path: Path
) -> None:
    """`--out` makes a folder of model and engine although there is an engine beside the model."""
    model = complete(make_model(threshold=0.01))
    write_run(tmp_path / "run", 4, 1, height_px=96, width_px=128)
    asked = (str(model.file), "--frames", str(tmp_path / "run"), "--tolerance", "0.5", "--force")
    call(*asked, "--precision", "int8")
    for number in range(3):
        call(*asked[:-1], "--out", str(tmp_path / f"out{number}"))

        assert {"net.json", "net.onnx"} <= names(tmp_path / f"out{number}")
