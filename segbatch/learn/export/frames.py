"""The frames on which an engine is compared with its network, as the network sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from segbatch.acquire.find import find_raw_files, is_frame_file
from segbatch.acquire.simulate.kinds import any_scene
from segbatch.acquire.simulate.scene import draw
from segbatch.acquire.source import open_source
from segbatch.errors import FrameError, UsageError
from segbatch.infer.engine.manifest import DatasetMax
from segbatch.infer.engine.network.models import SHIPPED
from segbatch.infer.normalise import fill, scale_of, seen_by
from segbatch.infer.tiles import Span, up

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from segbatch.infer.engine.made.artifact import Shape
    from segbatch.infer.engine.manifest import Manifest, Model

SENSOR_SHAPE = (1080, 1440)
# Frames beyond this are cut to it: parity is a matter of pixels, of which these are millions.
LARGEST_SIDE_PX = 2048
MOST_REAL, RANDOM = 8, 4
MOST_NAMED = 10  # frames that were left out
MOST_CALIBRATION, CALIBRATION_SIDE_PX = 8, 256
_SIMULATED_BITS = 10
_MAX_FILE_GIB = 4.0


@dataclass(frozen=True, slots=True)
class Picture:
    """Counts that become network input, in the engine's own type, as the service makes it.

    Attributes
    ----------
    pixels
        (Y, X) or (Y, X, 3), counts as ``seen_by`` the network.
    offset, scale
        From ``scale_of`` the whole frame.
    shape
        (1, C, Y, X) of the input; what of it lies past the counts is mirrored.
    """

    pixels: NDArray[Any]
    offset: float
    scale: float
    shape: Shape

    @classmethod
    def of(cls, values: NDArray[np.float32]) -> Picture:
        """Return the picture whose input is ``values``, (1, C, Y, X)."""
        planes = values[0]
        pixels = planes[0] if len(planes) == 1 else np.moveaxis(planes, 0, 2)
        return cls(pixels, 0.0, 1.0, values.shape)

    def fill(self, out: NDArray[Any], tiles: Sequence[tuple[Span, Span]] = ()) -> None:
        """Write into ``out``, float32 or float16 (N, C, Y, X), tiles of the input, or all of it.

        Places beyond the tiles are left as they are; all of the input goes into every place.
        """
        y, x = (Span(0, side, 0, side) for side in self.shape[2:])
        for place, (rows, columns) in zip(out, tiles or [(y, x)] * len(out), strict=False):
            fill(self.pixels, rows, columns, self.offset, self.scale, place)

    def values(self) -> NDArray[np.float32]:
        """Return the input in single precision."""
        out = np.empty(self.shape, np.float32)
        self.fill(out)
        return out


@dataclass(frozen=True, slots=True)
class Frames:
    """Network inputs of one shape, and what they are."""

    name: str
    inputs: list[Picture]
    noise: bool = False


@dataclass(frozen=True, slots=True)
class Material:
    """All that the gate looks at.

    ``frame_shape`` is (Y, X) before mirroring out to the stride. ``whole_shape`` is (Y, X) of the
    frames as they come where these were cut, else None.
    ``calibration`` are patches of other frames than ``sets`` where there are enough.
    ``remarks`` say what a reader has to know of them.
    """

    frame_shape: tuple[int, int]
    sets: list[Frames]
    calibration: list[NDArray[np.float32]]
    source: str = ""
    remarks: list[str] = field(default_factory=list)
    whole_shape: tuple[int, int] | None = None


def is_shipped(model: Model) -> bool:
    """Tell whether a model is the shipped one, for which frames can be simulated."""
    return SHIPPED.with_suffix(".onnx").read_bytes() == model.file.read_bytes()


def gather(model: Model, path: Path | None, frame_shape: tuple[int, int] | None) -> Material:
    """Read the frames that ``path`` names, or simulate them for the shipped model, and add noise.

    Raises
    ------
    UsageError
        ``path`` holds no frames, or none that can be read and suits the model's normalisation.
    """
    manifest = model.manifest
    remarks: list[str] = []
    real: list[tuple[NDArray[Any], int]] = []
    if path is not None:
        real = _read(path, manifest, remarks)
        name = f"of {path.name}"
    elif is_shipped(model):
        real = list(_simulated(frame_shape or SENSOR_SHAPE))
        name = "simulated"
    else:
        remarks.append("no frames were given: compared on random ones alone, see --frames")
    shape = frame_shape or (real[0][0].shape[:2] if real else SENSOR_SHAPE)
    rows, columns = (min(side, LARGEST_SIDE_PX) for side in shape)
    if frame_shape is None and (rows, columns) != shape:
        remarks.append(f"frames of {shape[0]} x {shape[1]} px are cut to {rows} x {columns}")
    noise = list(_random(manifest, (rows, columns)))
    # Frames that calibrate are not the frames that judge, where there are two and more.
    judging, calibrating = (real[::2], real[1::2]) if len(real) > 1 else (real, real or noise)
    sets = [
        Frames(f"{len(judging)} {name}", [_picture(model, *f, (rows, columns)) for f in judging])
        for _ in range(bool(judging))
    ]
    sets.append(
        Frames(f"{RANDOM} random", [_picture(model, *f, (rows, columns)) for f in noise], True)
    )
    patches = [patch for f in calibrating for patch in _patches(model, *f)]
    picked = np.linspace(0, len(patches) - 1, min(len(patches), MOST_CALIBRATION)).astype(int)
    return Material(
        (rows, columns),
        sets,
        [patches[i] for i in picked],
        str(path.resolve()) if path is not None else "",
        remarks,
        None if (rows, columns) == shape else (shape[0], shape[1]),
    )


def _read(path: Path, manifest: Manifest, remarks: list[str]) -> list[tuple[NDArray[Any], int]]:
    """Return pixels and bit depths of frames spread evenly over the files.

    A frame that cannot be read, or that the network cannot be shown, is named in ``remarks``, and
    another is taken in its place.
    """
    raws = [path] if is_frame_file(path) else find_raw_files(path) if path.is_dir() else []
    if not raws:
        raise UsageError(f"no frames in {path}", "a folder of frames, or one file", "see --frames")
    wanted = min(len(raws), 2 * MOST_REAL)
    found: dict[int, list[tuple[NDArray[Any], int]]] = {}
    bad: list[tuple[str, FrameError]] = []
    for i in _spread(len(raws), wanted):
        if frames := _frames_of(raws[i], manifest, max(1, 2 * MOST_REAL // len(raws)), bad):
            found[i] = frames
        if len(found) == wanted:
            break
    told = [f"{name} was left out: {error.got}" for name, error in bad]
    if len(told) > MOST_NAMED:
        told[MOST_NAMED:] = [f"{len(told) - MOST_NAMED} more were left out"]
    if not found:
        raise UsageError(
            f"no frame in {path} can be used: {'; '.join(told)}",
            bad[0][1].wanted or "frames that the network can be shown",
            "name other frames with --frames; segbatch qc PATH says what each of them is",
        )
    remarks += told
    return [frame for i in sorted(found) for frame in found[i]]


def _frames_of(
    raw: Path, manifest: Manifest, most: int, bad: list[tuple[str, FrameError]]
) -> list[tuple[NDArray[Any], int]]:
    """Return frames of one file, spread evenly; put those that are of no use into ``bad``."""
    try:
        source = open_source(raw, bit_depth=None, profile="zelux", max_file_gib=_MAX_FILE_GIB)
    except FrameError as error:
        bad.append((raw.name, error))
        return []
    found: dict[int, tuple[NDArray[Any], int]] = {}
    try:
        wanted = min(source.frame_count, most)
        for page in _spread(source.frame_count, wanted):
            try:
                frame = source.read(page)
                seen = seen_by(frame.pixels, manifest.input_channels)
                scale_of(seen, manifest.normalisation, frame.bit_depth)
            except FrameError as error:
                bad.append((f"{raw.name} frame {page}", error))
                continue
            found[page] = frame.pixels, frame.bit_depth
            if len(found) == wanted:
                break
    finally:
        source.close()
    return [found[page] for page in sorted(found)]


def _spread(count: int, wanted: int) -> list[int]:
    """Return ``wanted`` of ``count`` numbers, spread evenly, and then the others."""
    first = np.unique(np.linspace(0, count - 1, wanted).astype(int)).tolist()
    return [*first, *sorted(set(range(count)) - set(first))]


def _simulated(shape: tuple[int, int]) -> Iterator[tuple[NDArray[Any], int]]:
    for seed in range(2 * MOST_REAL):
        rng = np.random.default_rng([20, seed])
        yield draw(any_scene(rng, *shape), rng)[0], _SIMULATED_BITS


def _random(manifest: Manifest, shape: tuple[int, int]) -> Iterator[tuple[NDArray[Any], int]]:
    """Yield white noise and coarse patches of light under it, over the range of the counts."""
    ceiling = 1023.0
    if isinstance(manifest.normalisation, DatasetMax):
        ceiling = min(manifest.normalisation.maximum, 65535.0)
    for seed in range(RANDOM):
        rng = np.random.default_rng([21, seed])
        size = shape if manifest.input_channels == 1 else (*shape, manifest.input_channels)
        counts = rng.random(size, np.float32)
        if seed % 2:
            coarse = rng.random((-(-shape[0] // 32), -(-shape[1] // 32)), np.float32) ** 8
            light = np.kron(coarse, np.ones((32, 32), np.float32))[: shape[0], : shape[1]]
            light = light if len(size) == 2 else light[..., None]
            counts = 0.8 * light + 0.2 * counts
        yield (counts * ceiling).astype(np.uint16), _SIMULATED_BITS


def _picture(model: Model, pixels: NDArray[Any], bit_depth: int, shape: tuple[int, int]) -> Picture:
    """Return the middle of a frame as network input, mirrored out to whole strides."""
    manifest = model.manifest
    pixels = seen_by(pixels, manifest.input_channels)
    scale = scale_of(pixels, manifest.normalisation, bit_depth)
    stride = manifest.stride or 1
    starts = [max(0, (have - want) // 2) for have, want in zip(pixels.shape, shape, strict=False)]
    rows, columns = (up(want + manifest.margin_px, stride) for want in shape)
    # A copy: the rest of a frame of many megapixels need not be held.
    part = pixels[starts[0] : starts[0] + rows, starts[1] : starts[1] + columns].copy()
    return Picture(part, *scale, (1, manifest.input_channels, rows, columns))


def _patches(model: Model, pixels: NDArray[Any], bit_depth: int) -> Iterator[NDArray[np.float32]]:
    """Yield the brightest and the darkest square of a frame, as network input.

    All of one shape, which calibration asks for: a smaller frame is mirrored out to it.
    """
    side = up(CALIBRATION_SIDE_PX + model.manifest.margin_px, model.manifest.stride or 1)
    height, width = (max(CALIBRATION_SIDE_PX, length) for length in pixels.shape[:2])
    whole = _picture(model, pixels, bit_depth, (height, width)).values()
    rows, columns = (max(1, n // side) for n in whole.shape[2:])
    squares = [
        whole[:, :, y * side : (y + 1) * side, x * side : (x + 1) * side]
        for y in range(rows)
        for x in range(columns)
    ]
    squares.sort(key=lambda square: float(square.std()))
    yield squares[-1]
    if len(squares) > 1:
        yield squares[0]
