"""``segbatch status``: what the running service says of itself, for people and machines."""

from __future__ import annotations

import json
import sys
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit
from urllib.request import ProxyHandler, build_opener

import click
import msgspec

from segbatch.errors import SegbatchError, UsageError
from segbatch.service.monitor.address import url_of
from segbatch.service.monitor.status import FolderStatus, ServiceStatus
from segbatch.settings import Settings

_ANSWER_S = 5.0
_LARGEST_BYTES = 4 << 20
_TONES = {"running": "green", "reloading": "green", "stopped": "red"}


class NoAnswerError(SegbatchError):
    """Nothing that speaks for the service answers at its address."""


def status_command(settings: Settings, *, url: str | None, as_json: bool) -> int:
    """Print the status of the service at ``url``, or at the address in the settings.

    Raises
    ------
    NoAnswerError
        Nothing answers there, or not as the service would.
    UsageError
        ``url`` is no web address, or the settings turn the pages off.
    """
    status = ask(url or _url_of(settings))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(status), indent=2))
    else:
        _print(status)
    return 0


def ask(url: str) -> ServiceStatus:
    """Ask the service at ``url`` for its status.

    Raises
    ------
    NoAnswerError, UsageError
        See ``status_command``.
    """
    if urlsplit(url).scheme not in {"http", "https"}:
        raise UsageError(f"--url {url}", "a web address", "as in http://127.0.0.1:9417")
    opener = build_opener(ProxyHandler({}))  # a proxy would look for the address on its own machine
    try:
        with opener.open(urljoin(f"{url.rstrip('/')}/", "status"), timeout=_ANSWER_S) as answer:
            content = answer.read(_LARGEST_BYTES)
        # Names in it are shown to people: json takes what a strict reader would refuse.
        return msgspec.convert(json.loads(content), ServiceStatus)
    except HTTPError as error:
        with error:
            raise _no_answer(url, f"answers {error.code} {error.reason}") from error
    except (OSError, HTTPException, URLError) as error:
        raise _no_answer(url, f"nothing answers ({_why(error)})") from error
    except (ValueError, msgspec.ValidationError) as error:
        raise _no_answer(url, "the answer is not that of this version of segbatch") from error


def _url_of(settings: Settings) -> str:
    if not settings.serve.listen:
        raise UsageError(
            "serve.listen is empty: the service answers nowhere",
            "an address, as in 127.0.0.1:9417",
            "set serve.listen and reload the service, or ask systemctl status segbatch",
        )
    return url_of(settings.serve.listen)


def _no_answer(url: str, what: str) -> NoAnswerError:
    return NoAnswerError(
        f"{url}: {what}",
        "the status of a running service",
        "is it running? systemctl status segbatch (another address: --url, or --config FILE)",
    )


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or reason)


def _print(status: ServiceStatus) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False)
    tone = _TONES.get(status.state, "yellow")
    head = Text.assemble((status.state, f"bold {tone}"), f" for {_duration(status.uptime_s)}")
    if status.why:
        head.append(f": {_plain(status.why)}")
    console.print(head, soft_wrap=True)
    for name, value in _lines(status):
        console.print(Text.assemble((f"{name:12}", "dim"), value), soft_wrap=True)
    if status.folders:
        console.print(_folders(status.folders))
    for folder in status.folders:
        if folder.error:
            told = Text.assemble((_plain(folder.path), "bold red"), f": {_plain(folder.error)}")
            console.print(told, soft_wrap=True)


def _lines(status: ServiceStatus) -> list[tuple[str, str]]:
    frames = ", ".join(f"{count:,} {outcome}" for outcome, count in status.frames.items())
    reasons = ", ".join(f"{count:,} {why}" for why, count in status.reasons.items() if count)
    lines = [
        ("frames", f"{frames}; {status.frames_per_s:.1f} a second over the last minute"),
        ("reasons", reasons or "none"),
        ("backlog", f"{status.backlog:,} files"),
        ("last frame", f"{status.last_frame} at {status.last_frame_at}"),
    ]
    if status.last_frame is None:
        lines[-1] = ("last frame", "none yet")
    if (camera := status.camera) is not None:
        told = f"{camera.get('state')}, {status.dropped:,} frames dropped"
        lines.append(("camera", f"{told}: {camera['error']}" if camera.get("error") else told))
    if (engine := status.engine) is not None:
        sha256 = engine.model_sha256.removeprefix("sha256:")[:12]
        told = f"{engine.name} {engine.precision}, network {engine.model} ({sha256})"
        lines.append(("engine", told))
    lines.append(("process", f"{status.pid}, segbatch {status.version}, since {status.started_at}"))
    return [(name, _plain(value)) for name, value in lines]


def _folders(folders: list[FolderStatus]) -> object:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("folder", overflow="fold")
    table.add_column("watched by", overflow="fold")
    for name in ("open runs", "arriving", "waiting", "disk left"):
        table.add_column(name, justify="right")
    for folder in folders:
        free = folder.disk_free_bytes
        table.add_row(
            Text(_plain(folder.path)),
            Text("trouble" if folder.error else folder.observer, "red" if folder.error else ""),
            f"{folder.runs_open:,}",
            f"{folder.pending:,}",
            f"{folder.backlog:,}",
            "?" if free is None else f"{free / 2**30:.1f} GiB",
        )
    return table


def _plain(text: str) -> str:
    """Return text whose characters that would steer a terminal are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _duration(seconds: float) -> str:
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if minutes < 1:
        return f"{int(seconds)} s"
    if hours < 1:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} days"
