"""Training a segmentation network, the same way every time from a seed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from segbatch.learn.data import Example, Patches
from segbatch.learn.metrics import Counts, count
from segbatch.learn.nets import Architecture, UNet, build

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a network is trained.

    ``steps`` batches of ``batch`` patches of ``patch_px`` square; AdamW with a
    learning rate that rises to ``learning_rate`` over the first tenth and falls
    along a cosine to nothing; ``threads`` because sums depend on it.
    """

    seed: int = 1
    steps: int = 3000
    batch: int = 24
    patch_px: int = 96
    learning_rate: float = 4e-3
    weight_decay: float = 1e-4
    threads: int = 2


def train(
    examples: list[Example],
    architecture: Architecture,
    recipe: Recipe,
    progress: Callable[[int, float], None] | None = None,
) -> UNet:
    """Train a network with one class on ``examples``.

    The result follows from the arguments: the same bits on the same processor
    type and version of torch.

    Parameters
    ----------
    progress
        Called after each step with the number of steps done and the loss.

    Returns
    -------
    UNet
        In evaluation mode.
    """
    torch.set_num_threads(recipe.threads)
    torch.use_deterministic_algorithms(True)
    net = build(architecture, recipe.seed)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    patches = Patches(examples, recipe.patch_px, np.random.default_rng([recipe.seed, 1]))
    optimiser = torch.optim.AdamW(
        net.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, recipe.steps))
    net.train()
    for step in range(1, recipe.steps + 1):
        images, truths = patches.batch(recipe.batch)
        logits = net(images.to(memory_format=torch.channels_last))
        loss = dice_bce(logits, truths)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress(step, float(loss.detach()))
    net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return net.eval()


def _rate(step: int, steps: int) -> float:
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(1, steps - rise))


def dice_bce(logits: Tensor, truths: Tensor) -> Tensor:
    """Binary cross-entropy plus one minus the soft Dice overlap, both (N, 1, Y, X).

    The overlap is taken over the whole batch (Milletari et al., 3DV 2016, with
    plain instead of squared sums), since a patch without objects has none.
    """
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, truths)
    probability = torch.sigmoid(logits)
    overlap = (2 * (probability * truths).sum() + 1) / (probability.sum() + truths.sum() + 1)
    return entropy + 1 - overlap


def predict(net: UNet, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the probability (Y, X) float32 of each pixel of a normalised (Y, X) frame.

    The frame is mirrored out to a multiple of the stride at its right and bottom edge.
    """
    stride = net.architecture.stride
    height, width = image.shape
    padded = np.pad(image, ((0, -height % stride), (0, -width % stride)), mode="reflect")
    with torch.inference_mode():
        logits = net(torch.from_numpy(padded)[None, None])
        probability: Any = torch.sigmoid(logits)[0, 0, :height, :width].numpy()
    return probability  # type: ignore[no-any-return]


def evaluate(net: UNet, examples: list[Example], threshold: float = 0.5) -> list[Counts]:
    """Count pixels of each example's whole-frame mask against its truth."""
    return [count(predict(net, e.image()) >= threshold, e.truth) for e in examples]
