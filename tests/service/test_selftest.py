"""What a person reads of engines: the self-test's table, and what is known of an engine."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from segbatch.cli import main
from segbatch.infer.engine.machine import processor_id
from segbatch.infer.engine.made.artifact import (
    EngineManifest,
    Hardware,
    Likeness,
    Shape,
    Verdict,
    own_folder,
    write_artifact,
)
from segbatch.infer.engine.network.models import SHIPPED, open_model
from segbatch.service.commands import selftest
from segbatch.service.commands.selftest import expected, golden_frame, measured


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a cache folder of its own, and little time to measure speed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(selftest, "TIMED_S", 0.01)
    return tmp_path


def leave(folder: Path, **changes: Any) -> Path:
    """Leave an engine of the shipped model: its network under the name int8."""
    folder.mkdir(parents=True, exist_ok=True)
    content = SHIPPED.with_suffix(".onnx").read_bytes()
    (folder / "beads.openvino-int8.onnx").write_bytes(content)
    likeness = Likeness(
        frames="8 simulated",
        count=8,
        max_probability_difference=0.0,
        mean_probability_difference=0.0,
        mask_agreement=1.0,
        iou=1.0,
    )
    given: dict[str, Any] = {
        "model": "beads",
        "file": "beads.openvino-int8.onnx",
        "sha256": hashlib.sha256(content).hexdigest(),
        "source_sha256": hashlib.sha256(content).hexdigest(),
        "engine": "openvino",
        "version": "1",
        "precision": "int8",
        "hardware": Hardware(processor=processor_id()),
        "parity": Verdict(
            passed=True, tolerance=0.999, least_iou=0.98, reference="", likeness=[likeness]
        ),
        **changes,
    }
    where = folder / "beads.openvino-int8.engine.json"
    write_artifact(EngineManifest(**given), where)
    return where


def run(*arguments: str, code: int = 0) -> Any:
    """Run a command with --json; return its answer."""
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def test_the_golden_frame_is_the_same_every_time() -> None:
    """A seed makes the frame, and its sum of counts is the one that is written down."""
    frame, truth = golden_frame()
    again, _ = golden_frame()

    assert frame.shape == truth.shape == (1080, 1440)
    assert np.array_equal(frame, again)
    assert int(frame.sum(dtype=np.int64)) == pytest.approx(expected().counts, rel=0.01)


def test_every_engine_is_compared_with_the_reference() -> None:
    """OpenVINO in fp32 passes, what is not here says why, and the exit code is 0."""
    answer = run("selftest")
    lines = {(each["engine"], each["precision"]): each for each in answer["engines"]}

    assert lines["onnxruntime", "fp32"]["outcome"] == "passed"
    assert lines["openvino", "fp32"]["outcome"] == "passed"
    assert lines["openvino", "fp32"]["likeness"]["mask_agreement"] > 0.9999
    assert lines["openvino", "fp32"]["iou_with_truth"] > 0.95
    assert lines["openvino", "fp32"]["frames_per_s"] > 0
    assert "export-engine --engine openvino --precision int8" in lines["openvino", "int8"]["why"]
    assert all(each["why"] for each in answer["engines"] if each["outcome"] == "not offered")
    assert len(lines) == len(selftest.KINDS)


def test_an_engine_made_beforehand_is_tested_too(own_cache: Path) -> None:
    """What export-engine left for the shipped model is run, and people get a table of it."""
    leave(own_folder("beads", open_model("").manifest.sha256))
    done = CliRunner().invoke(main, ["selftest"])
    row = next(line for line in done.stdout.splitlines() if "int8" in line and "openvino" in line)

    assert done.exit_code == 0, done.output
    assert "passed" in row
    assert "processor: " in done.stdout


@pytest.mark.parametrize(
    ("input_shape", "frame_shape"),
    [
        ((1, 1, 1080, 1440), [1080, 1440]),
        ((3, 1, 512, 320), [1080, 1440]),  # cut into tiles
        ((1, 1, 96, 128), [96, 1440]),  # no tiles of 96 px: their halos meet
        ((1, 1, 1200, 2048), [1200, 2048]),  # larger
    ],
)
def test_engines_of_any_shape_are_tested(
    input_shape: Shape, frame_shape: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine of one input shape is given the golden frame, or as much of it as it is for."""
    leave(own_folder("beads", open_model("").manifest.sha256), input_shape=input_shape)
    monkeypatch.setattr(selftest, "KINDS", (selftest.KINDS[0], ("openvino", "int8")))
    line = run("selftest")["engines"][1]
    done = CliRunner().invoke(main, ["selftest"])

    assert line["outcome"] == "passed"
    assert line["likeness"]["mask_agreement"] > 0.9999
    assert line["likeness"]["iou"] > 0.999
    assert line["iou_with_truth"] > 0.9
    assert line["frames_per_s"] > 0
    assert line["frame_shape"] == frame_shape
    told = f"on {frame_shape[0]} x {frame_shape[1]} px of the golden frame"
    assert (told in done.stdout) == (frame_shape != [1080, 1440])


