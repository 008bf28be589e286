"""Run inside the unit: prints what can be reached from there, one thing a line."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path


def touch(folder: str) -> Callable[[], None]:
    """Return what tries to write into ``folder``."""
    return lambda: (Path(folder) / "probe").write_text("x") and None


def see_homes() -> None:
    """Read what anybody may read in a folder of a person."""
    Path("/run/user/1000/secret").read_text()


def open_device() -> None:
    """Open a device that file permissions leave open to everybody."""
    os.close(os.open("/run/device", os.O_RDONLY))


def send_to(address: str) -> Callable[[], None]:
    """Return what tries to send a datagram to ``address``."""

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", (address, 9))

    return send


TRIED: dict[str, Callable[[], object]] = {
    "write-drop": touch(sys.argv[1]),
    "write-state": touch(os.environ["STATE_DIRECTORY"]),
    "write-cache": touch(os.environ["CACHE_DIRECTORY"]),
    "write-etc": touch("/etc/segbatch"),
    "write-srv": touch("/srv/segbatch"),
    "see-homes": see_homes,
    "open-device": open_device,
    "send-to-itself": send_to("127.0.0.1"),
    "send-to-others": send_to("192.0.2.1"),
    "become-root": lambda: os.setuid(0),
}

for name, attempt in TRIED.items():
    try:
        attempt()
    except OSError:
        print(name, "no", flush=True)  # noqa: T201 - the journal is read by the test
    else:
        print(name, "yes", flush=True)  # noqa: T201
