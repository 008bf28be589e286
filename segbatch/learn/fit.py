"""From a folder of frames with true masks to a tested checkpoint."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from segbatch.infer.engine.manifest import Normalisation, ZScore
from segbatch.learn.checkpoint import Card, save_checkpoint
from segbatch.learn.data import Example, hold_out, read_examples
from segbatch.learn.metrics import summarise
from segbatch.learn.nets import BEADS, Architecture
from segbatch.learn.train import Recipe, evaluate, train

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HELD_OUT_FRACTION = 0.15


def split(
    data: Path, test: Path | None, scaling: Normalisation, seed: int, bit_depth: int | None
) -> tuple[list[Example], list[Example]]:
    """Return the frames to learn from and those to test on, the same ones for the same seed."""
    examples = read_examples(data, scaling, bit_depth)
    if test is not None:
        return examples, read_examples(test, scaling, bit_depth)
    return hold_out(examples, HELD_OUT_FRACTION, np.random.default_rng([seed, 0]))


def fit(
    data: Path,
    out: Path,
    *,
    test: Path | None = None,
    name: str = "",
    class_name: str = "bead",
    architecture: Architecture = BEADS,
    normalisation: Normalisation | None = None,
    recipe: Recipe | None = None,
    command: str = "",
    bit_depth: int | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Card:
    """Train on the frames of a folder, test on frames never trained on, write a checkpoint.

    Parameters
    ----------
    data
        Folder of ``NAME.tif`` with ``NAME_truth.tif``.
    out
        The checkpoint, ``NAME.pt``.
    test
        Another such folder to test on; without it 15 % of the frames of
        ``data`` are held out, by frame.
    name, class_name
        Of the model (the checkpoint's stem by default) and of what it finds.
    normalisation
        How counts become input; z-score by default.
    recipe
        How to train.
    command
        What was typed, for the record.
    bit_depth
        Of the converter, for files that do not say.
    progress
        Called after each step with the number of steps done and the loss.

    Raises
    ------
    UsageError, FrameError
        The data cannot be used.
    StorageError
        The checkpoint cannot be written.
    """
    recipe = recipe or Recipe()
    scaling: Normalisation = normalisation or ZScore()
    examples, unseen = split(data, test, scaling, recipe.seed, bit_depth)
    started = time.monotonic()
    net = train(examples, architecture, recipe, progress)
    card = Card(
        name=name or out.stem,
        classes=[class_name],
        architecture=architecture,
        normalisation=scaling,
        command=command,
        training={
            "frames": len(examples),
            "recipe": msgspec.to_builtins(recipe),
            "seconds": round(time.monotonic() - started),
        },
        metrics={"unseen": summarise(evaluate(net, unseen))},
    )
    save_checkpoint(out, net, card)
    return card
