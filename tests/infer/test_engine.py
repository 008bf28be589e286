"""Which model and which engine run, and that no other is taken silently."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from segbatch.errors import EngineError, ModelError
from segbatch.infer.engine import cache
from segbatch.infer.engine.door import open_engine
from segbatch.infer.engine.machine import available_threads
from segbatch.infer.engine.manifest import Manifest, Model, Parity, load_model
from segbatch.infer.engine.models import open_model
from segbatch.infer.engine.probe import Probe, probe
from segbatch.settings import Settings
from tests.infer.conftest import MakeModel

PASSED = Parity(
    engine="openvino",
    precision="bf16",
    max_probability_difference=0.01,
    mean_probability_difference=0.001,
    mask_agreement=0.9999,
    passed=True,
)


@pytest.fixture
def openvino_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every trial of OpenVINO end its process, as it does on some processors."""
    folder = tmp_path / "dies"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if 'openvino' in sys.orig_argv:\n"
        "    os.kill(os.getpid(), signal.SIGFPE)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))


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


def test_network_without_manifest_shows_what_one_is(make_model: MakeModel) -> None:
    """The remedy for a bare network is a minimal manifest, and that is one."""
    file = make_model().file
    file.with_suffix(".json").unlink()

    with pytest.raises(ModelError, match="without its manifest") as caught:
        open_model(file)
    example = caught.value.remedy.partition("at least ")[2]
    assert msgspec.json.decode(example, type=Manifest).file == "NAME.onnx"


@pytest.mark.parametrize("name", ["net.pt", "net.pth", "net.ckpt", "net.pkl"])
def test_files_that_may_hold_code_are_refused(name: str, tmp_path: Path) -> None:
    """Checkpoints and pickles are not opened, whether they exist or not."""
    (tmp_path / name).write_bytes(b"\x80\x04.")

    with pytest.raises(ModelError, match="may hold code"):
        open_model(tmp_path / name)


@pytest.mark.parametrize("name", ["missing.onnx", "missing.json", "beads", "net.txt"])
def test_a_named_model_that_is_missing_is_an_error(name: str, tmp_path: Path) -> None:
    """Nothing is taken in place of a model that was named."""
    with pytest.raises(ModelError, match=name):
        open_model(tmp_path / name)


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


def test_openvino_comes_without_its_telemetry() -> None:
    """Loading OpenVINO leaves its reporting module unloaded."""
    code = (
        "import sys\n"
        "from segbatch.infer.engine.openvino_engine import load_openvino\n"
        "load_openvino().Core()\n"
        "assert not [name for name, module in sys.modules.items()"
        " if name.startswith('openvino_telemetry') and module is not None]\n"
    )

    subprocess.run([sys.executable, "-c", code], check=True)


def test_auto_takes_openvino_in_fp32_without_a_parity_record(make_model: MakeModel) -> None:
    """A precision that was never compared on this model is not taken by itself."""
    opened = open_engine(open_model(make_model().file), Settings(threads=1)).engine

    assert (opened.name, opened.precision) == ("openvino", "fp32")


def test_auto_takes_bf16_where_it_passed_and_is_native(make_model: MakeModel) -> None:
    """With a passed parity record the processor's own bf16 is taken, where it has one."""
    model = open_model(make_model(parity=[PASSED]).file)
    trial = probe(model.file, model.manifest.sha256, "openvino", "fp32", 1, 4)
    opened = open_engine(model, Settings(threads=1)).engine

    assert opened.precision == ("bf16" if trial.native_bf16 else "fp32")


@pytest.mark.usefixtures("openvino_dies")
def test_auto_falls_back_aloud_where_openvino_dies(make_model: MakeModel) -> None:
    """Where OpenVINO ends its process, ONNX Runtime runs and the log says why."""
    model = open_model(make_model(net={"seed": 71}).file)
    with capture_logs() as lines:
        opened = open_engine(model, Settings(threads=1)).engine

    assert opened.name == "onnxruntime"
    assert any("signal 8" in line.get("reason", "") for line in lines)


@pytest.mark.usefixtures("openvino_dies")
@pytest.mark.parametrize("given", [{"engine": "openvino"}, {"precision": "bf16"}])
def test_what_was_named_is_never_replaced(given: dict[str, str], make_model: MakeModel) -> None:
    """An engine or precision that was named and cannot be used is an error with its reason."""
    model = open_model(make_model(net={"seed": 72}).file)

    with pytest.raises(EngineError, match="signal 8"):
        open_engine(model, msgspec.convert(given, Settings))


def test_onnxruntime_has_no_bf16(make_model: MakeModel) -> None:
    """ONNX Runtime with bf16 is refused rather than run in fp32."""
    model = open_model(make_model().file)

    with pytest.raises(EngineError, match="does not compute in bf16"):
        open_engine(model, Settings(engine="onnxruntime", precision="bf16"))


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_trial_is_remembered(engine: str, make_model: MakeModel) -> None:
    """The second question is answered from the cache."""
    model = open_model(make_model(net={"seed": 73}).file)
    sha256 = model.manifest.sha256
    first = probe(model.file, sha256, engine, "fp32", 1, 4)
    model.file.unlink()

    assert first.usable
    assert 0 < first.bytes_per_px < 5000
    assert probe(model.file, sha256, engine, "fp32", 1, 4) == first


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_network_that_is_none_fails_its_trial(engine: str, tmp_path: Path) -> None:
    """A file of other content is not usable, and the reason says which file."""
    file = tmp_path / "net.onnx"
    file.write_bytes(b"no network")
    found = probe(file, f"{engine}-none", engine, "fp32", 1, 4)

    assert not found.usable
    assert "net.onnx" in found.reason


def test_a_cache_that_cannot_be_written_costs_only_time(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the cache folder cannot exist, trials still give their answer."""
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    model: Model = open_model(make_model().file)

    assert open_engine(model, Settings(threads=1, engine="onnxruntime")).engine.precision == "fp32"
    assert cache.recall("anything", Probe) is None


def test_threads_are_at_most_what_this_process_may_use() -> None:
    """At least one thread, at most the processors of the machine."""
    assert 1 <= available_threads() <= (os.cpu_count() or 1)
