"""Engines made beforehand: which is taken, which is refused, and what deciding engines give."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from structlog.testing import capture_logs

from segbatch.errors import EngineError
from segbatch.infer.engine import cache
from segbatch.infer.engine.choice import choose
from segbatch.infer.engine.door import open_chosen, open_engine
from segbatch.infer.engine.machine import processor_id
from segbatch.infer.engine.made.artifact import (
    EngineManifest,
    Hardware,
    Likeness,
    Speed,
    Verdict,
    artifacts_beside,
    engines_of,
    kind_of,
    load_artifact,
    manifest_path,
    own_folder,
    read_manifest,
    write_artifact,
)
from segbatch.infer.engine.manifest import DatasetMax, Model
from segbatch.infer.engine.network.models import open_model
from segbatch.infer.engine.probe import Probe, probe
from segbatch.infer.engine.probe import _name as probe_name
from segbatch.infer.segment import Segmentation, Segmenter
from segbatch.learn.export.head import append_decision
from segbatch.settings import Settings
from tests.infer.conftest import MakeModel
from tests.infer.networks import draw_unet

LIKENESS = Likeness(
    frames="8 simulated",
    count=8,
    max_probability_difference=0.01,
    mean_probability_difference=0.001,
    mask_agreement=0.9999,
    iou=0.99,
)
PASSED = Verdict(
    passed=True, tolerance=0.999, least_iou=0.98, reference="onnxruntime", likeness=[LIKENESS]
)


def complete(model: Model) -> Model:
    """Return the model with stride and halo measured."""
    return open_model(model.file.with_suffix(".json"))


def speed(ms: float, **others: float) -> Speed:
    """Return a speed; ``others`` as ``openvino_fp32=5.0``."""
    return Speed(
        engine_ms=ms,
        source_ms=10.0,
        source="onnxruntime fp32",
        frame_shape=(96, 128),
        rounds=3,
        others={name.replace("_", " "): taken for name, taken in others.items()},
    )


def leave(model: Model, engine: str, precision: str, **changes: Any) -> Path:
    """Leave an engine beside a model: the network itself, under the name of the precision."""
    content = changes.pop("content", None) or model.file.read_bytes()
    folder = changes.pop("folder", model.file.parent)
    file = folder / f"{model.file.stem}.{engine}-{precision}.onnx"
    file.write_bytes(content)
    given: dict[str, Any] = {
        "model": model.manifest.name,
        "file": file.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "source_sha256": model.manifest.sha256,
        "engine": engine,
        "version": "1",
        "precision": precision,
        "hardware": Hardware(processor=processor_id()),
        "parity": PASSED,
        "speed": speed(1.0),
        **changes,
    }
    where = manifest_path(folder / f"{model.file.stem}.json", engine, precision)
    write_artifact(EngineManifest(**given), where)
    return where


def opened_kind(model: Model, **given: Any) -> tuple[str, str]:
    """Return engine and precision that the settings come to."""
    engine = open_engine(model, msgspec.convert({"threads": 1, **given}, Settings)).engine
    engine.close()
    return engine.name, engine.precision


def test_an_engine_comes_back_as_it_was_left(make_model: MakeModel) -> None:
    """Manifest and file are read back, and the name says what it is."""
    model = complete(make_model())
    where = leave(model, "openvino", "int8")
    found = load_artifact(where)

    assert artifacts_beside(model.file.with_suffix(".json")) == [where]
    assert kind_of(where) == ("openvino", "int8")
    assert found.file.name == "net.openvino-int8.onnx"
    assert found.manifest.parity == PASSED


@pytest.mark.parametrize("given", [{}, {"precision": "int8"}, {"engine": "openvino"}])
def test_what_passed_the_gate_is_taken(given: dict[str, str], make_model: MakeModel) -> None:
    """An engine made beforehand that fits is taken by itself and by name."""
    model = complete(make_model())
    leave(model, "openvino", "int8")
    with capture_logs() as lines:
        found = opened_kind(model, **given)

    assert found == ("openvino", "int8")
    assert any("passed the gate" in line.get("why", "") for line in lines)


def test_the_fastest_of_several_is_taken(make_model: MakeModel) -> None:
    """Of two engines that fit the one of the shorter time is taken."""
    model = complete(make_model())
    leave(model, "openvino", "int8", speed=speed(2.0))
    leave(model, "onnxruntime", "int8", speed=speed(1.0))

    assert opened_kind(model) == ("onnxruntime", "int8")


def test_a_built_in_engine_that_was_faster_is_taken(make_model: MakeModel) -> None:
    """An engine that was slower than a built-in one in its own turns is left aside."""
    model = complete(make_model())
    leave(model, "openvino", "int8", speed=speed(2.0, openvino_fp32=1.0))

    assert opened_kind(model) == ("openvino", "fp32")
    assert opened_kind(model, precision="int8") == ("openvino", "int8")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source_sha256": "0" * 64}, "another network"),
        ({"sha256": "0" * 64}, "SHA-256"),
        ({"parity": None}, "never compared"),
        ({"parity": msgspec.structs.replace(PASSED, passed=False)}, "did not pass"),
        ({"hardware": Hardware(processor="another")}, "another processor"),
        ({"file": "../net.onnx"}, "plain file name"),
        ({"file": "gone.onnx"}, "gone.onnx"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_named_in_the_log(
    changes: dict[str, Any], said: str, make_model: MakeModel
) -> None:
    """Asked for by name it is an error that tells how to rebuild it; else a warning."""
    model = complete(make_model())
    where = leave(model, "openvino", "int8", **changes)
    with pytest.raises(EngineError, match=said) as caught:
        opened_kind(model, precision="int8")
    with capture_logs() as lines:
        found = opened_kind(model)
    warned = [line["why"] for line in lines if line["log_level"] == "warning"]

    assert caught.value.remedy == f"segbatch export-engine --rebuild {where}"
    assert found[0] == "openvino"
    assert found[1] != "int8"
    assert any(said in why and f"--rebuild {where}" in why for why in warned)


def test_an_unreadable_manifest_is_named(make_model: MakeModel) -> None:
    """A manifest of no sense is refused with the command that makes it again."""
    model = complete(make_model())
    where = model.file.with_name("net.openvino-int8.engine.json")
    where.write_bytes(b"{")

    with pytest.raises(EngineError, match="manifest") as caught:
        opened_kind(model, precision="int8")
    assert f"--rebuild {where}" in caught.value.remedy


def test_a_file_that_is_no_network_is_refused_before_it_is_loaded_here(
    make_model: MakeModel,
) -> None:
    """An engine of the right hash that does not run fails its trial in another process."""
    model = complete(make_model())
    leave(model, "openvino", "int8", content=b"no network")

    with pytest.raises(EngineError, match="cannot be used here"):
        opened_kind(model, precision="int8")


@pytest.mark.parametrize(
    "given",
    [
        {"precision": "int8"},
        {"engine": "onnxruntime", "precision": "int8"},
    ],
)
def test_what_was_never_made_names_the_command_that_makes_it(
    given: dict[str, str], make_model: MakeModel
) -> None:
    """An engine that needs an export and has none is an error with the export's command line."""
    model = complete(make_model())
    with pytest.raises(EngineError, match="nothing was made") as caught:
        opened_kind(model, **given)

    assert caught.value.remedy.startswith("segbatch export-engine ")
    assert all(f"--{key} {value}" in caught.value.remedy for key, value in given.items())


