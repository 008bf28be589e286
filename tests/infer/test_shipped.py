"""The shipped bead network finds beads, and is what its manifest says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from segbatch.acquire.simulate import Scene, draw
from segbatch.infer import shipped
from segbatch.infer.engine.cpu.onnxruntime_engine import OnnxRuntimeEngine
from segbatch.infer.engine.manifest import load_model
from segbatch.infer.normalise import scale_of

MANIFEST = Path(shipped.__file__).parent / "beads.json"


def test_it_is_small_and_says_where_it_comes_from() -> None:
    """Network and manifest take less than 8 MB and name the command, data and metrics."""
    model = load_model(MANIFEST)
    assert model.file.stat().st_size + MANIFEST.stat().st_size < 8e6
    assert model.manifest.command
    assert model.manifest.training
    assert model.manifest.metrics["unseen"]["iou"] >= 0.85


def test_tiles_of_it_can_be_exact() -> None:
    """Its halo is finite and fits its stride, and every processor engine passed its gate."""
    manifest = load_model(MANIFEST).manifest
    assert manifest.stride == 8
    assert manifest.exact_tiling
    assert manifest.halo_px is not None
    assert manifest.halo_px % manifest.stride == 0
    assert all(parity.passed for parity in manifest.parity)


@pytest.mark.parametrize("seed", [31, 32])
def test_it_finds_simulated_beads(seed: int) -> None:
    """On a frame it has not seen, intersection over union with the truth is 0.85 or more."""
    model = load_model(MANIFEST)
    scene = Scene(height_px=360, width_px=480, bead_diameter_um=2.0)
    frame, truth = draw(scene, np.random.default_rng(seed))
    offset, scale = scale_of(frame, model.manifest.normalisation, 10)
    engine = OnnxRuntimeEngine(model.file, 1)
    logits = engine.run(((frame - np.float32(offset)) * np.float32(scale))[None, None])
    engine.close()
    mask = logits[0, 0] > 0
    assert (mask & (truth > 0)).sum() / (mask | (truth > 0)).sum() >= 0.85
