"""What ``segbatch train`` does and prints."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from segbatch.errors import UsageError
from segbatch.infer.engine.manifest import Manifest, ZScore
from segbatch.learn.checkpoint import load_checkpoint
from segbatch.learn.export.network import export
from segbatch.learn.fit import fit, split
from segbatch.learn.train import Recipe

SHOW_EVERY = 50
PARITY_FRAMES = 16


def train_command(
    data: Path,
    out: Path,
    *,
    test: Path | None,
    class_name: str,
    steps: int,
    seed: int,
    threads: int,
    bit_depth: int | None,
    as_json: bool,
) -> Manifest:
    """Train on ``data``, write the checkpoint ``out`` and the network that `process` runs.

    Raises
    ------
    UsageError
        ``out`` is not called ``NAME.pt``, or the data cannot be used.
    StorageError
        The files cannot be written.
    """
    if out.suffix != ".pt":
        raise UsageError(f"--out {out}", "a checkpoint, NAME.pt", f"--out {out.with_suffix('.pt')}")
    if steps < 1:
        raise UsageError(f"--steps {steps}", "at least 1", "the default is 3000")
    scaling = ZScore()
    with click.progressbar(length=steps, label="training", file=sys.stderr) as bar:

        def progress(step: int, loss: float) -> None:
            bar.update(1)
            if step % SHOW_EVERY == 0:
                bar.label = f"training, loss {loss:.3f}"

        fit(
            data,
            out,
            test=test,
            class_name=class_name,
            normalisation=scaling,
            recipe=Recipe(seed=seed, steps=steps, threads=threads),
            command=f"segbatch train {data} --out {out} --steps {steps} --seed {seed} "
            f"--threads {threads}",
            bit_depth=bit_depth,
            progress=progress,
        )
    net, card = load_checkpoint(out)
    _, unseen = split(data, test, scaling, seed, bit_depth)
    manifest_file = out.with_suffix(".json")
    manifest = export(net, card, manifest_file, unseen[:PARITY_FRAMES], threads)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
        return manifest
    tested = manifest.metrics["unseen"]
    click.echo(f"{len(unseen)} unseen frames: IoU {tested['iou']}, Dice {tested['dice']}")
    for parity in manifest.parity:
        verdict = "passed" if parity.passed else "failed"
        click.echo(
            f"{parity.engine} {parity.precision}: {parity.mask_agreement:.4%} of mask pixels as "
            f"torch's, {verdict}"
        )
    click.echo(f"checkpoint: {out}\nnetwork: {manifest_file}")
    click.echo(f"use it: segbatch process FOLDER --model {manifest_file}")
    return manifest
