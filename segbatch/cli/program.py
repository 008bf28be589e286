"""The command `segbatch` itself: what all its commands have in common."""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
import traceback
from types import FrameType
from typing import Any, NoReturn

import click

from segbatch import __version__
from segbatch.errors import SegbatchError, StorageError

HELP = {"help_option_names": ["-h", "--help"]}


# Commands whose answer with --json has a list of runs, which is there in an error, too.
OF_RUNS = ("acquire", "process")
LOOK_S, MOST_LOOKS = 0.02, 500
_AT_FIRST: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}


class Program(click.Group):
    """The command group; reports our errors as got, wanted, remedy, without a traceback."""

    _stopped = 0  # the exit code, where a signal came
    _looks = 0
    _given: tuple[str, ...] = ()

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run as a command; SIGINT and SIGTERM unwind it until it takes signals itself."""
        self._stopped = self._looks = 0
        taken = [each for each, first in _AT_FIRST.items() if signal.getsignal(each) == first]
        for number in taken:
            signal.signal(number, self._stop)
        try:
            return super().main(*args, **kwargs)
        finally:
            for number in taken:
                signal.signal(number, _AT_FIRST[number])

    def _stop(self, number: int, frame: FrameType | None) -> None:
        # Compiled modules that are being loaded swallow what is raised in them, or make another
        # error of it (numpy, ssl): look again when that is over.
        self._looks += 1
        if _is_importing(frame) and self._looks < MOST_LOOKS:
            again = threading.Timer(LOOK_S, signal.raise_signal, [number])
            again.daemon = True
            again.start()
            return
        self._stopped = 128 + number
        if number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        raise SystemExit(self._stopped)

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Parse what stands before the command's name."""
        self._given = tuple(args)
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.ClickException as error:
            self._answer(_told(error))
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a known error becomes a message and its exit code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(130)
        except click.ClickException as error:
            self._answer(_told(error))
            raise
        except Exception as error:
            if self._stopped:  # and became another error on its way
                ctx.exit(self._stopped)
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

    def _report(self, ctx: click.Context, error: SegbatchError) -> NoReturn:
        from segbatch import log

        if ctx.params.get("debug"):
            traceback.print_exc()
        log.report_error(error)
        self._answer(error.as_dict())
        ctx.exit(error.exit_code)

    def _answer(self, told: dict[str, str | int]) -> None:
        """Print an error on stdout, where the command takes --json and it was given."""
        given = self._given
        name = next((each for each in given if not each.startswith("-")), "")
        command = self.commands.get(name)
        flags = given[: given.index("--")] if "--" in given else given
        if command is None or "--json" not in flags:
            return
        if any("--json" in option.opts for option in command.params):
            runs: dict[str, Any] = {"runs": []} if name in OF_RUNS else {}
            click.echo(json.dumps({**runs, "error": told}, indent=2))


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _told(error: click.ClickException) -> dict[str, str | int]:
    """Return what ``--json`` says of an argument that click refused."""
    context = getattr(error, "ctx", None)
    usage = context.get_usage().removeprefix("Usage: ") if context is not None else ""
    remedy = f"{context.command_path} --help" if context is not None else ""
    return {
        "got": error.format_message(),
        "wanted": " ".join(usage.split()),
        "remedy": remedy,
        "exit_code": error.exit_code,
    }


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
    # When all is done: native libraries that are being unloaded crash where Python raises in them.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)
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
