"""Which model a path opens, and that no other is taken silently."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

import pytest
from structlog.testing import capture_logs

from segbatch.errors import ModelError, UsageError
from segbatch.infer.engine import cache
from segbatch.infer.engine.digest import sha256_of
from segbatch.infer.engine.made.artifact import EngineManifest, manifest_path, write_artifact
from segbatch.infer.engine.manifest import Model, load_model
from segbatch.infer.engine.network import adopt, reading
from segbatch.infer.engine.network.models import open_model
from tests.infer.conftest import MakeModel


def test_no_path_is_the_shipped_model() -> None:
    """An empty path opens the model in the package, complete and verified."""
    manifest = open_model("").manifest

    assert manifest.name == "beads"
    assert manifest.exact_tiling


def test_network_and_manifest_name_the_same_model(make_model: MakeModel) -> None:
    """NAME.onnx and NAME.json open the same model."""
    file = make_model().file

    assert open_model(file) == open_model(file.with_suffix(".json"))


def test_measured_halo_is_kept_in_the_manifest(make_model: MakeModel) -> None:
    """What was measured at the first opening stands in the manifest file from then on."""
    manifest_file = make_model(net={"depth": 2}).file.with_suffix(".json")
    opened = open_model(manifest_file)
    kept = load_model(manifest_file).manifest

    assert (kept.stride, kept.halo_px, kept.exact_tiling) == (4, 24, True)
    assert kept == opened.manifest


def test_stated_halo_is_not_measured_again(make_model: MakeModel) -> None:
    """A manifest that states stride, halo and exactness is taken at its word and not rewritten."""
    model = make_model(stride=8, halo_px=64, exact_tiling=True)
    before = model.file.with_suffix(".json").read_bytes()

    assert open_model(model.file).manifest.halo_px == 64
    assert model.file.with_suffix(".json").read_bytes() == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_measured_halo_of_a_read_only_model_is_kept_in_the_cache(make_model: MakeModel) -> None:
    """A model in a folder that may not be written is measured once and remembered elsewhere."""
    model = make_model()
    model.file.parent.chmod(0o555)
    opened = open_model(model.file)
    model.file.parent.chmod(0o755)

    assert load_model(model.file.with_suffix(".json")).manifest.halo_px is None
    assert (cache.cache_folder() / f"tiling-{opened.manifest.sha256}.json").is_file()


@pytest.mark.parametrize("name", ["missing.onnx", "missing.json", "beads", "net.txt"])
def test_a_named_model_that_is_missing_is_an_error(name: str, tmp_path: Path) -> None:
    """Nothing is taken in place of a model that was named."""
    with pytest.raises(ModelError, match=name):
        open_model(tmp_path / name)


def engine_of(model: Model, precision: Literal["bf16", "int8"]) -> Path:
    """Write an engine's manifest beside a model and return the file that it names."""
    own = precision == "int8"
    file = model.file.with_name("net.onnxruntime-int8.13d18c4e9c52.onnx") if own else model.file
    if own:
        file.write_bytes(model.file.read_bytes() + b"\0")
    manifest = EngineManifest(
        model="net",
        file=file.name,
        sha256=sha256_of(file),
        source_sha256=model.manifest.sha256,
        engine="onnxruntime",
        version="1",
        precision=precision,
    )
    manifest_file = model.file.with_suffix(".json")
    write_artifact(manifest, manifest_path(manifest_file, "onnxruntime", precision))
    return file


@pytest.mark.parametrize("name", ["", "net.onnxruntime-int8.engine.json"])
def test_an_engine_is_no_model(name: str, make_model: MakeModel) -> None:
    """Who names an engine, or its manifest, is told the model that it was made of."""
    model = make_model()
    engine = engine_of(model, "int8")
    with pytest.raises(ModelError, match=r"an engine of net\.json") as caught:
        open_model(engine.with_name(name) if name else engine)

    assert caught.value.remedy == f"name {model.file.with_suffix('.json')}"


def test_an_engine_without_its_model_is_no_model(make_model: MakeModel) -> None:
    """An engine is refused also where the model that it was made of is gone."""
    model = make_model()
    engine = engine_of(model, "int8")
    model.file.with_suffix(".json").unlink()
    with pytest.raises(ModelError, match=r"an engine of net\.json") as caught:
        open_model(engine)

    assert "name that model" in caught.value.remedy


@pytest.mark.learn
def test_a_network_that_passed_in_a_precision_is_no_engine(make_model: MakeModel) -> None:
    """The manifest of a precision that passed names the network itself, which stays a model."""
    model = make_model(net={"seed": 38})
    network = engine_of(model, "bf16")
    network.with_suffix(".json").unlink()
    (network.parent / "broken.openvino-int8.engine.json").write_text("{")

    assert open_model(network).manifest.name == "net"


