"""Commands on engines: export-engine, engine-info, selftest."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import click

from segbatch.cli.program import main
from segbatch.errors import UsageError

ENGINES = ("auto", "openvino", "onnxruntime", "tensorrt", "tensorrt_rtx")
PRECISIONS = ("auto", "fp32", "fp16", "bf16", "int8")


def _frame_shape(
    _context: click.Context, _option: click.Parameter, text: str | None
) -> tuple[int, int] | None:
    """Read ``YxX``."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or not all(16 <= int(side) <= 20000 for side in found.groups()):
        raise UsageError(
            f"--frame-shape {text}", "rows x columns in pixels, 16 to 20000", "as in 1080x1440"
        )
    return int(found[1]), int(found[2])


@main.command("export-engine")
@click.argument("model", default="", metavar="[MODEL]")
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="auto",
    show_default=True,
    help="auto: the fastest that passes the gate on this machine; tensorrt: either flavour.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="auto",
    show_default=True,
    help="auto: the fastest that passes the gate.",
)
@click.option(
    "--frames",
    type=click.Path(exists=True),
    help="Your own frames, to compare and calibrate on  [shipped model: simulated frames]",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0.0, 1.0, min_open=True),
    default=0.999,
    show_default=True,
    help="Fraction of pixels in which the masks have to agree.",
)
@click.option("--arch", help="Of a MODEL that is weights alone, e.g. smp-unet-resnet34.")
@click.option(
    "--out",
    type=click.Path(),
    help="Write model and engine into this folder  [where process looks]",
)
@click.option(
    "--frame-shape",
    callback=_frame_shape,
    metavar="YxX",
    help="Rows and columns of the frames to come  [those of --frames, else 1080x1440]",
)
@click.option("--force", is_flag=True, help="Write it though what is there already is better.")
@click.option(
    "--rebuild",
    type=click.Path(),
    metavar="MANIFEST",
    help="Make this engine again, in its place, for this machine.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be tried, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def export_engine(
    rebuild: str | None, dry_run: bool, as_json: bool, model: str, **options: Any
) -> None:
    """Make the fastest engine for MODEL that this machine can run, and prove it is the same.

    MODEL is anything that `process --model` takes; without it the shipped
    bead network. Every candidate is compared with the network on frames and
    on noise and timed beside it; what does not give the same masks is not
    written. Needs the learn extra.

    \b
    Example:
      segbatch export-engine
      segbatch export-engine beads.json --frames /data/run42
      segbatch export-engine beads.json --precision int8 --frames /data/run42
    """
    if importlib.util.find_spec("onnx") is None:
        raise UsageError(
            "onnx is not installed", "the learn extra", "pip install 'segbatch[learn]'"
        )
    try:
        _export(rebuild, dry_run=dry_run, as_json=as_json, **options, model=model)
    except (KeyboardInterrupt, SystemExit):
        click.echo("stopped: an engine is written whole or not at all", err=True)
        raise


def _export(rebuild: str | None, *, dry_run: bool, as_json: bool, **options: Any) -> None:
    from segbatch.learn.export.command import Wish, export_engine_command, rebuild_wish

    wish = Wish(**{key: value for key, value in options.items() if value is not None})
    if rebuild is not None:
        if wish != Wish(frames=wish.frames):
            raise UsageError(
                "--rebuild with other arguments",
                "the manifest alone, which says how the engine was made, or --frames beside it",
                f"segbatch export-engine --rebuild {rebuild}",
            )
        wish = rebuild_wish(Path(rebuild), wish.frames)
    export_engine_command(wish, dry_run=dry_run, as_json=as_json)


@main.command("engine-info")
@click.argument("file", type=click.Path(exists=True))
@click.option("--arch", default="", help="Of a FILE that is weights alone, as it was taken in.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON on stdout.")
def engine_info(file: str, arch: str, as_json: bool) -> None:
    """Print what is known of FILE: an engine, its manifest, or a model.

    Says whether the engine fits this machine and its model, and if not, why;
    of a model, which engines were made of it. A model is a manifest, or
    whatever else `process --model` has taken in before.

    \b
    Example:
      segbatch engine-info beads.openvino-int8.engine.json
      segbatch engine-info beads.json
      segbatch engine-info beads.pt
    """
    from segbatch.service.commands.engine_info import engine_info_command

    engine_info_command(Path(file), arch, as_json=as_json)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
@click.pass_context
def selftest(ctx: click.Context, /, as_json: bool) -> None:
    """Run one known frame through every engine of this machine and compare.

    Prints one table to paste in a report: how alike the masks are, frames/s,
    and why an engine is not offered. Exit code 3 where an engine fails.

    \b
    Example:
      segbatch selftest
    """
    from segbatch.service.commands.selftest import selftest_command

    ctx.exit(selftest_command(as_json=as_json))
