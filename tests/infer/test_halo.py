"""Stride and halo, measured from networks whose structure is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from segbatch.errors import ModelError
from segbatch.infer.engine.network.halo import measure_tiling
from tests.infer.networks import Graph, draw_unet, save


@pytest.mark.parametrize(("side", "layers"), [(1, 2), (3, 1), (3, 5), (7, 2)])
def test_convolutions_need_their_radius(side: int, layers: int, tmp_path: Path) -> None:
    """Stacked convolutions without pooling have stride 1 and a halo of their summed radii."""
    graph = Graph(1, seed=side)
    for _ in range(layers):
        graph.convolve(4, side=side)
    graph.convolve(1, side=1, rectify=False)
    save(tmp_path / "net.onnx", graph, 1, 1)
    found = measure_tiling(tmp_path / "net.onnx", 1, threads=1)

    assert (found.stride, found.halo_px) == (1, layers * (side // 2))


def test_a_lopsided_kernel_needs_its_longer_side(tmp_path: Path) -> None:
    """The halo is the larger of the reaches to the four sides."""
    graph = Graph(1, seed=0)
    kernel = graph.constant(np.ones((1, 1, 3, 9), np.float32))
    graph.node("Conv", ["image", kernel], pads=[1, 7, 1, 1])
    save(tmp_path / "net.onnx", graph, 1, 1)

    assert measure_tiling(tmp_path / "net.onnx", 1, threads=1).halo_px == 7


def first_pixel_seen(output: int, depth: int) -> int:
    """Return the first input pixel that an output pixel of a U-Net depends on.

    Followed from the output to the input: two convolutions at every level take
    2 px more on the way up, the upsampling halves the position; on the way down
    the pooling doubles it and two convolutions take 2 px again.
    """
    at = output
    for _ in range(depth):
        at = (at - 2) // 2
    at -= 2
    for _ in range(depth):
        at = 2 * at - 2
    return at


@pytest.mark.parametrize("up", ["transpose", "nearest"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_unets_need_what_their_structure_says(depth: int, up: str, tmp_path: Path) -> None:
    """Stride is 2**depth; the halo is that of the structure, rounded up (96 px at depth 4)."""
    draw_unet(tmp_path / "net.onnx", depth=depth, up=up, base=2)
    found = measure_tiling(tmp_path / "net.onnx", 1, threads=1)
    radius = 1 + max(output for output in range(200) if first_pixel_seen(output, depth) < 0)

    assert found.stride == 1 << depth
    assert found.halo_px == -(-radius // found.stride) * found.stride
    assert depth != 4 or (radius, found.halo_px) == (94, 96)


@pytest.mark.parametrize("whole", ["instance", "gate"])
def test_whole_frame_steps_have_no_halo(whole: str, tmp_path: Path) -> None:
    """Instance normalisation and global pooling are recognised, and the stride is still found."""
    draw_unet(tmp_path / "net.onnx", depth=2, base=2, whole=whole)
    found = measure_tiling(tmp_path / "net.onnx", 1, threads=1)

    assert (found.stride, found.halo_px, found.exact) == (4, None, False)


def test_a_network_that_depends_on_its_size_is_not_exact(tmp_path: Path) -> None:
    """Upsampling with aligned corners sees no farther than its halo, yet its tiles would differ."""
    graph = Graph(1, seed=4)
    graph.node("AveragePool", [graph.last], kernel_shape=[2, 2], strides=[2, 2])
    scales = graph.constant(np.array([1, 1, 2, 2], np.float32))
    graph.node(
        "Resize",
        [graph.last, "", scales],
        mode="linear",
        coordinate_transformation_mode="align_corners",
    )
    save(tmp_path / "net.onnx", graph, 1, 1)

    assert not measure_tiling(tmp_path / "net.onnx", 1, threads=1, stride=2).exact


def test_stride_is_found_where_every_size_is_accepted(tmp_path: Path) -> None:
    """A network that resizes to its input's size still has the stride of its pooling."""
    graph = Graph(1, seed=3)
    graph.convolve(4)
    graph.node("MaxPool", [graph.last], kernel_shape=[2, 2], strides=[2, 2])
    deep = graph.convolve(1, rectify=False)
    size = graph.node("Shape", ["image"])
    graph.node("Resize", [deep, "", "", size], mode="nearest")
    save(tmp_path / "net.onnx", graph, 1, 1)

    assert measure_tiling(tmp_path / "net.onnx", 1, threads=1).stride == 2


def test_network_of_one_size_is_refused(tmp_path: Path) -> None:
    """A network that takes one frame size only is refused, and the error says how to export it."""
    graph = Graph(1, seed=0)
    shape = graph.constant(np.array([1, 1, 64, 64], np.int64))
    graph.node("Reshape", ["image", shape])
    save(tmp_path / "net.onnx", graph, 1, 1)

    with pytest.raises(ModelError, match="free batch, Y and X"):
        measure_tiling(tmp_path / "net.onnx", 1, threads=1)


def test_network_that_shrinks_its_frame_is_refused(tmp_path: Path) -> None:
    """Logits smaller than the frame are no mask of it."""
    graph = Graph(1, seed=0)
    graph.nodes.append(
        helper.make_node("MaxPool", ["image"], ["small"], kernel_shape=[2, 2], strides=[2, 2])
    )
    graph.last = "small"
    save(tmp_path / "net.onnx", graph, 1, 1)

    with pytest.raises(ModelError, match="logits"):
        measure_tiling(tmp_path / "net.onnx", 1, threads=1)
