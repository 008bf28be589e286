"""Logits become a mask only where it can be said how sure the network was."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from segbatch.errors import EngineError
from segbatch.infer import decide
from segbatch.infer.engine.manifest import Fixed, Model, write_manifest
from segbatch.infer.segment import Segmentation, Segmenter
from segbatch.settings import Settings
from tests.infer.networks import Graph, manifest_for, save

LARGEST = float(np.finfo(np.float32).max)
ENGINES = ["openvino", "onnxruntime"]


def divider(folder: Path, scales: list[float]) -> Model:
    """Return a model whose logits are ``scale / (counts / 2)``, of as many classes."""
    graph = Graph(1, 0)
    kernel = graph.constant(np.array(scales, np.float32).reshape(1, -1, 1, 1))
    graph.node("Div", [kernel, "image"])
    save(folder / "net.onnx", graph, 1, len(scales))
    classes = [f"class{index}" for index in range(1, len(scales))]
    manifest = manifest_for(
        folder / "net.onnx",
        classes=classes or ["bead"],
        output="softmax" if classes else "sigmoid",
        normalisation=Fixed(scale=0.5),
        stride=1,
        halo_px=0,
        exact_tiling=True,
    )
    write_manifest(manifest, folder / "net.json")
    return Model(manifest, folder / "net.onnx")


def segmented(model: Model, pixels: NDArray[np.uint16], engine: str, tile_px: int) -> Segmentation:
    """Segment one frame."""
    settings = msgspec.convert(
        {"engine": engine, "precision": "fp32", "threads": 1, "tile_px": tile_px}, Settings
    )
    with Segmenter(model, settings) as segmenter:
        return segmenter.segment(pixels, 16)


@pytest.mark.parametrize("tile_px", [32, 512])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("scales", [[1.0, -1.0], [1.0, 2.0, -1.0], [-1.0], [1.0]])
def test_a_logit_that_is_infinite_fails_the_frame(
    scales: list[float], engine: str, tile_px: int, tmp_path: Path
) -> None:
    """One infinite logit of either sign, in whatever row, makes the frame fail with the reason."""
    model = divider(tmp_path, scales)
    pixels = np.full((24, 40), 7, np.uint16)
    good = segmented(model, pixels, engine, tile_px)
    pixels[13, 21] = 0

    assert np.isfinite([good.mean_confidence, good.mean_entropy]).all()
    with pytest.raises(EngineError, match="logits that are not finite"):
        segmented(model, pixels, engine, tile_px)


def test_an_infinite_logit_is_noticed_in_rows_that_are_not_counted(tmp_path: Path) -> None:
    """In a frame so large that every fourth row is counted, the others have to be finite, too."""
    model = divider(tmp_path, [1.0, -1.0])
    pixels = np.full((1024, 1024), 7, np.uint16)
    pixels[1, 500] = 0

    with pytest.raises(EngineError, match="logits that are not finite"):
        segmented(model, pixels, "onnxruntime", 2048)


def test_logits_too_far_apart_for_a_certainty_fail_the_frame(tmp_path: Path) -> None:
    """Finite logits whose difference is beyond float32 give no certainty, and no record of one."""
    model = divider(tmp_path, [LARGEST / 2, -LARGEST / 2])
    pixels = np.ones((24, 40), np.uint16)

    with pytest.raises(EngineError, match="logits that are not finite"):
        segmented(model, pixels, "onnxruntime", 512)


@pytest.mark.parametrize("worst", [-np.inf, -LARGEST])
def test_a_certainty_that_cannot_be_had_is_no_number(worst: float) -> None:
    """Classes are decided without a warning where the certainty is not a number."""
    logits = np.full((3, 8, 8), 1.0, np.float32)
    logits[0, 2, 3], logits[1, 2, 3] = worst, LARGEST
    mask = np.empty((8, 8), np.uint8)
    _, entropy, pixels = decide.decide_classes(logits, mask, slice(None))

    assert mask[2, 3] == 1
    assert pixels == 64
    assert np.isnan(entropy)