@pytest.mark.parametrize("schema", ["segbatch.run/1", "segbatch.qc/1"])
def test_other_files_of_segbatch_are_no_model(schema: str, tmp_path: Path) -> None:
    """A record of a run is called that, and nobody is asked to write it again."""
    (tmp_path / "segbatch_run.json").write_text(f'{{"schema": "{schema}", "model": {{}}}}')
    with pytest.raises(ModelError, match=f"a file of {schema}, no model") as caught:
        open_model(tmp_path / "segbatch_run.json")

    assert "write it again" not in caught.value.remedy


def test_changed_network_is_refused(make_model: MakeModel) -> None:
    """A network that is not the file its manifest was written for is not opened."""
    file = make_model().file
    file.write_bytes(file.read_bytes() + b"\0")

    with pytest.raises(ModelError, match="SHA-256"):
        open_model(file)


def test_manifest_cannot_point_out_of_its_folder(make_model: MakeModel) -> None:
    """The network's name in a manifest is a plain file name."""
    file = make_model(file="../net.onnx").file

    with pytest.raises(ModelError, match="file name"):
        open_model(file.with_suffix(".json"))


@pytest.mark.learn
def test_a_bare_network_is_taken_in_and_what_was_assumed_is_logged(make_model: MakeModel) -> None:
    """ONNX without a manifest is looked at once, and each opening names what it could not say."""
    file = make_model(net={"depth": 2, "seed": 31}).file
    file.with_suffix(".json").unlink()
    with capture_logs() as first:
        opened = open_model(file)
    with capture_logs() as second:
        again = open_model(file)
    [assumed] = [line["assumed"] for line in second if "assumed" in line]

    assert (opened.manifest.stride, opened.manifest.halo_px) == (4, 24)
    assert any("taken in" in line["event"] for line in first)
    assert not any("taken in" in line["event"] for line in second)
    assert any("normalisation" in each for each in assumed)
    assert again == opened


@pytest.mark.learn
def test_a_changed_file_is_taken_in_again(make_model: MakeModel) -> None:
    """What was kept answers for the content of the file, not for its name."""
    file = make_model(net={"seed": 32}).file
    file.with_suffix(".json").unlink()
    first = open_model(file).manifest.sha256
    other = make_model("other", net={"seed": 33}).file
    shutil.copy(other, file)

    assert open_model(file).manifest.sha256 != first


@pytest.mark.learn
def test_what_was_kept_and_damaged_is_made_again(make_model: MakeModel) -> None:
    """A network in the cache that is not the one its manifest was written for is not used."""
    file = make_model(net={"seed": 34}).file
    file.with_suffix(".json").unlink()
    kept = open_model(file)
    kept.file.write_bytes(b"damaged")

    assert open_model(file).manifest == kept.manifest


@pytest.mark.learn
@pytest.mark.parametrize("name", ["net.pt", "net.pth", "net.ckpt", "net.pkl"])
def test_files_that_hold_no_network_are_refused(name: str, tmp_path: Path) -> None:
    """A pickle that is no checkpoint is refused, whatever it is called."""
    (tmp_path / name).write_bytes(b"\x80\x04.")

    with pytest.raises(ModelError, match=name):
        open_model(tmp_path / name)


def test_without_the_learn_extra_it_is_named(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where networks from elsewhere cannot be read, the error says what to install."""
    file = make_model(net={"seed": 35}).file
    file.with_suffix(".json").unlink()
    monkeypatch.setattr(adopt, "NEEDED", ("no_such_package",))

    with pytest.raises(UsageError, match="learn extra") as caught:
        open_model(file)
    assert "segbatch[learn]" in caught.value.remedy


@pytest.mark.learn
def test_a_network_that_takes_too_long_is_refused(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that reads a network is ended after its time."""
    file = make_model(net={"seed": 36}).file
    file.with_suffix(".json").unlink()
    monkeypatch.setattr(reading, "TIMEOUT_S", 0.01)

    with pytest.raises(ModelError, match="not read within"):
        open_model(file)


@pytest.mark.learn
def test_a_network_that_needs_too_much_memory_is_refused(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that reads a network takes no more memory than it is given."""
    file = make_model(net={"seed": 37}).file
    file.with_suffix(".json").unlink()
    monkeypatch.setattr(reading, "MEMORY_GIB", 0.05)

    with pytest.raises(ModelError, match=r"net\.onnx"):
        open_model(file)


def test_an_architecture_is_for_weights_alone(make_model: MakeModel) -> None:
    """Naming an architecture for a model that has its own is refused."""
    for model in ("", make_model().file.with_suffix(".json")):
        with pytest.raises(UsageError, match="smp-unet-resnet34"):
            open_model(model, "smp-unet-resnet34")
