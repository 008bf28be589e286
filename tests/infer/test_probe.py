"""A trial says what an engine needs, whatever it took to load the network."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest

from segbatch.infer.engine import probe as trial
from segbatch.infer.engine.cache import cache_folder
from segbatch.infer.engine.manifest import write_manifest
from segbatch.infer.engine.network.models import open_model
from segbatch.infer.engine.probe import Probe, probe
from segbatch.infer.segment import Segmenter
from segbatch.settings import Settings
from tests.infer.conftest import MakeModel
from tests.infer.networks import Graph, manifest_for, save

ENGINES = ["openvino", "onnxruntime"]
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
POOLINGS = 5


def bottleneck(file: Path, wide: int) -> str:
    """Write a network of ``wide`` channels where its image is small; return its SHA-256."""
    graph = Graph(1, 0)
    graph.convolve(4)
    for _ in range(POOLINGS):
        graph.node("MaxPool", [graph.last], kernel_shape=[2, 2], strides=[2, 2])
    for channels in (wide, wide, 4):
        graph.convolve(channels)
    scales = graph.constant(np.array([1, 1, 1 << POOLINGS, 1 << POOLINGS], np.float32))
    graph.node("Resize", [graph.last, "", scales], mode="nearest")
    graph.convolve(1, side=1, rectify=False)
    save(file, graph, 1, 1)
    return hashlib.sha256(file.read_bytes()).hexdigest()


@needs_proc
@pytest.mark.parametrize("engine", ENGINES)
def test_heavy_weights_do_not_hide_what_a_pixel_needs(engine: str, tmp_path: Path) -> None:
    """The need per pixel of a network that took more to load than to run is found all the same."""
    light, heavy = (
        probe(file, bottleneck(file, wide), engine, "fp32", 1, 1 << POOLINGS)
        for file, wide in ((tmp_path / "light.onnx", 64), (tmp_path / "heavy.onnx", 1400))
    )

    assert light.usable
    assert heavy.usable
    assert heavy.bytes_per_px > 0.8 * light.bytes_per_px > 8
    assert heavy.fixed_bytes > light.fixed_bytes + (tmp_path / "heavy.onnx").stat().st_size


@pytest.mark.parametrize("engine", ENGINES)
def test_a_network_of_heavy_weights_is_run(engine: str, tmp_path: Path) -> None:
    """Frames of a network that takes more to load than to run are laid out and segmented."""
    bottleneck(tmp_path / "heavy.onnx", 1400)
    tiling = {"stride": 1 << POOLINGS, "halo_px": 160, "exact_tiling": True}
    write_manifest(manifest_for(tmp_path / "heavy.onnx", **tiling), tmp_path / "heavy.json")
    settings = Settings(engine=engine, precision="fp32", threads=1)  # type: ignore[arg-type]
    with Segmenter(open_model(tmp_path / "heavy.json"), settings) as segmenter:
        found = segmenter.segment(np.full((100, 130), 300, np.uint16), 10)

    assert found.mask.shape == (100, 130)


@needs_proc
@pytest.mark.parametrize("engine", ENGINES)
def test_where_the_peak_cannot_be_forgotten_no_less_is_found(
    engine: str, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without leave to forget the peak, a pixel is said to need at least what it needs."""
    model = make_model(net={"seed": 81})
    given = (model.file, model.manifest.sha256, engine, "fp32", 1, 4)
    measured = trial._try(*given)
    monkeypatch.setattr(trial, "CLEAR_REFS", tmp_path / "none" / "clear_refs")
    assumed = trial._try(*given)

    assert assumed.bytes_per_px >= measured.bytes_per_px > 0
    assert assumed.fixed_bytes >= 0