def test_engines_of_the_user_are_found(make_model: MakeModel) -> None:
    """An engine in the user's own folder for this network is taken like one beside it."""
    model = complete(make_model(net={"seed": 74}))
    folder = own_folder("net", model.manifest.sha256)
    folder.mkdir(parents=True)
    where = leave(model, "openvino", "int8", folder=folder)

    assert engines_of(model.file.with_suffix(".json"), model.manifest.sha256) == [where]
    assert opened_kind(model) == ("openvino", "int8")


def segmented(model: Model, pixels: NDArray[Any], **given: Any) -> Segmentation:
    """Return the segmentation of one frame."""
    settings = msgspec.convert({"threads": 2, **given}, Settings)
    with Segmenter(model, settings) as segmenter:
        return segmenter.segment(pixels, 10)


def with_head(model: Model, threshold: float | None) -> bytes:
    """Return the model's network with the decision appended."""
    stride = model.manifest.stride or 1
    network = append_decision(onnx.load(model.file), stride=stride, threshold=threshold)
    return bytes(network.SerializeToString())


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("tile", ["auto", 96])
def test_an_engine_that_decides_gives_the_mask_of_one_that_does_not(
    engine: str, outputs: int, tile: str | int, make_model: MakeModel, frame: NDArray[np.uint16]
) -> None:
    """The mask from inside the graph is that of the logits, whole or tiled; certainty nearly so."""
    model = complete(make_model(net={"outputs": outputs}))
    wanted = segmented(model, frame, engine="onnxruntime", precision="fp32")
    threshold = model.manifest.threshold if outputs == 1 else None
    leave(
        model, engine, "int8", content=with_head(model, threshold), decides=True,
        threshold=threshold,
    )  # fmt: skip
    settings = msgspec.convert(
        {"threads": 2, "engine": engine, "precision": "int8", "tile_px": tile}, Settings
    )
    with Segmenter(model, settings) as segmenter:
        assert segmenter._opened.decides
        found = segmenter.segment(frame, 10)
        wished = segmenter.segment(frame, 10, probabilities=True)

    assert np.mean(found.mask != wanted.mask) < 1e-4
    assert np.array_equal(found.mask, wished.mask)
    assert found.mean_confidence == pytest.approx(wished.mean_confidence, abs=5e-3)
    assert found.mean_entropy == pytest.approx(wished.mean_entropy, abs=2e-2)


