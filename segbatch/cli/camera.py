"""The command that drives the camera: acquire."""

from __future__ import annotations

from typing import Any

import click

from segbatch.cli.options import load_settings
from segbatch.cli.program import main


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
