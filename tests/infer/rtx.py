"""Tests with the real TensorRT for RTX, which builds engines where there is no GPU."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest

from segbatch.infer.engine.tensorrt import Source, build
from tests.infer.networks import draw_unet

if TYPE_CHECKING:
    from pathlib import Path

    from segbatch.infer.engine.made.artifact import Artifact

SHAPE = (2, 1, 32, 48)
SOURCE = Source(model="net", sha256="5" * 64, precision="fp32")

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed (pip install 'segbatch[gpu]')",
)


def small_engine(folder: Path) -> Artifact:
    """Build an engine of a small network, with its manifest, in ``folder``."""
    draw_unet(folder / "net.onnx")
    return build(folder / "net.onnx", SHAPE, folder, "net", source=SOURCE)