def test_another_threshold_takes_the_logits(
    make_model: MakeModel, frame: NDArray[np.uint16]
) -> None:
    """Where the settings ask for another threshold than the engine's, its masks are not used."""
    model = complete(make_model())
    leave(model, "openvino", "int8", content=with_head(model, 0.5), decides=True, threshold=0.5)
    low = segmented(model, frame, precision="int8", threshold=0.3)
    wanted = segmented(model, frame, engine="onnxruntime", precision="fp32", threshold=0.3)

    assert np.mean(low.mask != wanted.mask) < 1e-4


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (5, 61)])
def test_tiny_frames_have_a_certainty(shape: tuple[int, int], make_model: MakeModel) -> None:
    """A frame without a whole block is as certain as the block that it lies in."""
    model = complete(make_model())
    leave(model, "openvino", "int8", content=with_head(model, 0.5), decides=True, threshold=0.5)
    pixels = np.random.default_rng(0).integers(0, 1024, shape).astype(np.uint16)
    found = segmented(model, pixels, precision="int8")

    assert found.mask.shape == shape
    assert 0.5 <= found.mean_confidence <= 1.0


def test_masks_of_no_number_are_an_error(make_model: MakeModel) -> None:
    """An engine that decides on what is not finite fails, as one that gives logits does."""
    model = complete(make_model(normalisation=DatasetMax(maximum=1e-34)))
    leave(model, "onnxruntime", "int8", content=with_head(model, 0.5), decides=True, threshold=0.5)

    with pytest.raises(EngineError, match="not finite"):
        segmented(model, np.full((16, 16), 30000, np.uint16), precision="int8")


@pytest.mark.parametrize(
    "name",
    [
        "net.b.openvino-int8.engine.json",
        "net.openvino-int8.old.engine.json",
        "net.openvino-int4.engine.json",
        "net.engine.json",
    ],
)
def test_engines_of_another_model_are_not_this_ones(name: str, make_model: MakeModel) -> None:
    """Beside a model counts what is named after it, an engine and a precision, and nothing more."""
    model = complete(make_model())
    (model.file.parent / name).write_bytes(b"{")

    assert artifacts_beside(model.file.with_suffix(".json")) == []


