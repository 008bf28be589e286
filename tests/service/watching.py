"""A service to be watched: real records of a real run, a status, and its pages on loopback."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from segbatch import __version__
from segbatch.acquire.source import Source, open_source
from segbatch.service.monitor.monitor import Monitor
from segbatch.service.monitor.pages import Pages
from segbatch.service.monitor.status import EngineStatus, FolderStatus, ServiceStatus
from segbatch.service.record.schema import QcRecord, decode


def recorded(folder: Path) -> list[tuple[Path, QcRecord]]:
    """Return the raw files of a processed run of single frames with their records."""
    found = []
    for path in sorted(folder.glob("*_qc.json")):
        record = decode(path.read_bytes())
        assert record is not None
        found.append((folder / record.frame.file, record))
    return found


def open_raw(path: Path) -> Source:
    """Open a raw file as the service does."""
    return open_source(path, bit_depth=None, profile="zelux", max_file_gib=1.0)


def status_of(monitor: Monitor, **changes: Any) -> ServiceStatus:
    """Return what a service with one folder would say, with ``changes``."""
    totals = monitor.totals()
    folder = FolderStatus(
        path="/data/incoming", observer="inotify", why="ext4", pending=1, backlog=2,
        runs_open=1, takes_in=True, error=None, disk_free_bytes=123 << 30,
    )  # fmt: skip
    engine = EngineStatus(name="openvino", precision="bf16", model="beads", model_sha256="5b9b")
    status = ServiceStatus(
        state="running", why="", pid=4711, version=__version__, uptime_s=93000.0,
        started_at="2026-03-12T09:00:00.000+00:00", backlog=3, frames=totals.frames,
        reasons=totals.reasons, frames_per_s=totals.frames_per_s, dropped=0,
        last_frame_at=totals.last_frame_at, last_frame=totals.last_frame,
        folders=[folder], engine=engine, camera=None,
    )  # fmt: skip
    return msgspec.structs.replace(status, **changes)


class Watched:
    """A monitor and its pages; ``changes`` are what the status says otherwise."""

    def __init__(self, listen: str) -> None:
        self.monitor = Monitor()
        self.changes: dict[str, Any] = {}
        self.pages = Pages(listen, self.monitor, self.status, open_raw)

    def status(self) -> ServiceStatus:
        """Return the status at the moment."""
        return status_of(self.monitor, **self.changes)

    def note_all(self, folder: Path) -> None:
        """Tell the monitor of every frame of a processed run."""
        for raw, record in recorded(folder):
            self.monitor.note(raw, record, folder)

    def ask(self, path: str, method: str = "GET", **headers: str) -> Answered:
        """Send one request; headers by their names with ``_`` for ``-``."""
        where = urlsplit(self.pages.url)
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=30)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, headers=named)
            answer = connection.getresponse()
            return Answered(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def json(self, path: str) -> Any:
        """Return the JSON of a page."""
        return json.loads(self.ask(path).body)


class Answered(msgspec.Struct, frozen=True):
    """One answer of the pages."""

    status: int
    headers: dict[str, str]
    body: bytes


@contextmanager
def watched(listen: str = "127.0.0.1:0") -> Iterator[Watched]:
    """Serve the pages of a monitor while the block runs."""
    service = Watched(listen)
    service.pages.start()
    try:
        yield service
    finally:
        service.pages.close()
