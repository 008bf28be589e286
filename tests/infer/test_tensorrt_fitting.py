"""Tiles and batch are planned for the GPU's memory; what does not fit is halved, and recorded."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, strategies

from segbatch.infer.engine.made.artifact import Artifact, load_artifact
from segbatch.infer.engine.manifest import BitDepth, Manifest
from segbatch.infer.engine.tensorrt import build_largest, fitting
from segbatch.infer.engine.tensorrt.device import DeviceMemoryError
from segbatch.infer.engine.tensorrt.fitting import (
    half_the_batch,
    largest,
    planned_shape,
    room_px,
    smaller_shape,
)
from segbatch.infer.engine.tensorrt.runtime import Runner
from segbatch.infer.layout import grid_of_engine
from segbatch.infer.tiles import up
from tests.infer.networks import draw_unet
from tests.infer.pretend_gpu import PretendDevice, PretendProgram
from tests.infer.rtx import SHAPE, SOURCE, needs_rtx
from tests.infer.test_tensorrt_driver import needs_no_driver

if TYPE_CHECKING:
    from pathlib import Path

    from segbatch.infer.engine.made.artifact import Shape


def manifest_of(**changes: Any) -> Manifest:
    """Return the manifest of a network of known stride and halo."""
    given: dict[str, Any] = {"stride": 16, "halo_px": 32, "exact_tiling": True, **changes}
    return Manifest(
        name="net", file="", sha256="", classes=["bead"], normalisation=BitDepth(), **given
    )


def run_in(room_bytes: float, shape: Shape) -> None:
    """Take the buffers of an engine on a pretended GPU of that much room."""
    device = PretendDevice(room_bytes)
    try:
        Runner(device, PretendProgram(device, shape), 2).close()
    finally:
        device.close()


def test_the_batch_is_halved_until_it_fits() -> None:
    """Where the GPU has no room for a batch, half of it is tried, down to what fits."""
    tried = []

    def attempt(shape: Shape) -> None:
        tried.append(shape[0])
        run_in(10_000, shape)

    _, shape = largest((16, 1, 8, 12), attempt, half_the_batch)

    assert tried == [16, 8, 4]
    assert shape == (4, 1, 8, 12)


def test_no_room_at_all_is_an_error() -> None:
    """Where not even a batch of one fits, the error of the GPU is raised."""
    with pytest.raises(DeviceMemoryError, match="no room"):
        largest((5, 1, 8, 12), partial(run_in, 10), half_the_batch)


def test_tiles_shrink_where_a_batch_of_one_does_not_fit() -> None:
    """Below a batch of one, tiles of half the pixels are tried, while they waste less than half."""
    manifest = manifest_of(stride=16, halo_px=32)
    shapes: list[Shape] = [(4, 1, 768, 768)]
    while (smaller := smaller_shape(manifest, (1000, 1400), shapes[-1])) is not None:
        shapes.append(smaller)
    sizes = [shape[0] * shape[2] * shape[3] for shape in shapes]
    computed = [grid_of_engine((1000, 1400), 16, 32, shape).pixels for shape in shapes]

    assert [shape[0] for shape in shapes[:3]] == [4, 2, 1]
    assert len(shapes) > 4
    assert all(after <= before / 2 for before, after in pairwise(sizes))
    assert max(computed) < 2 * 1000 * 1400


def test_a_network_without_a_halo_has_no_smaller_tiles() -> None:
    """An engine of a network that needs the whole frame is for the whole frame, or not at all."""
    manifest = manifest_of(exact_tiling=False)
    shape = planned_shape(manifest, (1000, 1400), 10_000)

    assert shape == (1, 1, 1008, 1408)
    assert smaller_shape(manifest, (1000, 1400), shape) is None


SIDES = strategies.integers(1, 5000)


@given(
    frame_shape=strategies.tuples(SIDES, SIDES),
    pixels=strategies.integers(20_000, 40_000_000),
    largest_tile=strategies.integers(20_000, 9_000_000),
    margin_px=strategies.sampled_from([0, 24]),
)
def test_a_plan_fits_and_covers_the_frame(
    frame_shape: tuple[int, int], pixels: int, largest_tile: int, margin_px: int
) -> None:
    """What is planned fits, covers the frame in the fewest requests, and is whole where it can."""
    manifest = manifest_of(stride=16, halo_px=48, margin_px=margin_px)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "LARGEST_TILE_PX", largest_tile)
        shape = planned_shape(manifest, frame_shape, pixels)
    batch, _, rows, columns = shape
    grid = grid_of_engine(frame_shape, 16, 48, shape, margin_px)
    whole = math.prod(up(side + margin_px, 16) for side in frame_shape)

    assert batch * rows * columns <= pixels
    assert rows * columns <= largest_tile
    assert grid.tile_shape == (rows, columns)
    assert (grid.count == 1) == (whole <= min(pixels, largest_tile))
    assert batch <= grid.count
    requests = math.ceil(grid.count / batch)
    assert requests == math.ceil(grid.count / max(1, pixels // (rows * columns)))
    assert batch * requests - grid.count < requests


def test_no_room_for_the_smallest_tile_is_said() -> None:
    """Where not even one smallest tile fits, the error says what it needs."""
    with pytest.raises(DeviceMemoryError, match="room for 5000 px") as caught:
        planned_shape(manifest_of(stride=16, halo_px=48), (1000, 1000), 5000)

    assert "12544 px" in caught.value.wanted


@needs_no_driver
def test_without_a_gpu_the_room_is_assumed() -> None:
    """Where no GPU can be asked, frames of four megapixels fit whole at 300 bytes a pixel."""
    assert room_px("tensorrt_rtx", 300.0) > 2048 * 2048


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


@needs_rtx
def test_tiles_that_became_smaller_are_recorded(tmp_path: Path) -> None:
    """Tiles of a frame are built as a batch, and what was wanted before is in the manifest."""
    draw_unet(tmp_path / "net.onnx")
    manifest = manifest_of(stride=4, halo_px=24)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "LARGEST_TILE_PX", 400 * 400)
        planned = planned_shape(manifest, (500, 760), 400_000)

    def try_out(artifact: Artifact) -> None:
        assert artifact.manifest.input_shape is not None
        run_in(1_700_000, artifact.manifest.input_shape)

    made = build_largest(
        tmp_path / "net.onnx",
        planned,
        tmp_path,
        "net",
        source=SOURCE,
        try_out=try_out,
        smaller=partial(smaller_shape, manifest, (500, 760)),
    )
    found = made.manifest.input_shape

    assert planned[0] > 1
    assert made == load_artifact(made.manifest_file)
    assert found is not None
    assert found[0] == 1
    assert found[2:] != planned[2:]
    assert made.manifest.options["batch_wanted"] == planned[0]
    assert made.manifest.options["tile_wanted"] == list(planned[2:])
    assert grid_of_engine((500, 760), 4, 24, found).count > 1
