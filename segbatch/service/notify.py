"""Tell the service manager how the service fares: the sd_notify protocol by hand.

Each message is one datagram of ``KEY=VALUE`` lines to the socket that
``$NOTIFY_SOCKET`` names (sd_notify(3)). Without that variable nothing is sent,
and nothing here raises: a service manager that does not listen costs its
supervision, not the frames.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping

from segbatch.log import get_logger

SEND_TIMEOUT_S = 2.0  # a manager that is busy restarting reads its socket again soon


class Notifier:
    """The way from this process to its service manager. Every method may be called by any thread.

    Parameters
    ----------
    environ
        Where ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` stand; by default
        the environment of the process.

    Attributes
    ----------
    watchdog_interval_s
        Half of the time after which the manager takes a silent service for hung,
        seconds; None where nobody waits for a sign of life.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_interval_s = _watchdog_interval_s(environ) if self._address else None
        self._guard = threading.Lock()
        self._fed_at = float("-inf")  # time.monotonic(), seconds
        self._status = ""

    def ready(self, status: str = "") -> None:
        """Say that the service is up, or up again after ``reloading``."""
        self._status = status
        self._send("READY=1", f"STATUS={_one_line(status)}")

    def status(self, text: str) -> None:
        """Show ``text`` in ``systemctl status``; sent only when it is new."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={_one_line(text)}")

    def watchdog(self) -> None:
        """Give a sign of life now."""
        if self.watchdog_interval_s is not None:
            self._fed_at = time.monotonic()
            self._send("WATCHDOG=1")

    def fed_by_work(self) -> None:
        """Give a sign of life because some work was done; cheap enough to call at every frame.

        Sent when half of ``watchdog_interval_s`` has passed since the last one.
        """
        pause_s = self.watchdog_interval_s
        if pause_s is None or time.monotonic() - self._fed_at < pause_s / 2:
            return
        with self._guard:  # of several threads that find it due, one sends
            if time.monotonic() - self._fed_at < pause_s / 2:
                return
            self._fed_at = time.monotonic()
        self._send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> None:
        """Ask that the start, the reload or the stop under way may take ``seconds`` from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def reloading(self) -> None:
        """Say that the settings are read anew; ``ready`` ends it.

        The time stamp is what ``Type=notify-reload`` of newer managers wants.
        """
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str = "") -> None:
        """Say that the service is on its way out."""
        self._status = status
        self._send("STOPPING=1", f"STATUS={_one_line(status)}")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(SEND_TIMEOUT_S)
                sender.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            get_logger(__name__).debug(
                "service manager not reached", socket=self._address, error=str(error)
            )


def _address(stated: str) -> str:
    """Return the socket's address as the kernel wants it; empty for a kind not known here."""
    if stated.startswith("@"):  # Linux's abstract namespace
        return "\0" + stated[1:]
    return stated if stated.startswith("/") else ""


def _watchdog_interval_s(environ: Mapping[str, str]) -> float | None:
    """Return half of the watchdog's time, seconds, as sd_watchdog_enabled(3) advises."""
    period = environ.get("WATCHDOG_USEC", "")
    owner = environ.get("WATCHDOG_PID", "")
    if not period.isdecimal() or int(period) == 0:
        return None
    if owner and owner != str(os.getpid()):  # meant for the process that started this one
        return None
    return int(period) / 2e6


def _one_line(text: str) -> str:
    return " ".join(text.split())
