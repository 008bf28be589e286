"""A small web server that nobody can hold up: few threads, short waits, nothing but reading."""

from __future__ import annotations

import ipaddress
import os
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Final
from urllib.parse import urlsplit

from segbatch import log

THREADS: Final = 64
_READ_S = 5.0  # between two bytes of a request, or two writes of an answer
_CONNECTION_S = 20.0  # from the first byte to the last
_QUEUE_S = 2.0
_POLL_S = 0.1
_CLOSE_S = 10.0
_LARGEST_BODY = 1 << 16
_METHODS = "GET, HEAD"
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Connection": "close",
}
TEXT = "text/plain; charset=utf-8"
_logger = log.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request gets."""

    status: HTTPStatus
    content_type: str
    body: bytes


class WebServer(socketserver.TCPServer):
    """Answers GET requests in at most ``THREADS`` threads.

    Parameters
    ----------
    family, address
        As ``socket.getaddrinfo`` gave them.
    answer
        Called with the path of a request, without its query; from several threads.

    Raises
    ------
    OSError
        The address cannot be bound.
    """

    allow_reuse_address = os.name == "posix"  # elsewhere it would let two servers share a port
    request_queue_size = 64

    def __init__(
        self, family: socket.AddressFamily, address: Any, answer: Callable[[str], Answer]
    ) -> None:
        self.address_family = family
        self.answer = answer
        self._slots = threading.BoundedSemaphore(THREADS)
        self._guard = threading.Lock()
        self._open: dict[socket.socket, tuple[threading.Thread, float]] = {}
        super().__init__(address, _Handler)
        host = str(self.socket.getsockname()[0]).partition("%")[0]
        self.loopback_only = ipaddress.ip_address(host).is_loopback
        self._loop = threading.Thread(
            target=self.serve_forever, args=(_POLL_S,), name="pages", daemon=True
        )

    def start(self) -> None:
        """Begin to answer."""
        self._loop.start()

    def stop(self) -> None:
        """Stop answering, cut what is open, and wait for the threads to end."""
        self.shutdown()
        self._loop.join()
        self.server_close()
        with self._guard:
            left = dict(self._open)
        for connection in left:
            _cut(connection)
        for thread, _ in left.values():
            thread.join(_CLOSE_S)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer one connection in a thread of its own, or turn it away where all are taken."""
        until = time.monotonic() + _QUEUE_S
        while not self._slots.acquire(timeout=_POLL_S):
            self.service_actions()
            if time.monotonic() > until:
                self.shutdown_request(request)
                return
        thread = threading.Thread(
            target=self._work, args=(request, client_address), name="page", daemon=True
        )
        with self._guard:
            self._open[request] = (thread, time.monotonic())
        try:
            thread.start()
        except RuntimeError:  # the system gives no more threads
            self._done(request)

    def service_actions(self) -> None:
        """Cut connections that take too long; called again and again."""
        oldest = time.monotonic() - _CONNECTION_S
        with self._guard:
            late = [request for request, (_, since) in self._open.items() if since < oldest]
        for request in late:
            _cut(request)

    def _work(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError as error:  # the client went away, or was too slow
            _logger.debug("a page was not delivered", why=str(error))
        finally:
            self._done(request)

    def _done(self, request: socket.socket) -> None:
        with self._guard:
            del self._open[request]
        self.shutdown_request(request)
        self._slots.release()


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):  # ended by itself meanwhile
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _READ_S
    server: WebServer

    def do_GET(self) -> None:
        """Answer with a page; HEAD gets its headers alone."""
        if not self._host_is_ours():
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
            return
        try:
            answer = self.server.answer(self.path.partition("?")[0])
        except Exception:
            _logger.exception("a page failed", path=self.path)
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        self._send(answer)

    do_HEAD = do_GET  # noqa: N815

    def _refuse(self) -> None:
        length = self.headers.get("Content-Length", "")
        if length.isdigit():  # closing with unread bytes would reset the connection
            self.rfile.read(min(int(length), _LARGEST_BODY))
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = _refuse  # noqa: N815

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer with the name of the error and nothing of the request."""
        status = HTTPStatus(code)
        self.close_connection = True
        self._send(Answer(status, TEXT, f"{status.phrase}\n".encode()))

    def version_string(self) -> str:
        """Name the program, not the interpreter's version."""
        return "segbatch"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Log a request where debug lines are wanted."""
        _logger.debug("request", line=format % args)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        if answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", _METHODS)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def _host_is_ours(self) -> bool:
        """Refuse names of others where only this machine is served.

        A page of another site may let its name point at 127.0.0.1 and read
        what a server there tells; the Host header gives it away.
        """
        hosts = self.headers.get_all("Host", [])
        return not self.server.loopback_only or all(map(_means_loopback, hosts))


def _means_loopback(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
