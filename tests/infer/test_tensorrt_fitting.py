"""A batch for which the GPU has no room is halved until it fits, and the manifest says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from segbatch.infer.engine.artifact import Artifact, load_artifact
from segbatch.infer.engine.tensorrt import build_largest
from segbatch.infer.engine.tensorrt.device import DeviceMemoryError
from segbatch.infer.engine.tensorrt.fitting import largest_batch
from segbatch.infer.engine.tensorrt.runtime import Runner
from tests.infer.networks import draw_unet
from tests.infer.pretend_gpu import PretendDevice, PretendProgram
from tests.infer.rtx import SHAPE, SOURCE, needs_rtx
from tests.infer.test_tensorrt_driver import needs_no_driver

if TYPE_CHECKING:
    from pathlib import Path


def run_in(room_bytes: float, shape: tuple[int, int, int, int]) -> None:
    """Take the buffers of an engine on a pretended GPU of that much room."""
    device = PretendDevice(room_bytes)
    try:
        Runner(device, PretendProgram(device, shape), 2).close()
    finally:
        device.close()


def test_the_batch_is_halved_until_it_fits() -> None:
    """Where the GPU has no room for a batch, half of it is tried, down to what fits."""
    tried = []

    def attempt(batch: int) -> None:
        tried.append(batch)
        run_in(10_000, (batch, 1, 8, 12))

    _, batch = largest_batch(16, attempt)

    assert tried == [16, 8, 4]
    assert batch == 4


def test_no_room_at_all_is_an_error() -> None:
    """Where not even a batch of one fits, the error of the GPU is raised."""
    with pytest.raises(DeviceMemoryError, match="no room"):
        largest_batch(5, lambda batch: run_in(10, (batch, 1, 8, 12)))


@needs_rtx
def test_a_halved_batch_is_recorded(tmp_path: Path) -> None:
    """The engine that fits is the one that stays, and its manifest names the batch wanted."""
    draw_unet(tmp_path / "net.onnx")

    def try_out(artifact: Artifact) -> None:
        assert artifact.manifest.input_shape is not None
        run_in(70_000, artifact.manifest.input_shape)

    made = build_largest(
        tmp_path / "net.onnx",
        (8, *SHAPE[1:]),
        tmp_path,
        "net",
        source=SOURCE,
        try_out=try_out,
    )

    assert made == load_artifact(made.manifest_file)
    assert made.manifest.input_shape == (2, *SHAPE[1:])
    assert made.manifest.options["batch_wanted"] == 8


@needs_rtx
@needs_no_driver
def test_without_a_gpu_the_batch_is_taken(tmp_path: Path) -> None:
    """Where no GPU can be asked, the engine is built for the batch that was wanted."""
    draw_unet(tmp_path / "net.onnx")

    made = build_largest(tmp_path / "net.onnx", SHAPE, tmp_path, "net", source=SOURCE)

    assert made.manifest.input_shape == SHAPE
    assert "batch_wanted" not in made.manifest.options
