"""What ``segbatch process`` prints, and the exit code it ends with."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
import msgspec

from segbatch import log
from segbatch.errors import SegbatchError, UsageError
from segbatch.service.process import Process, RunReport
from segbatch.service.progress import Progress
from segbatch.service.selection import Selection, select
from segbatch.service.signals import stop_on_signals
from segbatch.settings import Settings

FAILED_SHOWN = 10


def process_command(
    paths: Sequence[str], settings: Settings, *, dry_run: bool, as_json: bool
) -> int:
    """Process ``paths``; return the exit code.

    0 every frame segmented or rejected; 1 some frames failed; 130 and 143
    stopped by a signal. Errors that end the run are raised with theirs.
    """
    reports: list[RunReport] = []
    worst: SegbatchError | None = None
    with stop_on_signals() as stopper, Progress() as progress:
        selections = select(paths)
        if settings.out and len(selections) > 1:
            raise UsageError(
                f"--out {settings.out} with {len(selections)} folders",
                "one folder, whose tree is mirrored there",
                "run segbatch process once for each folder, each with its own --out",
            )
        process = Process(settings, stopper.event, progress)
        try:
            if dry_run:
                return _preview(process, selections, as_json=as_json)
            for selection in selections:
                if stopper.event.is_set():
                    break
                try:
                    reports.append(process.run(selection))
                except SegbatchError as error:
                    if worst is not None:
                        log.report_error(worst)
                    worst = error if worst is None else max(worst, error, key=_exit_code)
        finally:
            process.close()
    if as_json:
        answer = {"runs": reports, "error": worst.as_dict() if worst is not None else None}
        click.echo(msgspec.json.format(msgspec.json.encode(answer), indent=2))
    else:
        for report in reports:
            _print_table(report)
    if stopper.exit_code is not None:
        return stopper.exit_code
    if worst is not None and as_json:
        log.report_error(worst)
        return worst.exit_code
    if worst is not None:
        raise worst
    return 1 if any(report.failed for report in reports) else 0


def _exit_code(error: SegbatchError) -> int:
    return error.exit_code


def _preview(process: Process, selections: Sequence[Selection], *, as_json: bool) -> int:
    previews = [process.preview(selection) for selection in selections]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(previews), indent=2))
        return 0
    for preview in previews:
        stale = ", ".join(f"{count} {why}" for why, count in preview["stale"].items())
        click.echo(
            f"{preview['folder']}: {preview['files_to_do']} of {preview['raw_files']} files to do, "
            f"{preview['frames_done']} frames done" + (f", stale: {stale}" if stale else "")
        )
    return 0


def _print_table(report: RunReport) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stdout, highlight=False)
    click.echo(f"{report.folder}: {report.state}")
    table = Table()
    table.add_column("outcome")
    table.add_column("frames", justify="right")
    table.add_column("share", justify="right")
    counts = report.counts
    for outcome in ("segmented", "rejected", "failed"):
        count = getattr(counts, outcome)
        table.add_row(outcome, str(count), f"{count / max(counts.frames, 1):.1%}")
    table.add_section()
    for reason, count in counts.by_reason.items():
        table.add_row(f"  {reason}", str(count), f"{count / max(counts.frames, 1):.1%}")
    table.add_section()
    table.add_row("all", str(counts.frames), "")
    console.print(table)
    done = report.this_run
    engine = report.model.get("engine")
    by = f", {engine} {report.model.get('precision')}" if engine else ""
    click.echo(
        f"this run: {done['frames']} frames in {done['seconds']:.1f} s "
        f"({done['frames_per_s'] or 0:.1f} frames/s), {done['frames_done_before']} done before{by}"
    )
    for change, count in done["verdicts_changed"].items():
        click.echo(f"judged again with the whole run: {count} {change}")
    for line in report.failed[:FAILED_SHOWN]:
        click.secho(f"failed: {line}", fg="red")
    if len(report.failed) > FAILED_SHOWN:
        click.echo(f"... and {len(report.failed) - FAILED_SHOWN} more in {report.files['frames']}")
    click.echo(f"masks and QC logs: {report.out}")
    for name, path in report.files.items():
        click.echo(f"{name}: {path}")