def test_the_remedy_names_the_model_that_the_user_named(make_model: MakeModel) -> None:
    """Where the settings name a model, the command that makes an engine names the same."""
    model = complete(make_model())
    given = {"engine": "onnxruntime", "precision": "int8"}
    settings = msgspec.convert({"model": "my nets/weights.pt", "arch": "unet", **given}, Settings)
    with pytest.raises(EngineError, match="nothing was made") as caught:
        choose(model, settings)

    assert caught.value.remedy.startswith(
        "segbatch export-engine 'my nets/weights.pt' --arch unet --engine onnxruntime"
    )


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_file_that_changed_after_it_was_chosen_is_not_opened(
    engine: str, make_model: MakeModel
) -> None:
    """The bytes that are given to the library are those that were verified."""
    model = complete(make_model())
    settings = msgspec.convert({"threads": 1, "engine": engine, "precision": "fp32"}, Settings)
    chosen = choose(model, settings)
    open_chosen(chosen, 1).close()
    draw_unet(model.file, seed=91)

    with pytest.raises(EngineError, match="SHA-256") as caught:
        open_chosen(chosen, 1)
    assert caught.value.wanted == model.manifest.sha256


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_trial_verifies_what_it_loads(engine: str, make_model: MakeModel) -> None:
    """A network that is not the one of the hash fails its trial unread."""
    model = complete(make_model())

    assert "SHA-256" in probe(model.file, "0" * 64, engine, "fp32", 1, 4).reason


def test_a_trial_that_failed_is_made_again(make_model: MakeModel, tmp_path: Path) -> None:
    """What kept an engine from running once may be gone; that it ran is kept."""
    model = complete(make_model(net={"seed": 92}))
    sha256 = model.manifest.sha256
    away = tmp_path / "away.onnx"
    model.file.rename(away)
    failed = probe(model.file, sha256, "onnxruntime", "fp32", 1, 4)
    away.rename(model.file)
    found = probe(model.file, sha256, "onnxruntime", "fp32", 1, 4)
    model.file.unlink()

    assert (failed.usable, found.usable) == (False, True)
    assert probe(model.file, sha256, "onnxruntime", "fp32", 1, 4) == found


def test_what_the_processor_cannot_is_kept(make_model: MakeModel) -> None:
    """An answer of the processor's own is not asked for again, one of chance is."""
    sha256 = complete(make_model(net={"seed": 93})).manifest.sha256
    gone = Path("gone.onnx")
    name = probe_name(sha256, "onnxruntime", "fp32")
    for reason, lasting in (("this processor does not compute in fp32", True), ("rain", False)):
        cache.keep(name, Probe(usable=False, reason=reason))
        assert (probe(gone, sha256, "onnxruntime", "fp32", 1, 4).reason == reason) is lasting


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("speed", "engine_ms"), -1.0),
        (("speed", "frame_shape"), [0, 128]),
        (("speed", "others"), {"openvino fp32": -2.0}),
        (("parity", "tolerance"), 7.0),
        (("parity", "likeness"), []),
        (("parity", "likeness", 0, "mask_agreement"), 7.0),
        (("parity", "likeness", 0, "iou"), -0.1),
        (("parity", "likeness", 0, "max_probability_difference"), 2.0),
        (("input_shape",), [1, 1, -8, 0]),
        (("build_s",), -1),
    ],
)
def test_figures_that_cannot_be_are_refused(
    where: tuple[str | int, ...], value: object, make_model: MakeModel
) -> None:
    """A manifest whose figures nobody can have measured is no manifest, and the figure is named."""
    file = leave(complete(make_model()), "openvino", "int8")
    content = msgspec.json.decode(file.read_bytes())
    inner = content
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    file.write_bytes(msgspec.json.encode(content))
    with pytest.raises(EngineError) as caught:
        read_manifest(file)

    named = [str(key) for key in where if isinstance(key, str)]
    assert named[-1] in caught.value.got
    assert "--rebuild" in caught.value.remedy


def test_no_number_is_no_figure(make_model: MakeModel) -> None:
    """NaN, infinity and numbers beyond all bounds are refused, and so is text of another code."""
    file = leave(complete(make_model()), "openvino", "int8")
    content = file.read_bytes()
    for value in (b"NaN", b"Infinity", b"1e999", b'"\xff"'):
        file.write_bytes(content.replace(b'"engine_ms": 1.0', b'"engine_ms": ' + value))
        with pytest.raises(EngineError, match="engine manifest"):
            read_manifest(file)
    file.write_bytes(content.replace(b'"net.openvino-int8.onnx"', b'"a\\u0000b"'))
    with pytest.raises(EngineError, match="plain file name"):
        load_artifact(file)
