"""Which model and which engine run, and that no other is taken silently."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from segbatch.errors import EngineError
from segbatch.infer.engine import cache
from segbatch.infer.engine.choice import why_no_tensorrt
from segbatch.infer.engine.door import open_engine
from segbatch.infer.engine.machine import available_threads
from segbatch.infer.engine.manifest import Model, Parity
from segbatch.infer.engine.network.models import open_model
from segbatch.infer.engine.probe import Probe, probe
from segbatch.infer.engine.tensorrt.driver import ask_driver, driver_there
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


def test_openvino_comes_without_its_telemetry() -> None:
    """Loading OpenVINO leaves its reporting module unloaded."""
    code = (
        "import sys\n"
        "from segbatch.infer.engine.cpu.openvino_engine import load_openvino\n"
        "load_openvino().Core()\n"
        "assert not [name for name, module in sys.modules.items()"
        " if name.startswith('openvino_telemetry') and module is not None]\n"
    )

    subprocess.run([sys.executable, "-c", code], check=True)


def test_onnxruntime_comes_without_its_telemetry(make_model: MakeModel, tmp_path: Path) -> None:
    """A network that ONNX Runtime opens leaves no number of this device in the user's folders."""
    code = (
        "import segbatch, sys, onnxruntime\n"
        "onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}

    subprocess.run(
        [sys.executable, "-c", code, str(open_model(make_model().file).file)],
        env={**environment, "HOME": str(home), "XDG_CACHE_HOME": str(home)},
        check=True,
    )

    assert list(home.iterdir()) == []


def test_auto_takes_openvino_in_fp32_without_a_parity_record(make_model: MakeModel) -> None:
    """A precision that was never compared on this model is not taken by itself."""
    opened = open_engine(open_model(make_model().file), Settings(threads=1)).engine

    assert (opened.name, opened.precision) == ("openvino", "fp32")


def test_auto_takes_bf16_where_it_passed_and_is_native(make_model: MakeModel) -> None:
    """With a passed parity record the processor's own bf16 is taken, where it has one."""
    model = open_model(make_model(parity=[PASSED]).file)
    trial = probe(model.file, model.manifest.sha256, "openvino", "fp32", 1, 4)
    opened = open_engine(model, Settings(threads=1)).engine

    assert opened.precision == ("bf16" if trial.computes_in("bf16") else "fp32")


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


def test_the_remedy_for_int8_can_be_carried_out(make_model: MakeModel) -> None:
    """INT8 that was never made asks for frames, and is written though another is faster."""
    model = open_model(make_model().file)
    with pytest.raises(EngineError, match="nothing was made") as caught:
        open_engine(model, Settings(precision="int8"))

    assert "--frames FOLDER" in caught.value.remedy
    assert caught.value.remedy.endswith(" --force")


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt_rtx"])
def test_without_a_gpu_the_remedy_is_no_export(engine: str, make_model: MakeModel) -> None:
    """Where TensorRT cannot run, that is said, and no engine is asked for that nobody can make."""
    if why_no_tensorrt(engine) == "":
        pytest.skip("TensorRT runs here")
    model = open_model(make_model().file)
    with pytest.raises(EngineError, match=r"nothing was made .* cannot run here") as caught:
        open_engine(model, msgspec.convert({"engine": engine}, Settings))

    assert "export-engine" not in caught.value.remedy
    assert "--engine auto" in caught.value.remedy


def test_a_driver_is_asked_of_those_with_a_gpu() -> None:
    """Where no driver is, its remedy does not tell a PC without a GPU to install one."""
    if driver_there():
        pytest.skip("a driver is installed")
    told = str(ask_driver())

    assert told.endswith("remedy: where this PC has an NVIDIA GPU, install its driver")


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
