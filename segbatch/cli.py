"""The command line: parse, one call, an exit code."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from segbatch import __version__
from segbatch.errors import SegbatchError, StorageError, UsageError

HELP = {"help_option_names": ["-h", "--help"]}


class Program(click.Group):
    """The command group; reports our errors as got, wanted, remedy, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a known error becomes a message and its exit code."""
        try:
            return super().invoke(ctx)
        except SegbatchError as error:
            self._report(ctx, error)
        except KeyboardInterrupt:
            ctx.exit(130)
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise  # click ends quietly when a reader such as head went away
            file = f" {error.filename}" if error.filename else ""
            told = StorageError(
                f"{error.strerror or error}:{file}", "files that answer", "segbatch doctor FOLDER"
            )
            self._report(ctx, told)

    @staticmethod
    def _report(ctx: click.Context, error: SegbatchError) -> NoReturn:
        from segbatch import log

        if ctx.params.get("debug"):
            traceback.print_exc()
        log.report_error(error)
        if "--json" in sys.argv[1:]:
            click.echo(json.dumps({"runs": [], "error": error.as_dict()}, indent=2))
        ctx.exit(error.exit_code)


@click.group(cls=Program, context_settings=HELP)
@click.version_option(__version__, message="%(version)s")
@click.option("--verbose", "-v", is_flag=True, help="Log debug lines too.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(verbose: bool, debug: bool) -> None:
    """Turn a microscope's frames into masks and verdicts, unattended.

    \b
    Example:
      segbatch process /data/run42
    """
    from segbatch import log

    log.configure(verbose=verbose)


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that stand for settings; names and checks are those of the settings."""
    options = [
        click.option("--config", type=click.Path(), help="Settings file (TOML)."),
        click.option("--model", help="A model's manifest or ONNX file  [shipped bead network]"),
        click.option("--engine", help="auto, openvino or onnxruntime."),
        click.option("--precision", help="auto, fp32 or bf16."),
        click.option("--tile-px", help="auto, or the edge of a tile in pixels."),
        click.option("--batch", help="auto, or tiles per inference request."),
        click.option("--profile", help="Camera: zelux (10 bit), 12bit, 14bit, 16bit."),
        click.option("--bit-depth", help="Bits of the camera's converter, where files say none."),
        click.option(
            "--set",
            "assignments",
            multiple=True,
            metavar="KEY=VALUE",
            help="Any other setting, e.g. quality.blur_z=6.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def load_settings(config: str | None, assignments: tuple[str, ...], **flags: Any) -> Any:
    """Merge flags, environment, file and defaults into settings."""
    from segbatch import settings

    for name, value in {"config": config, **flags}.items():
        if value == "" and name != "serve.listen":
            raise UsageError(
                f"--{name.replace('_', '-')} with nothing behind it",
                "a value",
                "leave the flag out for the default (is a variable of your shell unset?)",
            )
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment}", "KEY=VALUE", "as in --set quality.blur_z=6")
        flags[key.strip().replace("-", "_")] = value.strip()
    return settings.load(Path(config) if config else None, os.environ, flags)


@main.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@settings_options
@click.option("--out", help="Write results into this folder, mirroring the tree.")
@click.option("--redo", is_flag=True, default=None, help="Process every frame again.")
@click.option(
    "--save-probabilities", is_flag=True, default=None, help="Write probabilities too (_prob.tif)."
)
@click.option(
    "--save-labels", is_flag=True, default=None, help="Write numbered objects too (_labels.tif)."
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
@click.pass_context
def process(
    ctx: click.Context,
    /,
    paths: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Turn the frames in PATHs into masks and QC logs beside them.

    A PATH is a folder (searched downwards), a file or a glob. Running again
    finishes what is missing and redoes nothing.

    \b
    Example:
      segbatch process /data/run42
      segbatch process /data/run42 --out /results/run42 --save-labels
    """
    from segbatch.service.commands.process import process_command

    ctx.exit(process_command(paths, load_settings(**options), dry_run=dry_run, as_json=as_json))


@main.command()
@click.argument("folders", nargs=-1, metavar="[FOLDER]...")
@settings_options
@click.option(
    "--listen", "serve__listen", help="Address of the live page  [127.0.0.1:9417]; '' for none."
)
@click.pass_context
def serve(
    ctx: click.Context, /, folders: tuple[str, ...], serve__listen: str | None, **options: Any
) -> None:
    """Watch FOLDERs and those of the settings, and process frames as they arrive.

    Runs in the foreground until SIGTERM or Ctrl-C, as a systemd service does;
    SIGHUP reads the settings again. Every folder right below a FOLDER is a
    run of its own.

    \b
    Example:
      segbatch serve /data/incoming
      segbatch serve --config /etc/segbatch/segbatch.toml
    """
    from segbatch.service.commands.serve import serve_command

    def load() -> Any:
        return load_settings(**{**options, "serve.listen": serve__listen})

    ctx.exit(serve_command(folders, load))


@main.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@settings_options
@click.option("--json", "as_json", is_flag=True, help="Print the verdicts as JSON on stdout.")
@click.pass_context
def qc(ctx: click.Context, /, paths: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Judge the frames in PATHs and print the verdicts; nothing is written.

    \b
    Example:
      segbatch qc /data/run42
    """
    from segbatch.service.commands.qc import qc_command

    ctx.exit(qc_command(paths, load_settings(**options), as_json=as_json))


@main.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON on stdout.")
@click.pass_context
def doctor(ctx: click.Context, /, paths: tuple[str, ...], as_json: bool) -> None:
    """Look at what is installed and what engines and folders answer.

    Every finding that is not in order comes with its remedy. Exit code 1 when
    something that `process` needs is missing.

    \b
    Example:
      segbatch doctor /data/run42
    """
    from segbatch.service.commands.doctor import doctor_command

    ctx.exit(doctor_command(paths, as_json=as_json))


@main.command("install-service")
@click.option(
    "--config",
    type=click.Path(),
    help="Settings file of the service  [/etc/segbatch/segbatch.toml]",
)
@click.option(
    "--data",
    multiple=True,
    type=click.Path(),
    metavar="DIR",
    help="Folder it may write besides those the settings name; may be repeated.",
)
@click.option(
    "--gpu/--cpu", "gpu", default=None, help="Open NVIDIA devices to it  [where a driver is loaded]"
)
@click.option("--instance", metavar="NAME", help="Install segbatch@NAME, one service of several.")
@click.option(
    "--root", type=click.Path(), default="/", help="Write below this folder, for packages."
)
@click.option("--dry-run", is_flag=True, help="Say what would be written, and stop.")
def install_service(root: str, **options: Any) -> None:
    """Install `segbatch serve` as a systemd service (Linux, as root).

    Writes the unit, what it may reach (from the settings), and example settings
    where there are none. Run it again after an upgrade and after new folders.

    \b
    Example:
      segbatch install-service
      segbatch install-service --instance left --cpu
    """
    from segbatch.service.commands.install import install_service_command

    install_service_command(root=Path(root), **options)


@main.command()
@click.option("--url", metavar="URL", help="Address of the live page  [serve.listen]")
@click.option("--config", type=click.Path(), help="Settings file of the service (TOML).")
@click.option("--json", "as_json", is_flag=True, help="Print the status as JSON on stdout.")
@click.pass_context
def status(ctx: click.Context, /, url: str | None, config: str | None, as_json: bool) -> None:
    """Ask the running service how it is, and print the answer.

    The address is that in the settings. Exit code 1 when nothing answers.

    \b
    Example:
      segbatch status
      segbatch status --url http://127.0.0.1:9417 --json
    """
    from segbatch.service.commands.status import status_command

    ctx.exit(status_command(load_settings(config, ()), url=url, as_json=as_json))


@main.command()
@click.option("--config", type=click.Path(), help="Settings file (TOML).")
@click.option("--out", type=click.Path(), help="Folder of this run, new or empty.")
@click.option("--frames", "camera__frames", help="Frames to take; 0: until it is stopped.")
@click.option("--exposure-ms", "camera__exposure_ms", help="Exposure time.")
@click.option("--interval-ms", "camera__interval_ms", help="From one frame's start to the next's.")
@click.option("--gain-db", "camera__gain_db", help="Property Gain.")
@click.option("--binning", "camera__binning", help="Property Binning.")
@click.option("--trigger-mode", "camera__trigger_mode", help="Property TriggerMode.")
@click.option("--hot-pixel-threshold", "camera__hot_pixel_threshold", help="HotPixelThreshold.")
@click.option("--roi-px", metavar="X,Y,W,H", help="Part of the sensor  [all of it]")
@click.option(
    "--property",
    "properties",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any other property of the camera, by its exact name; may be repeated.",
)
@click.option("--format", "camera__format", help="ome-tiff or ndtiff.")
@click.option("--device", "camera__device", help="Camera, as LIBRARY/DEVICE.")
@click.option("--config-file", "camera__config_file", help="Micro-Manager's configuration (.cfg).")
@click.option("--backend", "camera__backend", help="auto, python or java.")
@click.option("--micro-manager-dir", "camera__micro_manager_dir", help="Device adapters' folder.")
@click.option("--timeout-s", "camera__timeout_s", help="Time that Micro-Manager may take.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any other setting.")
@click.option("--dry-run", is_flag=True, help="Say what would be set on the camera, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
@click.pass_context
def acquire(
    ctx: click.Context,
    /,
    config: str | None,
    assignments: tuple[str, ...],
    out: str | None,
    roi_px: str | None,
    properties: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Take one run with the camera, through Micro-Manager, without a window.

    Raw frames go to the disk, with segbatch_camera.json beside them; `process`
    or `serve` turns them into masks. Ctrl-C ends the run and keeps its frames.

    \b
    Example:
      segbatch acquire --device TSI/TSICam --frames 500 --exposure-ms 10 --out /data/run42
      segbatch acquire --config /etc/segbatch/segbatch.toml --dry-run
    """
    from segbatch.service.commands.acquire import acquire_command, roi

    flags = {name.replace("__", "."): value for name, value in options.items()}
    settings = load_settings(config, assignments, **flags, **{"camera.roi_px": roi(roi_px)})
    ctx.exit(acquire_command(settings, out, properties, dry_run=dry_run, as_json=as_json))


@main.command()
def schema() -> None:
    """Print the JSON Schema of a QC record (segbatch.qc/1).

    \b
    Example:
      segbatch schema > qc.schema.json
    """
    from segbatch.service.record.schema import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


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
