"""The command `segbatch` itself: what all its commands have in common."""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import traceback
from types import FrameType
from typing import Any, NoReturn

import click

from segbatch import __version__
from segbatch.errors import SegbatchError, StorageError

HELP = {"help_option_names": ["-h", "--help"]}


class Program(click.Group):
    """The command group; reports our errors as got, wanted, remedy, without a traceback."""

    _interrupted = False

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run as a command; SIGINT is remembered until the command takes signals itself."""
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            return super().main(*args, **kwargs)
        self._interrupted = False
        signal.signal(signal.SIGINT, self._interrupt)
        try:
            return super().main(*args, **kwargs)
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True
        signal.default_int_handler(number, frame)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a known error becomes a message and its exit code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(130)
        except Exception as error:
            # An interrupt within a compiled module that is being loaded becomes whatever error
            # that module makes of it: ssl raises TypeError("expected a message argument").
            if self._interrupted:
                ctx.exit(130)
            # click ends quietly when a reader such as head went away
            if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                file = f" {error.filename}" if error.filename else ""
                error = StorageError(
                    f"{error.strerror or error}:{file}",
                    "files that answer",
                    "segbatch doctor FOLDER",
                )
            if isinstance(error, SegbatchError):
                self._report(ctx, error)
            raise

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

    _fill_closed_streams()
    atexit.register(_let_go_of_stderr)
    log.configure(verbose=verbose)


def _fill_closed_streams() -> None:
    """Put the null device where a standard stream is closed (``2>&-``, some schedulers).

    Else the next file opened, a mask perhaps, would take its number and what is written to it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: PTH123, SIM115


def _let_go_of_stderr() -> None:
    """Drop what a full disk did not take of the log, for which Python would end with 120."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
