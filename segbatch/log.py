"""The process log: structured lines on stderr, JSON unless a person is watching.

Importing configures nothing; ``configure`` is called once by the command line.
QC records are a data product and do not pass through here.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import Any, TextIO, cast

import click
import structlog

from segbatch.errors import SegbatchError


def configure(*, verbose: bool = False, json_lines: bool | None = None) -> None:
    """Send log lines to stderr.

    Parameters
    ----------
    verbose
        Debug lines too.
    json_lines
        One JSON object a line; by default exactly when stderr is no terminal.
    """
    if json_lines is None:
        json_lines = not sys.stderr.isatty()
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if json_lines
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.DEBUG if verbose else logging.INFO
        ),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Stderr())),
        cache_logger_on_first_use=False,
    )


def report_error(error: SegbatchError) -> None:
    """Print for people what was got, what was wanted and what to do, on stderr."""
    with suppress(OSError, ValueError):  # the exit code still tells
        click.secho(f"error: {error.got}", fg="red", err=True)
        if error.wanted:
            click.echo(f"  wanted: {error.wanted}", err=True)
        if error.remedy:
            click.echo(f"  remedy: {error.remedy}", err=True)


class _Stderr:
    """Whatever ``sys.stderr`` is when a line is written: a progress bar may stand in for it."""

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # a full log disk costs the line, not the run
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()


def get_logger(name: str) -> Any:
    """Return the logger of one module; ``name`` stands in each line as ``module``."""
    return structlog.get_logger(module=name)
