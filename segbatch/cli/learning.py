"""Commands that make frames and networks: simulate, train."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click

from segbatch.cli.program import main
from segbatch.errors import UsageError


@main.command()
@click.argument("folder", type=click.Path())
@click.option(
    "--frames", type=click.IntRange(1), default=60, show_default=True, help="How many frames."
)
@click.option(
    "--seed", type=click.IntRange(0), default=1, show_default=True, help="Same seed, same frames."
)
@click.option("--varied", is_flag=True, help="Every frame another scene, for training.")
@click.option(
    "--height-px",
    type=click.IntRange(16, 20000),
    default=1080,
    show_default=True,
    help="Rows of a frame.",
)
@click.option(
    "--width-px",
    type=click.IntRange(16, 20000),
    default=1440,
    show_default=True,
    help="Columns of a frame.",
)
def simulate(
    folder: str, frames: int, seed: int, varied: bool, height_px: int, width_px: int
) -> None:
    """Write a run as a Zelux camera would take it of fluorescent beads, with true masks.

    Most frames are good; the others are empty, noisy, over- and underexposed,
    blurred, duplicated or torn, as simulated.json in the folder says.

    \b
    Example:
      segbatch simulate demo/run --frames 60 --seed 1
    """
    from segbatch.acquire.simulate import write_run, write_varied

    write = write_varied if varied else write_run
    kinds = write(Path(folder), frames, seed, height_px=height_px, width_px=width_px)
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    click.echo(f"{frames} frames in {folder}: {told}")


@main.command()
@click.argument("data", type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="Checkpoint to write, NAME.pt.")
@click.option("--test", type=click.Path(), help="Frames to test on  [15 % of DATA, held out]")
@click.option("--class-name", default="bead", show_default=True, help="What the masks show.")
@click.option("--steps", default=3000, show_default=True, help="Batches to learn from.")
@click.option("--seed", default=1, show_default=True, help="Same seed, same network.")
@click.option("--threads", default=2, show_default=True, help="Processor threads.")
@click.option("--bit-depth", type=int, help="Bits of the converter, where files say none.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON on stdout.")
def train(
    data: str,
    out: str,
    test: str | None,
    class_name: str,
    steps: int,
    seed: int,
    threads: int,
    bit_depth: int | None,
    as_json: bool,
) -> None:
    """Train a network on the frames in DATA that have a true mask beside them.

    A frame is NAME.tif, its true mask NAME_truth.tif. Writes the checkpoint
    and, for `process --model`, NAME.onnx with its manifest NAME.json. Needs
    the learn extra.

    \b
    Example:
      segbatch simulate frames --frames 200 --varied
      segbatch train frames --out beads.pt
      segbatch process /data/run42 --model beads.json
    """
    if importlib.util.find_spec("torch") is None:
        raise UsageError(
            "torch is not installed", "the learn extra", "pip install 'segbatch[learn]'"
        )
    from segbatch.learn.command import train_command

    train_command(
        Path(data),
        Path(out),
        test=Path(test) if test else None,
        class_name=class_name,
        steps=steps,
        seed=seed,
        threads=threads,
        bit_depth=bit_depth,
        as_json=as_json,
    )
