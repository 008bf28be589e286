"""What a network takes and gives, found by running it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from segbatch.errors import ModelError
from segbatch.infer.engine.network.halo import STRENGTHS, STRIDES
from segbatch.infer.tiles import up

if TYPE_CHECKING:
    from collections.abc import Callable

    from segbatch.learn.intake.facts import Run

    # The output's shape for an input of (C, Y, X), None where that is refused.
    Shapes = Callable[[int, int, int], tuple[int, ...] | None]

CHANNELS = (1, 3)
# Those that a refusal tries, to name them.
OTHER_CHANNELS = (2, 4, 5, 6, 7, 8)
SIDES = (64, 128, 256, 512)
# Sides up to which a network that shrinks its input is tried for one that it takes, px.
LARGEST_FIRST_PX = 640
# By which probabilities may lie outside 0 and 1.
ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Sizes:
    """Which sides a network takes: ``residue`` plus multiples of ``stride``, px.

    Its answer is ``shrink`` px smaller than its input: 0 for same-padded networks.
    ``first`` is a side that was taken.
    """

    stride: int
    residue: int
    shrink: int
    first: int
    outputs: int

    @property
    def before(self) -> int:
        """Pixels to mirror out before the frame, so that answers lie on their pixels."""
        return self.shrink // 2

    @property
    def surplus(self) -> int:
        """Pixels of the answer beyond the frame, where multiples of the stride are taken."""
        return (self.residue - self.shrink) % self.stride

    @property
    def after(self) -> int:
        """Pixels to mirror out after the frame."""
        return self.shrink + self.surplus - self.before


def find_sizes(shapes: Shapes, channels: int | None, told: str) -> tuple[int, Sizes]:
    """Return input channels and sizes, by trying.

    Parameters
    ----------
    shapes
        Runs the network on zeros.
    channels
        Where it is known.
    told
        The source's name, for errors.

    Raises
    ------
    ModelError
        No size is taken, or the answer's size does not follow the input's.
    """
    tried = CHANNELS if channels is None else (channels,)
    for count in tried:
        for stride in STRIDES:
            if (outputs := _same(shapes, count, stride)) is not None:
                return count, Sizes(stride, 0, 0, up(64, stride) + stride, outputs)
    for count in tried:
        if (found := _shrinking(shapes, count)) is not None:
            return count, found
    raise _refusal(shapes, tried, told)


def _refusal(shapes: Shapes, tried: tuple[int, ...], told: str) -> ModelError:
    """Say what a network does instead of answering frames of 1 or 3 channels."""
    for count in OTHER_CHANNELS if len(tried) > 1 else ():
        if any(_same(shapes, count, stride) is not None for stride in STRIDES):
            return channels_refused(count, told)
    wanted = " or ".join(map(str, tried))
    takes = f"(N, {wanted}, Y, X) in, and (N, K, Y, X) or a constant margin less out"
    for count, side in product(tried, SIDES):
        if (shape := shapes(count, side, side)) is not None:
            return ModelError(
                f"{told}: answers of shape {shape} for an image of {(1, count, side, side)}",
                f"{takes}, for every multiple of a stride",
                "export the network with its full-sized mask as output",
            )
    return ModelError(
        f"{told}: takes no image of {wanted} channels and {' or '.join(map(str, SIDES))} px a side",
        f"{takes}, for every multiple of a stride",
        "export it with free batch, Y and X axes",
    )


def channels_refused(channels: int, told: str) -> ModelError:
    """Return the refusal of a network of other than grey or colour images."""
    return ModelError(
        f"{told}: {channels} input channels",
        "1 (grey) or 3 (colour)",
        "use a network that was trained on grey or colour images",
    )


def _same(shapes: Shapes, channels: int, stride: int) -> int | None:
    """Return the number of outputs where multiples of ``stride`` keep their size."""
    sides = up(64, stride) + stride, up(96, stride) + 2 * stride
    found = set()
    for y, x in (sides, sides[::-1], (sides[1], sides[1])):
        shape = shapes(channels, y, x)
        if shape is None or len(shape) != 4 or shape[2:] != (y, x):
            return None
        found.add(shape[1])
    return found.pop() if len(found) == 1 else None


def _shrinking(shapes: Shapes, channels: int) -> Sizes | None:
    """Return what a network without padding takes: the first size, and from which on it repeats."""
    sides: dict[int, tuple[int, ...]] = {}
    first = None
    for side in range(1, LARGEST_FIRST_PX + max(STRIDES) + 1):
        if side > (LARGEST_FIRST_PX if first is None else first + max(STRIDES)):
            return None
        shape = shapes(channels, side, side)
        if shape is None or len(shape) != 4 or not 0 < shape[2] < side or shape[2] != shape[3]:
            continue
        sides[side] = shape
        if first is None:
            first = side
            continue
        stride = side - first
        if shape[2] - sides[first][2] != stride:
            continue
        further = shapes(channels, first + 2 * stride, first + 3 * stride)
        wanted = sides[first][2] + 2 * stride, sides[first][2] + 3 * stride
        if further is not None and further[2:] == wanted:
            shrink = first - sides[first][2]
            return Sizes(stride, first % stride, shrink, first, shape[1])
    return None


def strips(
    channels: int, y: int, x: int
) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """Return noise of weak and strong contrast around 0 and above, (1, C, Y, X)."""
    made = []
    for seed, strength in enumerate(STRENGTHS):
        noise = np.random.default_rng(seed).random((1, channels, y, x), np.float32)
        made.append(np.float32(strength) * (noise if seed == 0 else 2 * noise - 1))
    return made


def answers_probabilities(run: Run, channels: int, side: int, outputs: int) -> str:
    """Say whether a network answers ``decisions``, ``softmax``, ``sigmoid`` or ``none`` of these.

    ``decisions`` are zeros and ones only; probabilities stay within 0 and 1 for any input,
    and of exclusive classes they add up to one.
    """
    answers = [run(strip) for strip in strips(channels, side, side)]
    low, high = min(float(a.min()) for a in answers), max(float(a.max()) for a in answers)
    if low < -ROUNDING or high > 1 + ROUNDING:
        return "none"
    if max(float(np.ptp(a)) for a in answers) == 0:
        return "none"
    if all(np.isin(a, (0.0, 1.0)).all() for a in answers):
        return "decisions"
    adds_up = all(np.allclose(a.sum(axis=1), 1.0, atol=1e-4) for a in answers)
    return "softmax" if outputs > 1 and adds_up else "sigmoid"


def check_batches(run: Run, channels: int, side: int, told: str) -> None:
    """Raise ModelError unless each image of a batch is answered as it is alone."""
    images = np.random.default_rng(3).random((3, channels, side, side), np.float32)
    alone = np.concatenate([run(image[None]) for image in images])
    together = run(images)
    spread = float(alone.std()) + 1e-6
    if together.shape != alone.shape or float(np.abs(together - alone).max()) > 1e-3 * spread:
        raise ModelError(
            f"{told}: an image in a batch is answered differently than alone",
            "a network in evaluation mode, with a free batch axis",
            "call eval() before exporting it, and export it with a free batch axis",
        )


def same_answers(one: Run, other: Run, shapes: list[tuple[int, ...]], told: str) -> float:
    """Compare two forms of a network on noise; return the largest difference.

    Raises
    ------
    ModelError
        They differ by more than one part in a thousand of the answers' spread.
    """
    largest = 0.0
    for shape, strength in product(shapes, (1.0, 10.0)):
        noise = np.random.default_rng(5).random(shape, np.float32) * np.float32(strength)
        wanted, got = one(noise), other(noise)
        spread = float(wanted.std()) + 1e-3
        if not (np.isfinite(wanted).all() and np.isfinite(got).all()):
            raise ModelError(
                f"{told}: noise of shape {shape} is answered by NaN or infinity",
                "finite answers",
                "take an earlier checkpoint: its training had diverged",
            )
        if wanted.shape != got.shape:
            raise ModelError(
                f"{told}: its ONNX form answers {got.shape} for {shape}",
                f"{wanted.shape}, as the source answers",
                "export it as ONNX with the tool that made it",
            )
        found = float(np.abs(wanted - got).max())
        if found > 1e-3 * spread:
            raise ModelError(
                f"{told}: its ONNX form differs by {found:.2g} from the source",
                f"at most {1e-3 * spread:.2g}, a thousandth of the answers' spread",
                "export it as ONNX with the tool that made it",
            )
        largest = max(largest, found)
    return largest
