"""The messages to the service manager, read from a real socket."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from segbatch.service.notify import Notifier


class Manager:
    """The receiving end: a datagram socket, as a service manager opens it."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0", 1))
        self.socket.settimeout(10)
        self.environ = {"NOTIFY_SOCKET": address}

    def next(self) -> list[str]:
        """Return the lines of the next message."""
        return self.socket.recv(4096).decode().split("\n")

    def rest(self) -> int:
        """Return how many messages wait, and take them."""
        self.socket.setblocking(False)
        count = 0
        while True:
            try:
                self.socket.recv(4096)
            except BlockingIOError:
                return count
            count += 1


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    """Open a socket of either kind."""
    name = f"@segbatch-{uuid.uuid4()}" if request.param == "abstract" else f"{tmp_path}/notify"
    opened = Manager(name)
    yield opened
    opened.socket.close()


def test_states_are_told(manager: Manager) -> None:
    """Ready, status, reloading, more time and stopping arrive as sd_notify(3) words them."""
    notifier = Notifier(manager.environ)
    before = time.monotonic_ns() // 1000
    notifier.extend_timeout(1.5)
    notifier.ready("3 waiting")
    notifier.status("two\nlines")
    notifier.reloading()
    notifier.stopping("drains")

    assert manager.next() == ["EXTEND_TIMEOUT_USEC=1500000"]
    assert manager.next() == ["READY=1", "STATUS=3 waiting"]
    assert manager.next() == ["STATUS=two lines"]
    reloading, stamp = manager.next()
    assert reloading == "RELOADING=1"
    key, _, microseconds = stamp.partition("=")
    assert key == "MONOTONIC_USEC"
    assert before <= int(microseconds) <= time.monotonic_ns() // 1000
    assert manager.next() == ["STOPPING=1", "STATUS=drains"]


def test_status_is_sent_when_new(manager: Manager) -> None:
    """A status that was told already is not told again."""
    notifier = Notifier(manager.environ)
    notifier.ready("idle")
    for _ in range(3):
        notifier.status("idle")
    notifier.status("busy")

    assert manager.next() == ["READY=1", "STATUS=idle"]
    assert manager.next() == ["STATUS=busy"]
    assert manager.rest() == 0


def test_watchdog_is_fed_by_work_at_its_pace(manager: Manager) -> None:
    """However many frames are done by however many threads, one sign of life is sent a pace."""
    notifier = Notifier(manager.environ | {"WATCHDOG_USEC": str(3600 * 1_000_000)})
    assert notifier.watchdog_interval_s == 1800

    def work() -> None:
        for _ in range(500):
            notifier.fed_by_work()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert manager.next() == ["WATCHDOG=1"]
    assert manager.rest() == 0

    notifier.watchdog()
    assert manager.rest() == 1


def test_work_feeds_again_when_due(manager: Manager) -> None:
    """Work that goes on keeps a watchdog of 40 ms fed."""
    notifier = Notifier(manager.environ | {"WATCHDOG_USEC": "40000"})
    for _ in range(3):
        notifier.fed_by_work()
        time.sleep(0.03)

    assert manager.rest() == 3


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getppid())},
    ],
)
def test_no_watchdog_unless_asked(manager: Manager, environ: dict[str, str]) -> None:
    """A watchdog that is off, misspelt or meant for another process is not fed."""
    notifier = Notifier(manager.environ | environ)
    notifier.fed_by_work()
    notifier.watchdog()

    assert notifier.watchdog_interval_s is None
    assert manager.rest() == 0


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "vsock:2:1234"])
def test_nobody_listening_is_no_error(address: str) -> None:
    """Without a manager, with one that is gone, or one of another kind, work goes on."""
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    notifier.ready("up")
    notifier.fed_by_work()
    notifier.stopping()
