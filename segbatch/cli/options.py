"""Options that stand for settings, and the settings that they come to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from segbatch.errors import UsageError


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that stand for settings; names and checks are those of the settings."""
    options = [
        click.option("--config", type=click.Path(), help="Settings file (TOML)."),
        click.option(
            "--model",
            help="A manifest, ONNX, TorchScript, .pt, .pt2, bioimage.io  [shipped bead network]",
        ),
        click.option("--arch", help="Of a model that is weights alone, e.g. smp-unet-resnet34."),
        click.option("--engine", help="auto, tensorrt, openvino or onnxruntime."),
        click.option("--precision", help="auto, fp32, fp16, bf16 or int8."),
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
