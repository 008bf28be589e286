"""Graphs that OpenVINO compiled are kept, and only what is trusted is loaded again."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from structlog.testing import capture_logs

from segbatch.infer.engine.cache import cache_folder
from segbatch.infer.engine.cpu.openvino_engine import OpenVinoEngine
from tests.infer.conftest import MakeModel
from tests.infer.test_kept import needs_root


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep graphs in this test's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def graphs() -> list[Path]:
    """Return the graphs that are kept."""
    return list((cache_folder() / "openvino").iterdir())


def logits_of(engine: OpenVinoEngine, shape: tuple[int, int, int, int]) -> NDArray[np.float32]:
    """Return the logits of one noise image."""
    with engine.request(shape, 1) as request:
        request.input[...] = np.random.default_rng(1).random(shape, np.float32)
        return np.array(request.infer())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_graph_from_the_cache_computes_the_same(precision: str, make_model: MakeModel) -> None:
    """A graph that was kept gives the logits of one that was just compiled, bit by bit."""
    file = make_model(net={"seed": 81}).file
    first, second, plain = (
        OpenVinoEngine(file, precision, 1, cached=cached) for cached in (True, True, False)
    )
    wanted = logits_of(plain, (1, 1, 64, 64))

    assert np.array_equal(logits_of(first, (1, 1, 64, 64)), wanted)
    assert len(graphs()) == 1
    assert np.array_equal(logits_of(second, (1, 1, 64, 64)), wanted)


def test_a_damaged_graph_is_compiled_again(make_model: MakeModel) -> None:
    """A graph whose bytes changed is never handed to the library, and the log says so."""
    file = make_model(net={"seed": 82}).file
    wanted = logits_of(OpenVinoEngine(file, "fp32", 1, cached=True), (1, 1, 32, 32))
    for kept in graphs():
        kept.write_bytes(kept.read_bytes()[:-7])
    with capture_logs() as lines:
        found = logits_of(OpenVinoEngine(file, "fp32", 1, cached=True), (1, 1, 32, 32))

    assert np.array_equal(found, wanted)
    assert any("damaged" in line["event"] for line in lines)


@needs_root
@pytest.mark.parametrize("whose", ["file", "folder"])
def test_a_graph_of_another_user_is_not_loaded(whose: str, make_model: MakeModel) -> None:
    """A compiled graph that another user owns is compiled again, and the log says why."""
    file = make_model(net={"seed": 84}).file
    wanted = logits_of(OpenVinoEngine(file, "fp32", 1, cached=True), (1, 1, 32, 32))
    kept = graphs()[0]
    os.chown(kept if whose == "file" else kept.parent, 65534, 65534)
    with capture_logs() as lines:
        found = logits_of(OpenVinoEngine(file, "fp32", 1, cached=True), (1, 1, 32, 32))

    assert np.array_equal(found, wanted)
    assert any("another user" in line.get("why", "") for line in lines)


def test_a_home_that_cannot_be_written_costs_only_time(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no cache folder can exist the graph is compiled each time."""
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    engine = OpenVinoEngine(make_model().file, "fp32", 1, cached=True)

    assert logits_of(engine, (1, 1, 16, 16)).shape == (1, 1, 16, 16)
