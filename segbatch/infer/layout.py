"""How a frame is run: its tiles, and how many streams share the processor's threads.

Streams of one thread each use a processor best (nothing waits for the slowest
thread of a layer) but each holds a tile's activations; few streams with large
tiles waste fewer pixels on halos. The layout with the least work wins.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segbatch.errors import EngineError, SettingsError
from segbatch.infer.tiles import Axis, Grid, axis, forced, plan, up
from segbatch.log import get_logger

if TYPE_CHECKING:
    from segbatch.infer.engine.door import Engine, Opened
    from segbatch.infer.engine.made.artifact import Shape
    from segbatch.settings import Settings

log = get_logger(__name__)
# Throughput of a stream of n threads, over n streams of one thread, falls as
# n**-0.28 (docs/decisions/0012-streams.md).
THREADS_LOSS = 0.28


@dataclass(frozen=True, slots=True)
class Layout:
    """Tiles of a frame, tiles per request, and requests that run side by side."""

    grid: Grid
    batch: int
    streams: int


def layout_for(
    shape: tuple[int, int],
    stride: int,
    halo: int,
    opened: Opened,
    settings: Settings,
    margin_px: int = 0,
) -> Layout:
    """Choose tiles, batch and streams for frames of one shape.

    Parameters
    ----------
    shape
        (Y, X), pixels.
    stride
        Of the network.
    halo
        By how many pixels tiles overlap on each side (``Manifest.tile_halo_px``).
    opened
        The engine, with its measured need of memory and the limit.
    settings
        ``tile_px`` and ``batch`` are used; where the engine takes one input shape and they would
        come to another, a warning says that they are not.
    margin_px
        Of the network, see ``Manifest``.

    Raises
    ------
    EngineError
        Not even the smallest tile fits into the memory allowed, or the engine
        takes tiles of one size that is too small for the halo.
    SettingsError
        ``tile_px`` leaves nothing between its halos, or ``tile_px`` and
        ``batch`` want more memory than is allowed.
    """
    if opened.engine.input_shape is not None:
        found = _of_engine(shape, stride, halo, opened.engine.input_shape, margin_px)
        _tell_of_ignored(shape, stride, halo, opened.engine, settings, margin_px, found)
        return found
    batch = 1 if settings.batch == "auto" else settings.batch
    best: tuple[float, Layout] | None = None
    for streams in range(1, opened.threads + 1):
        if opened.threads % streams:
            continue
        area = int(opened.memory_bytes / (opened.bytes_per_px * streams * batch))
        grid: Grid | None
        if settings.tile_px == "auto":
            grid = plan(shape, stride, halo, area, margin_px)
        else:
            grid = forced(shape, stride, halo, settings.tile_px, margin_px)
            grid = grid if grid.y.tile * grid.x.tile <= area else None
        if grid is None:
            continue
        work = grid.pixels * (opened.threads / streams) ** THREADS_LOSS
        if best is None or work <= best[0]:
            best = work, Layout(grid, min(batch, grid.count), streams)
    if best is None:
        raise _too_little(shape, stride, halo, opened, settings, margin_px)
    return best[1]


def _too_little(
    shape: tuple[int, int],
    stride: int,
    halo: int,
    opened: Opened,
    settings: Settings,
    margin: int,
) -> EngineError | SettingsError:
    """Say how much memory tiles would take: of the settings' own size, or the smallest."""
    left = f"{opened.memory_bytes / (1 << 30):.2f} GiB left of memory_gib for tiles"
    batch = 1 if settings.batch == "auto" else settings.batch
    rows = columns = 2 * halo + stride
    if settings.tile_px != "auto":
        rows, columns = forced(shape, stride, halo, settings.tile_px, margin).tile_shape
    gib = rows * columns * batch * opened.bytes_per_px / (1 << 30)
    need = (
        f"{gib:.2f} GiB: {batch} of {rows} x {columns} px at {opened.bytes_per_px:.0f} bytes each"
    )
    if settings.tile_px == settings.batch == "auto":
        return EngineError(left, need, "raise memory_gib")
    return SettingsError(
        f"tile_px = {settings.tile_px}, batch = {settings.batch}: {need}",
        f"no more than the {left}",
        "lower tile_px or batch, or raise memory_gib",
    )