def test_figures_that_are_off_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the reference does not give what is written down, the exit code is 3."""
    wrong = msgspec.structs.replace(expected(), object_count=1)
    monkeypatch.setattr(selftest, "expected", lambda: wrong)
    monkeypatch.setattr(selftest, "KINDS", selftest.KINDS[:1])
    answer = run("selftest", code=3)

    assert "object_count is" in answer["engines"][0]["why"]


def test_what_is_measured_is_what_is_expected() -> None:
    """The reference engine's answer to the golden frame is within a hundredth of the golden one."""
    frame, truth = golden_frame()
    with selftest._open(open_model(""), selftest.KINDS[0]) as segmenter:
        found = measured(frame, truth, segmenter.segment(frame, selftest.BIT_DEPTH))

    assert msgspec.structs.astuple(found) == pytest.approx(
        msgspec.structs.astuple(expected()), rel=0.01
    )


def test_an_engine_is_described_by_its_manifest_or_its_file(own_cache: Path) -> None:
    """Either name of it gives all that the manifest holds, and that it fits."""
    where = leave(own_cache / "made")
    by_manifest = run("engine-info", str(where))

    assert run("engine-info", str(where.parent / "beads.openvino-int8.onnx")) == by_manifest
    assert by_manifest["engine"]["precision"] == "int8"
    assert by_manifest["fits"].startswith("yes")


def test_an_engine_that_does_not_fit_says_why(own_cache: Path) -> None:
    """The reason and the command that rebuilds it are told; asking is no error."""
    where = leave(own_cache / "made", hardware=Hardware(processor="another"))
    answer = run("engine-info", str(where))

    assert "another processor" in answer["fits"]
    assert f"--rebuild {where}" in answer["fits"]


def test_a_model_lists_its_engines(own_cache: Path) -> None:
    """A model's manifest is printed with the engines that were made of it."""
    folder = own_cache / "made"
    where = leave(folder)
    for name in ("beads.json", "beads.onnx"):
        (folder / name).write_bytes((SHIPPED.parent / name).read_bytes())
    answer = run("engine-info", str(folder / "beads.json"))

    assert answer["model"]["name"] == "beads"
    assert answer["engines_made"] == {str(where): "yes"}


def test_people_read_lines(own_cache: Path) -> None:
    """Without --json every key that holds something has a line."""
    done = CliRunner().invoke(main, ["engine-info", str(leave(own_cache / "made"))])

    assert done.exit_code == 0
    assert "  precision: int8" in done.stdout
    assert "mask_agreement: 1.0" in done.stdout


def test_a_file_that_is_no_engine_is_refused(own_cache: Path) -> None:
    """A file that no manifest names ends with exit code 3 and words."""
    (own_cache / "net.engine").write_bytes(b"")
    done = CliRunner().invoke(main, ["engine-info", str(own_cache / "net.engine")])

    assert done.exit_code == 3
    assert "no engine's manifest" in done.output


