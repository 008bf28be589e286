"""A real `segbatch serve` process for the tests of this folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.service.runs import COMMAND

PATIENCE_S = 90.0
QUICK = {
    "serve.settle_s": 0.2,
    "serve.rescan_s": 0.3,
    "serve.run_quiet_s": 1.0,
    "serve.min_free_gib": 0,
    "threads": 2,
}


class Service:
    """A service over some folders; what it logs is kept, line by line."""

    def __init__(
        self,
        folders: list[Path],
        state: Path,
        *,
        config: Path | None = None,
        settings: dict[str, Any] | None = None,
        options: tuple[str, ...] = (),
        listen: str | None = "127.0.0.1:0",
    ) -> None:
        command = [*COMMAND, "serve", *map(str, folders), *options]
        command += ["--listen", listen] if listen is not None else []
        if config is not None:
            command += ["--config", str(config)]
        for key, value in {**QUICK, **(settings or {})}.items():
            command += ["--set", f"{key}={value}"] if value is not None else []
        self.log: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "STATE_DIRECTORY": str(state)},
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()

    def ready(self) -> Self:
        """Wait until it says that it is ready."""
        self.until(lambda: self.said("ready"))
        return self

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until a condition holds and return what it returned."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if found := condition():
                return found
            if self.process.poll() is not None and not (found := condition()):
                raise AssertionError(f"the service ended: {self.process.returncode}\n{self.tail}")
            time.sleep(0.02)
        raise AssertionError(f"waited in vain\n{self.tail}")

    def said(self, event: str) -> list[dict[str, Any]]:
        """Return the log lines of an event."""
        return [line for line in self.log if line.get("event") == event]

    def status(self) -> dict[str, Any]:
        """Read ``/status``."""
        url = self.until(lambda: self.said("live page, metrics and health"))[0]["url"]
        with urllib.request.urlopen(url + "status", timeout=10) as answer:  # noqa: S310 - loopback
            return json.loads(answer.read())

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end and return the exit code."""
        self.process.send_signal(number)
        self.process.wait(PATIENCE_S)
        self._reader.join()
        return self.process.returncode

    @property
    def tail(self) -> str:
        """The last lines of the log."""
        return "\n".join(json.dumps(line) for line in self.log[-30:])

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self.log.append(json.loads(line))
            except ValueError:
                self.log.append({"event": line.rstrip("\n")})
        self.process.stderr.close()


def run_file(folder: Path) -> dict[str, Any] | None:
    """Return what ``segbatch_run.json`` says once the run is complete."""
    try:
        found = json.loads((folder / "segbatch_run.json").read_bytes())
    except (OSError, ValueError):
        return None
    return found if found.get("state") == "complete" else None