@pytest.mark.parametrize("engine", ENGINES)
def test_a_pixel_needs_at_least_its_input_and_output(engine: str, tmp_path: Path) -> None:
    """A network that does nearly nothing needs the bytes of what goes in and what comes out."""
    graph = Graph(3, 0)
    graph.convolve(5, side=1, rectify=False)
    save(tmp_path / "net.onnx", graph, 3, 5)
    sha256 = hashlib.sha256((tmp_path / "net.onnx").read_bytes()).hexdigest()

    assert probe(tmp_path / "net.onnx", sha256, engine, "fp32", 3, 1).bytes_per_px >= 4 * (3 + 5)


@pytest.mark.parametrize("forgotten", [True, False])
@pytest.mark.parametrize("peaks", [(1000, 1000), (1000, 900), (1000, 1300), (10, 60_000)])
def test_growth_that_did_not_show_is_not_a_need_of_nothing(
    peaks: tuple[int, int], forgotten: bool
) -> None:
    """Whatever the two peaks are, a pixel needs its least, and the larger peak is accounted for."""
    fixed, per_px = trial._need(peaks, (100, 1600), 8.0, forgotten=forgotten)

    assert per_px >= 8.0
    assert 0.0 <= fixed <= peaks[0]
    assert fixed + per_px * 1600 >= peaks[1]


def test_a_need_of_nothing_is_not_remembered(make_model: MakeModel) -> None:
    """A trial that is kept with no need per pixel, as an earlier one could be, is made again."""
    model = make_model(net={"seed": 82})
    given = (model.file, model.manifest.sha256, "onnxruntime", "fp32", 1, 4)
    first = probe(*given)
    kept = cache_folder() / trial._name(*given[1:4])
    kept.write_bytes(b'{"usable": true, "fixed_bytes": 1.0, "bytes_per_px": 0.0}')

    assert first.usable
    assert probe(*given).bytes_per_px > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_modules_of_the_current_folder_are_not_run(
    engine: str, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in the current folder under a module's name is not imported by a trial."""
    model = make_model(net={"seed": 83})
    here = tmp_path / "here"
    here.mkdir()
    for name in ("platform.py", "numpy.py", "onnxruntime.py"):
        (here / name).write_text("open('ran', 'w').close()\n")
    monkeypatch.chdir(here)

    assert probe(model.file, model.manifest.sha256, engine, "fp32", 1, 4).usable
    assert sorted(path.name for path in here.iterdir()) == [
        "numpy.py",
        "onnxruntime.py",
        "platform.py",
    ]


def say(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trial processes run ``code`` as they start."""
    (folder / "start").mkdir()
    (folder / "start" / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if 'segbatch.infer.engine.probe' in ' '.join(sys.orig_argv):\n"
        + "".join(f"    {line}\n" for line in code.splitlines())
    )
    monkeypatch.setenv("PYTHONPATH", str(folder / "start"))


CHATTER = """import atexit
atexit.register(lambda: os.write(1, b'{"level": "info"}\\n{\\nbye \\xff\\n'))
os.write(1, b'{"hello": 1} ')"""


def test_what_libraries_print_is_no_answer(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library may print before and after the answer whatever it likes."""
    say(CHATTER, tmp_path, monkeypatch)
    model = make_model(net={"seed": 84})

    assert probe(model.file, model.manifest.sha256, "onnxruntime", "fp32", 1, 4).usable


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("os.kill(os.getpid(), 40)", "signal 40"),
        ("os._exit(0)", "exit code 0"),
        ("os.write(1, b'{}'); os._exit(0)", "exit code 0"),
        ("os.write(2, b'the library \\xff broke'); os._exit(3)", "broke"),
    ],
)
def test_a_trial_without_an_answer_becomes_words(
    code: str,
    words: str,
    make_model: MakeModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A trial that ends in whatever way is an engine that cannot be used, with the reason."""
    say(code, tmp_path, monkeypatch)
    model = make_model(net={"seed": 85})
    found = probe(model.file, model.manifest.sha256, "onnxruntime", "fp32", 1, 4)

    assert isinstance(found, Probe)
    assert not found.usable
    assert words in found.reason
