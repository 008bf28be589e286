"""A real ``segbatch serve`` over some trees, seen from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

COMMAND = [sys.executable, "-m", "segbatch", "serve"]
STARTS_S = 120.0  # longest that a start may take
# The defaults, 5 to 120 s, shortened about as much as the day is.
TIMES_S = {"settle_s": 0.3, "rescan_s": 3.0, "run_quiet_s": 3.0, "drain_s": 60.0}


@dataclass(frozen=True)
class Vitals:
    """What a process and its children hold at one moment."""

    resident_mib: float
    files: int
    threads: int
    watches: int
    children: int


class Service:
    """A service that is started, and killed, again and again over the same trees.

    Parameters
    ----------
    folder
        For its settings, its state and its log; it is made.
    trees
        The watched trees, each with the folder of its results.
    """

    def __init__(self, folder: Path, trees: list[tuple[Path, Path]]) -> None:
        folder.mkdir()
        self.events: Counter[str] = Counter()
        self.faults: list[str] = []
        self.starts = 0
        self._reading = threading.Lock()
        self._ready_before = 0
        self._config, self._log = folder / "segbatch.toml", folder / "serve.log"
        self._state, self._trees = folder / "state", trees
        self._child: psutil.Popen | None = None
        self._read_to = 0
        self._url = ""
        self._log.touch()

    def configure(self, *, min_free_gib: float, sound: bool = True) -> None:
        """Write the settings: a day's times in minutes; ``sound``: False for a mistake in them."""
        lines = ["bit_depth = 10", "threads = 2"]
        for root, out in self._trees:
            lines += ["[[watch]]", f'path = "{root}"', *([f'out = "{out}"'] if out != root else [])]
        lines += ["[serve]", 'listen = "127.0.0.1:0"', f"min_free_gib = {min_free_gib}"]
        lines += [f"{name} = {value}" for name, value in TIMES_S.items()]
        lines += [] if sound else ["setle_s = 1.0"]
        self._config.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def start(self) -> None:
        """Start the process; it is not ready at once."""
        self.read_log()
        self._url, self._ready_before = "", self.events["ready"]
        self.starts += 1
        with self._log.open("ab") as log:
            if log.tell() > self._read_to:  # the line in which the last process was killed
                log.write(b"\n")
                log.flush()
                self._read_to = log.tell()
            self._child = psutil.Popen(
                [*COMMAND, "--config", str(self._config)],
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, "STATE_DIRECTORY": str(self._state)},
            )

    def wait_ready(self) -> None:
        """Wait until it has said that it is ready."""
        until = time.monotonic() + STARTS_S
        while self.events["ready"] == self._ready_before:
            if time.monotonic() > until or not self.is_alive:
                raise SystemExit(f"the service did not start:\n{self.tail()}")
            time.sleep(0.1)
            self.read_log()

    def end(self, number: int) -> int:
        """Send a signal that ends it, and return its exit code."""
        self._process.send_signal(number)
        code = int(self._process.wait(STARTS_S))
        self.read_log()
        return code

    def reload(self) -> None:
        """Have it read its settings again, and wait until it has."""
        heard = ("settings read again", "settings not taken; the old ones stay")
        before = sum(self.events[name] for name in heard)
        self._process.send_signal(signal.SIGHUP)
        until = time.monotonic() + STARTS_S
        while sum(self.events[name] for name in heard) == before:
            if time.monotonic() > until or not self.is_alive:
                raise SystemExit(f"the service did not reload:\n{self.tail()}")
            time.sleep(0.2)
            self.read_log()

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._child is not None and self._child.poll() is None

    def status(self) -> dict[str, Any] | None:
        """Read ``/status``; None where nobody answers."""
        self.read_log()
        if self._url and self.is_alive:
            with (
                suppress(OSError, ValueError),
                urllib.request.urlopen(self._url + "status", timeout=10) as answer,  # noqa: S310
            ):
                return dict(json.load(answer))
        return None

    def read_log(self) -> None:
        """Count what it has said since the last time, and keep what it should never say."""
        with self._reading, self._log.open("rb") as log:
            log.seek(self._read_to)
            for line in log:
                if not line.endswith(b"\n"):
                    break
                self._read_to += len(line)
                self._hear(line)

    def tail(self) -> str:
        """Return the end of the log."""
        return self._log.read_text(encoding="utf-8", errors="replace")[-4000:]

    def said_of(self, name: str) -> str:
        """Return the last thing that the log says of a name, but for its frames."""
        with self._log.open("rb") as log:
            lines = [x for x in log if name.encode() in x and b'"outcome"' not in x]
        return lines[-1].decode(errors="replace").strip() if lines else "nothing"

    def cpu_s(self) -> float:
        """Return the processor time that it and its children have used, user and system."""
        return sum(sum(process.cpu_times()[:4]) for process in self._family())

    def vitals(self) -> Vitals:
        """Return what it and its children hold, the median of some looks at memory."""
        family, sizes = self._family(), []
        for _ in range(5):
            sizes.append(sum(process.memory_info().rss for process in family))
            time.sleep(0.2)
        watches = 0
        for info in Path(f"/proc/{self._process.pid}/fdinfo").iterdir():
            with suppress(OSError):
                watches += info.read_text(encoding="utf-8").count("inotify wd:")
        return Vitals(
            resident_mib=median(sizes) / 2**20,
            files=sum(process.num_fds() for process in family),
            threads=sum(process.num_threads() for process in family),
            watches=watches,
            children=len(family) - 1,
        )

    @property
    def _process(self) -> psutil.Popen:
        if self._child is None:
            raise RuntimeError("the service was not started")
        return self._child

    def _family(self) -> list[psutil.Process]:
        return [psutil.Process(self._process.pid), *self._process.children(recursive=True)]

    def _hear(self, line: bytes) -> None:
        try:
            said = json.loads(line)
        except ValueError:
            said = {"event": "no JSON", "line": line.decode(errors="replace")}
        self.events[said["event"]] += 1
        if said["event"] == "live page, metrics and health":
            self._url = said["url"]
        if said["event"] == "no JSON" or "exception" in said:
            self.faults.append(json.dumps(said))
