"""What the export makes of a network in each precision, TensorRT builds, decision and all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from segbatch.infer.engine.tensorrt import Source, build
from segbatch.learn.export.head import append_decision
from segbatch.learn.export.network import to_onnx
from segbatch.learn.export.precision import to_fp16, to_int8
from segbatch.learn.nets import BEADS
from segbatch.learn.nets import build as network
from tests.infer.networks import draw_unet
from tests.infer.rtx import needs_rtx

if TYPE_CHECKING:
    from pathlib import Path

    from segbatch.infer.engine.made.artifact import EngineManifest, Precision

pytestmark = [pytest.mark.learn, needs_rtx]

SHAPE = (2, 1, 64, 96)


def built(content: bytes, stride: int, precision: Precision, folder: Path) -> EngineManifest:
    """Append the decision, build, and return the engine's manifest."""
    decided = append_decision(onnx.load_from_string(content), stride=stride, threshold=0.5)
    source = Source("net", "0" * 64, precision, 0.5)
    artifact = build(decided.SerializeToString(), SHAPE, folder, "net", source=source)
    assert artifact.manifest.decides
    return artifact.manifest


def test_the_exported_network_in_each_precision(tmp_path: Path) -> None:
    """Our own network becomes an engine in fp32, fp16 and int8, with half input for fp16."""
    exported = to_onnx(network(BEADS, seed=1))
    rng = np.random.default_rng(1)
    frames = [rng.random((1, 1, 64, 64), np.float32) for _ in range(2)]

    fp32 = built(exported, BEADS.stride, "fp32", tmp_path)
    fp16 = built(to_fp16(exported, half_input=True), BEADS.stride, "fp16", tmp_path)
    int8 = built(to_int8(exported, frames, symmetric=True), BEADS.stride, "int8", tmp_path)

    assert [each.options["input_dtype"] for each in (fp32, fp16, int8)] == [
        "float32",
        "float16",
        "float32",
    ]
    assert len({each.sha256 for each in (fp32, fp16, int8)}) == 3


@pytest.mark.parametrize("whole", ["", "instance", "gate"])
@pytest.mark.parametrize("up", ["transpose", "nearest", "linear"])
def test_other_networks_in_half(up: str, whole: str, tmp_path: Path) -> None:
    """Networks of other upsamplings and of steps over the whole frame become fp16 engines."""
    draw_unet(tmp_path / "net.onnx", up=up, whole=whole)

    made = built(to_fp16((tmp_path / "net.onnx").read_bytes()), 4, "fp16", tmp_path)

    assert made.precision == "fp16"
