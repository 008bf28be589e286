"""How far a network looks: its stride and halo, found by disturbing its input.

One strip of noise goes through the network twice; the second time everything
beyond a border on a multiple of the stride is replaced by other noise. Outputs
on the near side that changed lie within the network's reach; how far the
farthest lies from the border is the halo that a tile cut there needs. Both runs
have one shape and so one order of additions: what was not reached is equal in
every bit, and no tolerance is needed. Disturbing everything beyond the border,
rather than one pixel, covers every phase of the pooling steps at once; strong
and weak noise of several draws keep rectifiers that happen to be shut from
hiding a path.

A network that answers everywhere to a change anywhere (instance
normalisation, global pooling) has no such halo. Whatever was found is at last
tried: a strip cut with its halo must give what the whole strip gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from segbatch.errors import EngineError, ModelError
from segbatch.infer.engine.cpu.onnxruntime_engine import OnnxRuntimeEngine
from segbatch.infer.tiles import up

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]

STRIDES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128)
REACHES_PX = (128, 256, 512, 1024)
STRENGTHS = (1.0, 1.0, 30.0, 1000.0, 1000.0)
# How far outputs may move, in parts of their spread, when the input is shifted by
# the stride: not at all (the greatest difference, but for the order of additions)
# or, where something looks at the whole frame, by what the moved edges do to it
# (the mean difference; a shift off the stride makes some tenths).
SHIFT_EXACT, SHIFT_ALIKE = 1e-4, 0.05


class Tiling(msgspec.Struct, frozen=True):
    """What tiles must respect; ``halo_px`` is None where no halo makes them exact."""

    stride: int
    halo_px: int | None

    @property
    def exact(self) -> bool:
        """Whether tiles can equal the whole frame."""
        return self.halo_px is not None


def measure_tiling(
    network: Path, channels: int, threads: int, stride: int | None = None, margin_px: int = 0
) -> Tiling:
    """Measure a network with the reference engine.

    Parameters
    ----------
    network
        ONNX file with free Y and X.
    channels
        Input channels.
    threads
        Processor threads to use.
    stride
        Where it is known, pixels.
    margin_px
        What the network mirrors inside (``Manifest.margin_px``): strips must be wider.

    Raises
    ------
    ModelError
        The network takes no frames of free size, or none of its answers
        repeats after any stride up to 128 px.
    """
    engine = OnnxRuntimeEngine(network, threads)
    try:
        axes = (engine.run, _turned(engine.run))
        wide = max(64, margin_px + 1)
        if stride is None:
            stride = _stride(axes, channels, wide, network)
        halos = [_halo(axis, channels, wide, stride) for axis in axes]
        halo = None if None in halos else max(found for found in halos if found is not None)
        if halo is not None:
            halo = max(halo, up(margin_px, stride))
            if not all(_confirmed(axis, channels, wide, stride, halo) for axis in axes):
                halo = None
    finally:
        engine.close()
    return Tiling(stride, halo)


def _turned(network: Network) -> Network:
    """Return the network with its axes exchanged: what is measured along X is then along Y."""

    def turned(strip: NDArray[np.float32]) -> NDArray[np.float32]:
        return network(np.ascontiguousarray(strip.swapaxes(2, 3))).swapaxes(2, 3)

    return turned


def _strip(channels: int, wide: int, long: int, seed: int) -> NDArray[np.float32]:
    """Return noise of the normalised range, (1, C, Y, X)."""
    rng = np.random.default_rng(seed)
    return rng.random((1, channels, wide, long), np.float32)


def _stride(axes: tuple[Network, Network], channels: int, wide: int, file: Path) -> int:
    """Return the smallest stride whose multiples are accepted and shift the answer with them."""
    refused = "no size was accepted"
    alike: list[int] = []
    for stride in STRIDES:
        try:
            moved = [_moved(network, channels, wide, stride) for network in axes]
        except EngineError as error:
            refused = str(error)
            continue
        refused = "no stride up to 128 px repeats the answer"
        if max(greatest for greatest, _ in moved) <= SHIFT_EXACT:
            return stride
        if max(mean for _, mean in moved) <= SHIFT_ALIKE:
            alike.append(stride)
    if alike:
        return alike[0]
    raise ModelError(
        f"network {file}: {refused}",
        "logits (N, K, Y, X) of the input's Y and X, for every multiple of a stride",
        "export it with free batch, Y and X axes, or state stride in its manifest",
    )


def _moved(network: Network, channels: int, wide: int, stride: int) -> tuple[float, float]:
    """Return how far outputs move, at most and on average, when the input is shifted by a stride.

    Measured in the middle of a strip that is shifted around its ends, in parts
    of the outputs' spread.
    """
    wide, long = up(wide, stride) + stride, up(768, stride) + stride
    strip = _strip(channels, wide, long, 1)
    answer = network(strip)
    if answer.shape[0] != 1 or answer.shape[2:] != strip.shape[2:]:
        raise EngineError(f"logits of shape {answer.shape} for input {strip.shape}")
    inner = slice(long // 2 - 64, long // 2 + 64)
    shifted = np.roll(network(np.roll(strip, stride, axis=3)), -stride, axis=3)
    moved = np.abs(shifted - answer)[..., inner] / (float(answer.std()) + 1e-6)
    return float(moved.max()), float(moved.mean())


def _halo(network: Network, channels: int, wide: int, stride: int) -> int | None:
    """Return the reach along X rounded up to the stride, None where it has no end."""
    for reach in REACHES_PX:
        half = up(reach, stride)
        found = max(
            _reach(network, channels, up(wide, stride), half, strength, seed)
            for seed, strength in enumerate(STRENGTHS)
        )
        # The farthest stride-wide cell must be untouched, else the reach may go on.
        if found <= half - stride:
            return up(found, stride)
    return None


def _reach(
    network: Network, channels: int, wide: int, half: int, strength: float, seed: int
) -> int:
    """Return how far from the border the farthest changed output lies, pixels."""
    calm = _strip(channels, wide, 2 * half, 10 + seed)
    noise = strength * (2.0 * _strip(channels, wide, 2 * half, 100 + seed) - 1.0)
    right, left = calm.copy(), calm.copy()
    right[..., half:] = noise[..., half:]
    left[..., :half] = noise[..., :half]
    whole, by_right, by_left = (network(strip) for strip in (calm, right, left))
    near = np.flatnonzero((by_right != whole).any(axis=(0, 1, 2))[:half])
    far = np.flatnonzero((by_left != whole).any(axis=(0, 1, 2))[half:])
    reaches = [0]
    if len(near):
        reaches.append(half - int(near[0]))
    if len(far):
        reaches.append(int(far[-1]) + 1)
    return max(reaches)


def _confirmed(network: Network, channels: int, wide: int, stride: int, halo: int) -> bool:
    """Return whether two tiles of different lengths, cut with the halo, equal their whole.

    A network may look no farther than its halo and still depend on its
    input's size, as upsampling with aligned corners does.
    """
    cut = 2 * halo + 3 * stride
    strip = _strip(channels, up(wide, stride), 2 * cut + 5 * stride, 7)
    whole = network(strip)
    left, right = network(strip[..., :cut]), network(strip[..., 2 * stride :])
    tolerance = SHIFT_EXACT * (float(whole.std()) + 1e-6)
    inner = slice(2 * stride + halo, None)
    return bool(
        np.abs(left - whole[..., :cut])[..., : cut - halo].max() <= tolerance
        and np.abs(right[..., halo:] - whole[..., inner]).max() <= tolerance
    )
