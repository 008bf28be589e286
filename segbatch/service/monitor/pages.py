"""What can be asked of a running service: metrics, health, status, and the live page."""

from __future__ import annotations

import errno
import json
import math
import re
import socket
from collections.abc import Callable
from http import HTTPStatus
from importlib import resources
from pathlib import Path
from typing import Any, cast

import msgspec

from segbatch.acquire.source import Source
from segbatch.errors import UsageError
from segbatch.service.monitor import metrics
from segbatch.service.monitor.address import parse_listen
from segbatch.service.monitor.monitor import Monitor, Shot
from segbatch.service.monitor.preview import BusyError, Kind, Previews, UnseenError
from segbatch.service.monitor.server import TEXT, Answer, WebServer
from segbatch.service.monitor.status import ServiceStatus
from segbatch.service.record.names import printable, told

_JSON = "application/json"
_ASSETS = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/curves.js": ("curves.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_PICTURE = re.compile(r"/(frame|mask|thumb)/([0-9a-f]{8}-[0-9]{1,18})\.png")
_AT_WORK = ("running", "reloading")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Pages:
    """Serves ``/``, ``/status``, ``/live.json``, ``/metrics`` and ``/healthz``; read-only.

    ``/healthz`` answers 200 while the service takes frames in (``running`` or
    ``reloading``, and at least one folder open) and 503 with the reason otherwise.

    Parameters
    ----------
    listen
        ``ADDRESS:PORT``, as in ``127.0.0.1:9417`` or ``[::1]:9417``; port 0
        takes any that is free.
    monitor
        What is shown of frames.
    status
        The service's status at the moment; called from several threads.
    open_raw
        Opens a raw file to show one of its frames; raises ``FrameError``.

    Raises
    ------
    SettingsError
        ``listen`` is no address and port.
    """

    def __init__(
        self,
        listen: str,
        monitor: Monitor,
        status: Callable[[], ServiceStatus],
        open_raw: Callable[[Path], Source],
    ) -> None:
        self._listen = listen
        self._host, self._port = parse_listen(listen)
        self._monitor, self._status = monitor, status
        self._previews = Previews(open_raw)
        self._assets = _read_assets()
        self._server: WebServer | None = None

    @property
    def url(self) -> str:
        """Where the pages are, with the port that was bound; empty unless started."""
        if self._server is None:
            return ""
        host, port = self._server.socket.getsockname()[:2]
        return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"

    def start(self) -> None:
        """Bind the address and begin to answer, in threads of its own.

        Raises
        ------
        UsageError
            The address is in use, may not be bound, or is none of this machine.
            Whoever called may go on without pages.
        """
        try:
            family, _, _, _, address = socket.getaddrinfo(
                self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self._server = WebServer(family, address, self._answer)
        except OSError as error:
            raise self._why_not(error) from error
        self._server.start()

    def close(self) -> None:
        """Stop answering; no thread is left. Closing again does nothing."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    def _why_not(self, error: OSError) -> UsageError:
        if error.errno == errno.EADDRINUSE:
            return UsageError(
                f"serve.listen = {self._listen!r}: another program listens there",
                "a free address",
                f"end it (ss -ltnp 'sport = :{self._port}' names it), or set another port",
            )
        return UsageError(
            f"serve.listen = {self._listen!r}: {error.strerror or error}",
            "an address of this machine and a port from 1024",
            "127.0.0.1:9417 serves this machine alone",
        )

    def _answer(self, path: str) -> Answer:
        if path in self._assets:
            return self._assets[path]
        if path == "/live.json":
            return _json(HTTPStatus.OK, self._live())
        if path == "/status":
            return _json(HTTPStatus.OK, msgspec.to_builtins(self._status()))
        if path == "/metrics":
            body = metrics.exposition(self._monitor, self._status())
            return Answer(HTTPStatus.OK, metrics.CONTENT_TYPE, body)
        if path == "/healthz":
            return self._health()
        if picture := _PICTURE.fullmatch(path):
            return self._picture(cast("Kind", picture[1]), picture[2])
        return _words(HTTPStatus.NOT_FOUND, "no such page")

    def _health(self) -> Answer:
        status = self._status()
        shut = status.folders and not any(folder.takes_in for folder in status.folders)
        healthy = status.state in _AT_WORK and not shut
        return _json(
            HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE,
            {"healthy": healthy, "state": status.state, "why": status.why},
        )

    def _live(self) -> dict[str, Any]:
        shown = self._monitor.shown()
        return {
            "frame": _told_of(shown) if shown is not None else None,
            "refused": [_told_of(shot) for shot in self._monitor.refused()],
            "quality": self._monitor.curves(),
        }

    def _picture(self, kind: Kind, shot_id: str) -> Answer:
        shot = self._monitor.find(shot_id)
        if shot is None:
            return _words(HTTPStatus.NOT_FOUND, "no longer among the recent frames")
        try:
            return Answer(HTTPStatus.OK, "image/png", self._previews.png(kind, shot))
        except BusyError as error:
            return _words(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        except UnseenError as error:
            return _words(HTTPStatus.NOT_FOUND, str(error))


def _told_of(shot: Shot) -> dict[str, Any]:
    """Return what the page says of a frame."""
    record = shot.record
    mask = record.mask
    return {
        "id": shot.id,
        "file": told(shot.raw),
        "folder": printable(str(shot.raw.parent)),
        "page": shot.page,
        "shape": record.frame.shape,
        "outcome": record.outcome,
        "reasons": record.reasons,
        "error": record.error,
        "rule": _rule_that_failed(record.quality),
        "written_at": record.written_at,
        "timing_ms": msgspec.to_builtins(record.timing_ms),
        "mask": None
        if mask is None
        else {
            "objects": mask.object_count,
            "foreground_fraction": mask.foreground_fraction,
            "confidence": mask.mean_confidence,
        },
    }


def _rule_that_failed(quality: dict[str, Any]) -> dict[str, Any] | None:
    keys = ("measure", "value", "side", "threshold")
    failed = (rule for rule in quality.get("rules", []) if rule.get("failed"))
    told_of = next(({key: rule.get(key) for key in keys} for rule in failed), None)
    if told_of is None or not all(map(_is_finite, (told_of["value"], told_of["threshold"]))):
        return None
    return told_of


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _json(status: HTTPStatus, value: Any) -> Answer:
    text = json.dumps(value, ensure_ascii=False)
    # A file's name may hold bytes that are no text: they are shown escaped.
    text = _SURROGATE.sub(lambda found: f"\\\\x{ord(found[0]) & 0xFF:02x}", text)
    return Answer(status, _JSON, text.encode())


def _words(status: HTTPStatus, text: str) -> Answer:
    return Answer(status, TEXT, f"{text}\n".encode())


def _read_assets() -> dict[str, Answer]:
    folder = resources.files("segbatch.service.monitor") / "assets"
    return {
        path: Answer(HTTPStatus.OK, kind, (folder / name).read_bytes())
        for path, (name, kind) in _ASSETS.items()
    }
