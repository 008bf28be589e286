"""Training material: folders of raw frames with true masks beside them, read as files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from segbatch.acquire.source import open_source
from segbatch.errors import UsageError
from segbatch.frame import gray
from segbatch.infer.normalise import scale_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from segbatch.infer.engine.manifest import Normalisation

TRUTH_SUFFIX = "_truth"
_MAX_FILE_GIB = 4.0
# Three patches in four are centred near an object: most of a bead frame is background.
_FRACTION_ON_OBJECT = 0.75
_GAIN_SIGMA = 0.15
_OFFSET_SIGMA = 0.03


@dataclass(frozen=True, slots=True)
class Example:
    """One frame and its truth: (Y, X) counts, (Y, X) uint8 of 0 and 1, and the frame's scaling.

    The network sees ``(pixels - offset) * scale``, taken over the whole frame as
    ``segment`` does, never over a patch.
    """

    name: str
    pixels: NDArray[Any]
    truth: NDArray[np.uint8]
    offset: float
    scale: float

    def image(self) -> NDArray[np.float32]:
        """Return the normalised frame, (Y, X) float32."""
        return (self.pixels.astype(np.float32) - np.float32(self.offset)) * np.float32(self.scale)


def read_examples(
    folder: Path, normalisation: Normalisation, bit_depth: int | None = None
) -> list[Example]:
    """Read every ``NAME.tif`` of ``folder`` that has a ``NAME_truth.tif`` beside it, by name.

    Raises
    ------
    UsageError
        There is none, or a truth has another size than its frame.
    FrameError
        A file cannot be read.
    """
    examples = []
    for truth_file in sorted(folder.glob(f"*{TRUTH_SUFFIX}.tif")):
        raw_file = truth_file.with_name(truth_file.name.replace(TRUTH_SUFFIX, ""))
        if not raw_file.is_file():
            continue
        pixels, depth = _read(raw_file, bit_depth)
        truth, _ = _read(truth_file, 8)
        if truth.shape != pixels.shape:
            raise UsageError(
                f"{truth_file.name} has {truth.shape[0]} x {truth.shape[1]} px",
                f"the {pixels.shape[0]} x {pixels.shape[1]} px of {raw_file.name}",
                "make the true mask from this very frame",
            )
        offset, scale = scale_of(pixels, normalisation, depth)
        examples.append(Example(raw_file.name, pixels, (truth > 0).astype(np.uint8), offset, scale))
    if not examples:
        raise UsageError(
            f"no frame with a true mask in {folder}",
            "NAME.tif and NAME_truth.tif",
            f"segbatch simulate {folder} --frames 200 --seed 1",
        )
    return examples


def _read(file: Path, bit_depth: int | None) -> tuple[NDArray[Any], int]:
    with open_source(
        file, bit_depth=bit_depth, profile="zelux", max_file_gib=_MAX_FILE_GIB
    ) as source:
        frame = source.read(0)
    return gray(frame.pixels), frame.bit_depth


def hold_out(
    examples: list[Example], fraction: float, rng: np.random.Generator
) -> tuple[list[Example], list[Example]]:
    """Split by frame into what is trained on and what is kept for testing (at least one)."""
    if len(examples) < 2:
        raise UsageError(f"{len(examples)} frame", "at least 2: to learn from and to test on")
    order = rng.permutation(len(examples))
    held = max(1, round(fraction * len(examples)))
    return [examples[i] for i in order[held:]], [examples[i] for i in order[:held]]


class Patches:
    """Endless random patches of ``examples``, turned, mirrored and varied in light.

    Each patch is one of the eight symmetries of the square; its intensities are
    multiplied by a log-normal factor and shifted, as an imperfect normalisation would.
    """

    def __init__(self, examples: list[Example], side_px: int, rng: np.random.Generator) -> None:
        smallest = min(min(example.pixels.shape) for example in examples)
        if smallest < side_px:
            raise UsageError(
                f"a frame of {smallest} px",
                f"at least the patch's {side_px} px",
                "use a smaller patch",
            )
        self.examples = examples
        self.side_px = side_px
        self.rng = rng
        self.objects = [np.flatnonzero(example.truth) for example in examples]

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Return images and truths, each float32 (``size``, 1, side_px, side_px)."""
        side = self.side_px
        images = np.empty((size, 1, side, side), np.float32)
        truths = np.empty_like(images)
        for i in range(size):
            image, truth = self._patch()
            turns, mirror = int(self.rng.integers(4)), bool(self.rng.integers(2))
            for target, patch in ((images, image), (truths, truth)):
                turned = np.rot90(patch, turns)
                target[i, 0] = turned[:, ::-1] if mirror else turned
        return torch.from_numpy(images), torch.from_numpy(truths)

    def _patch(self) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        rng, side = self.rng, self.side_px
        which = int(rng.integers(len(self.examples)))
        example, objects = self.examples[which], self.objects[which]
        height, width = example.truth.shape
        if objects.size and rng.random() < _FRACTION_ON_OBJECT:
            y, x = divmod(int(objects[rng.integers(objects.size)]), width)
            y, x = y - int(rng.integers(side)), x - int(rng.integers(side))
        else:
            y, x = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        y, x = min(max(y, 0), height - side), min(max(x, 0), width - side)
        window = (slice(y, y + side), slice(x, x + side))
        image = (example.pixels[window].astype(np.float32) - example.offset) * example.scale
        image *= rng.lognormal(0, _GAIN_SIGMA)
        image += rng.normal(0, _OFFSET_SIGMA)
        return image, example.truth[window]
