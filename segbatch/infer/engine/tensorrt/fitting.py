"""The tiles and the batch that an engine is built for: planned by memory, then found by trying."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from segbatch.infer.engine.made.artifact import Artifact, write_artifact
from segbatch.infer.engine.tensorrt.builder import build
from segbatch.infer.engine.tensorrt.device import DeviceMemoryError
from segbatch.infer.engine.tensorrt.driver import lately, why_unusable
from segbatch.infer.engine.tensorrt.runtime import TensorRtEngine
from segbatch.infer.tiles import plan, up
from segbatch.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from segbatch.infer.engine.made.artifact import Shape
    from segbatch.infer.engine.manifest import Manifest
    from segbatch.infer.engine.tensorrt.builder import Source
    from segbatch.infer.engine.tensorrt.flavour import Flavour
    from segbatch.infer.engine.tensorrt.progress import Progress

T = TypeVar("T")
# Of a GPU's memory, which a screen and other programs share; and of one that nobody can ask.
SHARE: Final = 0.6
ASSUMED_BYTES: Final = 8 << 30
# TensorRT for RTX 1.7.1 builds the usual U-Net for 8192 x 8192 px and fails on twice the side.
LARGEST_TILE_PX: Final = 8192 * 8192
# Pixels that smaller tiles may compute for each of the frame.
MOST_COMPUTED: Final = 2.0
log = get_logger(__name__)


def room_px(flavour: Flavour, bytes_per_px: float) -> int:
    """Return the pixels of input for which a GPU is thought to have memory, this machine's first.

    Parameters
    ----------
    bytes_per_px
        What the network needs; that it was too little shows when the engine is opened.
    """
    gpu = lately(flavour).gpu
    memory_bytes = ASSUMED_BYTES if gpu is None else gpu.memory_bytes * SHARE
    return int(memory_bytes / max(bytes_per_px, 1.0))


def planned_shape(manifest: Manifest, frame_shape: tuple[int, int], pixels: int) -> Shape:
    """Return the input (N, C, Y, X) that an engine for frames of one shape is built for.

    The whole frame as one tile where ``pixels`` allow it, or where the network has no finite
    halo; else the tiles that compute the fewest pixels (``tiles.plan``), and as many of them in
    a batch as ``pixels`` allow, no more than share a frame evenly. As such tiles are as large as
    they can be, that is one tile, but where memory allows for more than ``LARGEST_TILE_PX``.

    Parameters
    ----------
    manifest
        Of the network; its stride and halo were measured.
    frame_shape
        (Y, X), pixels.
    pixels
        Of all tiles of one input together.

    Raises
    ------
    DeviceMemoryError
        Not even the smallest tile has so few pixels.
    """
    stride, margin = manifest.stride or 1, manifest.margin_px
    rows, columns = (up(length + margin, stride) for length in frame_shape)
    if not manifest.exact_tiling:
        return 1, manifest.input_channels, rows, columns
    halo = manifest.tile_halo_px
    grid = plan(frame_shape, stride, halo, min(pixels, LARGEST_TILE_PX), margin)
    if grid is None:
        side = up(2 * halo + stride, stride)
        raise DeviceMemoryError(
            f"room for {pixels} px of input on the GPU",
            f"{side * side} px, the smallest tile of this network",
            "close what else uses the GPU (nvidia-smi), or use --engine openvino",
        )
    rows, columns = grid.tile_shape
    most = max(1, pixels // (rows * columns))
    requests = -(-grid.count // most)
    return -(-grid.count // requests), manifest.input_channels, rows, columns


def smaller_shape(manifest: Manifest, frame_shape: tuple[int, int], shape: Shape) -> Shape | None:
    """Return what to try where the GPU has no room for ``shape``; None where nothing is left.

    Half the batch; of a batch of one, the tiles for half its pixels, as long as those do not
    compute each pixel twice and more: a GPU that has no room for them is one to be cleared.
    """
    halved = half_the_batch(shape)
    if halved is not None or not manifest.exact_tiling:
        return halved
    stride, margin = manifest.stride or 1, manifest.margin_px
    halo = manifest.tile_halo_px
    grid = plan(frame_shape, stride, halo, shape[2] * shape[3] // 2, margin)
    if grid is None or grid.pixels >= MOST_COMPUTED * math.prod(frame_shape):
        return None
    return 1, shape[1], *grid.tile_shape


def build_largest(
    network: Path | bytes,
    input_shape: Shape,
    folder: Path,
    stem: str,
    *,
    source: Source,
    flavour: Flavour = "tensorrt_rtx",
    progress: Callable[[Progress], None] | None = None,
    try_out: Callable[[Artifact], object] | None = None,
    smaller: Callable[[Shape], Shape | None] | None = None,
) -> Artifact:
    """Build as ``build`` does, and again for a smaller input while the GPU has no room.

    Parameters
    ----------
    try_out
        Runs the engine that was built, raising ``DeviceMemoryError`` where it does not fit; by
        default it is opened on this machine's GPU, and where none can be used it is taken as it is.
    smaller
        Returns the input to try after one that did not fit, as ``smaller_shape`` does; by default
        half the batch.

    Returns
    -------
    Artifact
        Where it is not for ``input_shape``, ``options`` of its manifest holds the
        ``batch_wanted``, and the ``tile_wanted``, (Y, X), where that is another, too.

    Raises
    ------
    DeviceMemoryError
        Nothing that is tried fits.
    EngineError, ModelError, StorageError, UsageError
        As ``build``, and what ``try_out`` raises.
    """
    if try_out is None:
        try_out = _opened if why_unusable(flavour) is None else _taken_as_it_is

    def attempt(shape: Shape) -> Artifact:
        made = build(
            network, shape, folder, stem, source=source, flavour=flavour, progress=progress
        )
        try_out(made)
        return made

    artifact, shape = largest(input_shape, attempt, smaller or half_the_batch)
    if shape == input_shape:
        return artifact
    options = {**artifact.manifest.options, "batch_wanted": input_shape[0]}
    if shape[2:] != input_shape[2:]:
        options["tile_wanted"] = list(input_shape[2:])
    manifest = msgspec.structs.replace(artifact.manifest, options=options)
    write_artifact(manifest, artifact.manifest_file)
    return Artifact(manifest, artifact.manifest_file, artifact.file)


def _opened(artifact: Artifact) -> None:
    TensorRtEngine(artifact).close()


def _taken_as_it_is(_artifact: Artifact) -> None:
    """Find nothing out: there is no GPU to ask."""


def half_the_batch(shape: Shape) -> Shape | None:
    """Return ``shape`` with half its batch; None where that is one already."""
    batch, *image = shape
    return (batch // 2, image[0], image[1], image[2]) if batch > 1 else None


def largest(
    shape: Shape, attempt: Callable[[Shape], T], smaller: Callable[[Shape], Shape | None]
) -> tuple[T, Shape]:
    """Return what ``attempt`` makes of the largest input that fits, and that input's shape.

    Parameters
    ----------
    shape
        (N, C, Y, X) to try first.
    attempt
        Given a shape, builds and opens.
    smaller
        Given one that did not fit, returns the next; None where nothing is left.

    Raises
    ------
    DeviceMemoryError
        Nothing fits.
    """
    while True:
        try:
            return attempt(shape), shape
        except DeviceMemoryError as error:
            following = smaller(shape)
            if following is None:
                raise
            log.warning("no room on the GPU", shape=shape, now=following, why=error.got)
            shape = following
