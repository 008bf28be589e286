"""Engines of one input shape, and the settings that cannot change it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from structlog.testing import capture_logs

from segbatch.infer.engine.made.artifact import Shape
from segbatch.infer.engine.tensorrt.fitting import planned_shape
from segbatch.infer.segment import Segmenter
from segbatch.settings import Settings
from tests.infer.conftest import MakeModel
from tests.infer.test_artifacts import complete, leave

pytestmark = pytest.mark.usefixtures("no_engine_is_known")
OF_PARTS: Shape = (1, 1, 128, 160)
WHOLE: Shape = (1, 1, 256, 384)


@pytest.fixture
def no_engine_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep engines that other tests leave for the same network out of the choice."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def told(model_file: Path, make_model: MakeModel, shape: Shape, **given: Any) -> list[Any]:
    """Return the warnings of a segmenter of frames of 253 x 381 px, its settings as given."""
    model = complete(make_model())
    leave(model, "onnxruntime", "int8", input_shape=shape)
    wanted = {"threads": 2, "precision": "int8", "model": str(model_file), **given}
    frames: list[NDArray[np.uint16]] = [np.full((253, 381), 50, np.uint16)] * 3
    with (
        capture_logs() as lines,
        Segmenter(model, msgspec.convert(wanted, Settings)) as segmenter,
    ):
        for each in frames:
            segmenter.segment(each, 10)
        assert segmenter._layout((253, 381)).grid.tile_shape == shape[2:]
    return [line for line in lines if line["log_level"] == "warning"]


@pytest.mark.parametrize(
    ("shape", "given"),
    [
        (OF_PARTS, {}),
        (WHOLE, {"tile_px": "auto", "batch": "auto"}),
        (WHOLE, {"tile_px": 2048}),  # a frame in one tile, as the engine does it
        (WHOLE, {"batch": 8}),  # of one tile a frame
        ((4, 1, 128, 160), {"batch": 4}),
    ],
)
def test_settings_that_change_nothing_are_not_told(
    shape: Shape, given: dict[str, Any], make_model: MakeModel, tmp_path: Path
) -> None:
    """Where `auto`, or what is set, comes to the engine's own tiles and batch, nobody is warned."""
    assert told(tmp_path / "net.json", make_model, shape, **given) == []


@pytest.mark.parametrize("shape", [OF_PARTS, WHOLE])
def test_tiles_that_an_engine_does_not_have_are_told(
    shape: Shape, make_model: MakeModel, tmp_path: Path
) -> None:
    """`tile_px` of another size is told once, with the export that plans tiles of that size."""
    model = complete(make_model())
    warnings = told(tmp_path / "net.json", make_model, shape, tile_px=130)
    (warning,) = warnings
    command = warning["remedy"].partition("leave tile_px out, or ")[2]
    rows, columns = map(int, command.rpartition("--frame-shape ")[2].split("x"))

    assert warning["got"] == "tile_px = 130"
    assert str(shape) in warning["has"]
    assert command.startswith(f"segbatch export-engine {tmp_path / 'net.json'} --engine onnx")
    assert planned_shape(model.manifest, (rows, columns), 10**9) == (1, 1, 128, 128)


def test_a_batch_that_an_engine_does_not_have_is_told(
    make_model: MakeModel, tmp_path: Path
) -> None:
    """Another `batch` is told, and a `tile_px` of which no engine can be made has no command."""
    (warning,) = told(tmp_path / "net.json", make_model, OF_PARTS, batch=4, tile_px=32)

    assert warning["got"] == "tile_px = 32, batch = 4"
    assert warning["remedy"].startswith("leave tile_px out; leave batch out")
