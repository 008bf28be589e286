"""Commands on frames that are there: process, qc, doctor, schema."""

from __future__ import annotations

import json
from typing import Any

import click

from segbatch.cli.options import load_settings, settings_options
from segbatch.cli.program import main


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


@main.command()
def schema() -> None:
    """Print the JSON Schema of a QC record (segbatch.qc/1).

    \b
    Example:
      segbatch schema > qc.schema.json
    """
    from segbatch.service.record.schema import json_schema

    click.echo(json.dumps(json_schema(), indent=2))
