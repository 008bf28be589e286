"""Commands of the service: serve, status, install-service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from segbatch.cli.options import load_settings, settings_options
from segbatch.cli.program import main


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