def _of_engine(
    shape: tuple[int, int], stride: int, halo: int, input_shape: Shape, margin: int
) -> Layout:
    """Lay tiles of the one size that an engine takes; a GPU has one stream, its own order."""
    grid = grid_of_engine(shape, stride, halo, input_shape, margin)
    if any(each.padded > up(each.length + margin, stride) for each in (grid.y, grid.x)):
        log.warning(
            "frames are smaller than the engine's input and are mirrored out to it: masks "
            "within the halo of that edge may differ from those of another engine",
            frame_shape=shape,
            input_shape=input_shape,
            remedy=f"segbatch export-engine MODEL --frame-shape {shape[0]}x{shape[1]}",
        )
    return Layout(grid, input_shape[0], 1)


def _tell_of_ignored(
    shape: tuple[int, int],
    stride: int,
    halo: int,
    engine: Engine,
    settings: Settings,
    margin: int,
    found: Layout,
) -> None:
    """Warn of ``tile_px`` and ``batch`` that would come to another layout than the engine has."""
    said, remedies = [], []
    if settings.tile_px != "auto":
        side = settings.tile_px // stride * stride
        try:
            wished = forced(shape, stride, halo, settings.tile_px, margin).tile_shape
        except SettingsError:
            wished = None
        if wished != found.grid.tile_shape:
            said.append(f"tile_px = {settings.tile_px}")
            words = [*([settings.model] if settings.model else []), "--engine", engine.name]
            words += ["--arch", settings.arch] if settings.arch else []
            words += ["--precision", engine.precision]
            words += ["--frame-shape", "x".join(str(min(each, side - margin)) for each in shape)]
            made = shlex.join(["segbatch", "export-engine", *words])
            remedies.append("leave tile_px out" + (f", or {made}" if wished else ""))
    if settings.batch != "auto" and min(settings.batch, found.grid.count) != min(
        found.batch, found.grid.count
    ):
        said.append(f"batch = {settings.batch}")
        remedies.append("leave batch out: an engine's is planned when it is exported")
    if said:
        log.warning(
            "settings that do not change an engine of one input shape are left out",
            got=", ".join(said),
            has=f"{engine.name} {engine.precision} for input {engine.input_shape}",
            remedy="; ".join(remedies),
            frame_shape=shape,
        )


def grid_of_engine(
    shape: tuple[int, int], stride: int, halo: int, input_shape: Shape, margin: int = 0
) -> Grid:
    """Return the tiles of the one size that an engine takes.

    A frame that is smaller is mirrored out to one tile.

    Parameters
    ----------
    shape
        (Y, X) of the frame, pixels.
    stride, halo, margin
        As in ``tiles.axis``.
    input_shape
        The engine's.

    Raises
    ------
    EngineError
        The engine is too small for the halo.
    """
    axes = []
    for length, side in zip(shape, input_shape[2:], strict=True):
        try:
            found = axis(length, stride, halo, side, margin)
        except SettingsError as error:
            raise EngineError(
                f"frames of {shape[0]} x {shape[1]} px, and an engine for "
                f"{input_shape[2]} x {input_shape[3]}",
                f"an engine for at least {2 * halo + stride} px a side, or for the whole frame",
                f"segbatch export-engine MODEL --frame-shape {shape[0]}x{shape[1]}",
            ) from error
        axes.append(Axis(length, side, side, found.halo, 1) if found.tile < side else found)
    return Grid(axes[0], axes[1])


def shape_for_engine(
    shape: tuple[int, int], stride: int, halo: int, input_shape: Shape, margin: int = 0
) -> tuple[int, int]:
    """Return the shape next to ``shape`` of frames that an engine of one input shape is for.

    That is ``shape``, unless the engine is larger and such a frame would be mirrored out to it,
    or too small to cut it into tiles: then the side of its own input. Parameters are those of
    ``grid_of_engine``.
    """
    sides = []
    for length, side in zip(shape, input_shape[2:], strict=True):
        padded = up(length + margin, stride)
        fits = side == padded or up(halo, stride) * 2 + stride <= side < padded
        sides.append(length if fits else side - margin)
    return sides[0], sides[1]