@pytest.mark.parametrize("kind", [("openvino", "int8"), ("openvino", "fp32")])
def test_an_engine_that_was_tampered_with_fails(
    kind: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that was made and is refused is no engine that was not offered: exit code 3."""
    folder = own_folder("beads", open_model("").manifest.sha256)
    where = leave(folder)
    (folder / "beads.openvino-int8.onnx").write_bytes(b"tampered")
    where.rename(folder / f"beads.{'-'.join(kind)}.engine.json")
    monkeypatch.setattr(selftest, "KINDS", (selftest.KINDS[0], kind))
    line = run("selftest", code=3)["engines"][1]

    assert line["outcome"] == "failed"
    assert "SHA-256" in line["why"]
    assert "--rebuild" in line["why"]


@pytest.mark.skipif(sys.platform == "win32", reason="no signals that end a process")
def test_a_trial_that_died_fails(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine whose trial ends its process ought to run here and does not: exit code 3."""
    python = own_cache / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *openvino*) kill -SEGV $$;; esac\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(selftest, "KINDS", (*selftest.KINDS[:1], ("openvino", "fp32")))
    line = run("selftest", code=3)["engines"][1]

    assert line["outcome"] == "failed"
    assert "died of signal 11" in line["why"]


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (b"", 3, "truncated"),
        (b'{"model": "beads", "file": "b', 3, "truncated"),
        (b'{"model": "\xff"}', 3, "utf-8"),
        (b"[" * 100000, 3, "array"),
        (b'{"schema": "segbatch.model/1"}', 3, "segbatch.model/1"),
    ],
)
def test_a_manifest_of_no_sense_is_said(
    content: bytes, code: int, said: str, own_cache: Path
) -> None:
    """A manifest that is cut off, or none at all, is an error; its model lists it with that."""
    where = leave(own_cache / "made")
    for name in ("beads.json", "beads.onnx"):
        (where.parent / name).write_bytes((SHIPPED.parent / name).read_bytes())
    where.write_bytes(content)

    error = run("engine-info", str(where), code=code)["error"]
    assert said in error["got"]
    assert f"--rebuild {where}" in error["remedy"]
    assert (
        said in run("engine-info", str(where.with_name("beads.json")))["engines_made"][str(where)]
    )


@pytest.mark.parametrize(
    ("name", "schema", "said"),
    [
        ("segbatch_run.json", "segbatch.run/1", "the account of a run"),
        ("img_0001_qc.json", "segbatch.qc/1", "the QC record of frames"),
        ("stack_qc.jsonl", "segbatch.qc/1", "the QC record of frames"),
        ("other.json", "segbatch.simulated/1", "another file of segbatch"),
    ],
)
def test_files_of_a_run_are_named_for_what_they_are(
    name: str, schema: str, said: str, own_cache: Path
) -> None:
    """A file that a run wrote is no broken manifest: exit code 2, and it is to be left as it is."""
    line = json.dumps({"schema": schema, "frame": {}})
    (own_cache / name).write_text(f"{line}\n{line}\n" if name.endswith("l") else line)
    error = run("engine-info", str(own_cache / name), code=2)["error"]

    assert said in error["got"]
    assert schema in error["got"]
    assert "leave that file as it is" in error["remedy"]


def test_a_precision_that_is_not_the_names_does_not_fit(own_cache: Path) -> None:
    """A manifest that was changed to another precision than its name says is told not to fit."""
    answer = run("engine-info", str(leave(own_cache / "made", precision="fp16")))

    assert answer["fits"].startswith("no: ")
    assert "its name says openvino int8, and its manifest openvino fp16" in answer["fits"]


def test_a_hint_of_the_selftest_can_be_carried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it names to make an engine makes it, slower than another one or not."""
    kinds = (selftest.KINDS[0], ("onnxruntime", "int8"))
    monkeypatch.setattr(selftest, "KINDS", kinds)
    why = run("selftest")["engines"][1]["why"]

    assert why.endswith("segbatch export-engine --engine onnxruntime --precision int8 --force")


@pytest.mark.parametrize("kind", ["frame.tif", "empty", "empty.onnx", "empty.json"])
def test_other_files_are_no_engines(kind: str, own_cache: Path) -> None:
    """A frame and empty files end with exit code 3 and what was wanted."""
    file = own_cache / kind
    file.write_bytes(b"II*\0" + bytes(60) if kind == "frame.tif" else b"")
    error = run("engine-info", str(file), code=3)["error"]

    assert str(file) in error["got"]
    assert error["wanted"]


def test_of_a_folder_the_engines_are_named(own_cache: Path) -> None:
    """A folder is no engine: exit code 2, and the engines in it are told."""
    where = leave(own_cache / "made")
    assert str(where) in run("engine-info", str(where.parent), code=2)["error"]["remedy"]
    assert "a folder" in run("engine-info", str(own_cache), code=2)["error"]["got"]


def test_what_would_steer_a_terminal_is_escaped(own_cache: Path) -> None:
    """Words of a manifest are printed without their control characters."""
    where = leave(own_cache / "made", options={"frames": "\x1b[2Jrun"})
    done = CliRunner().invoke(main, ["engine-info", str(where)])

    assert "\x1b" not in done.stdout
    assert "\\x1b[2Jrun" in done.stdout
