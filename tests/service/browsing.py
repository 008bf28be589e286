"""A real headless Chromium for the tests of this folder, driven through its own chromedriver."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

MISSING = "Chromium and its driver are not installed (apt-get install chromium chromium-driver)"
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip
_ANSWER_S = 60.0


def chromium() -> str | None:
    """Return the browser, None where it or its driver is missing."""
    return shutil.which("chromium") if shutil.which("chromedriver") else None


class Browser:
    """One window; a context manager. Chromium keeps its files in ``profile``, an empty folder."""

    def __init__(self, profile: Path, width_px: int, height_px: int) -> None:
        self._flags = [
            *_FLAGS, f"--user-data-dir={profile}", f"--window-size={width_px},{height_px}"
        ]  # fmt: skip
        self._opener = build_opener(ProxyHandler({}))

    def __enter__(self) -> Browser:
        self._driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            assert self._driver.stdout is not None
            port = next(
                line.split()[-1].rstrip(b".").decode()
                for line in self._driver.stdout
                if b"started successfully on port" in line
            )
            self._root = f"http://127.0.0.1:{port}/session"
            wanted = {
                "goog:chromeOptions": {"binary": chromium(), "args": self._flags},
                "goog:loggingPrefs": {"browser": "ALL"},
            }
            answer = self._ask("", {"capabilities": {"alwaysMatch": wanted}})
            self._root += f"/{answer['sessionId']}"
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._ask("", method="DELETE")
        finally:
            self._end()

    def open(self, url: str) -> None:
        """Load a page; what the one before complained of is forgotten."""
        self._ask("/url", {"url": "about:blank"})
        self.complaints()
        self._ask("/url", {"url": url})

    def run(self, script: str) -> Any:
        """Run a function's body in the page and return what it returns."""
        return self._ask("/execute/sync", {"script": script, "args": []})

    def wait_for(self, script: str, wanted: Callable[[Any], bool] = bool) -> Any:
        """Run ``script`` until its answer is the wanted one; fails after a minute."""
        end = time.monotonic() + _ANSWER_S
        while not wanted(found := self.run(script)):
            assert time.monotonic() < end, f"{script}: {found!r}"
            time.sleep(0.05)
        return found

    def resize(self, width_px: int, height_px: int) -> None:
        """Give the window another size, px."""
        self._ask("/window/rect", {"width": width_px, "height": height_px})

    def picture(self) -> bytes:
        """Return the window as PNG."""
        return base64.b64decode(self._ask("/screenshot"))

    def complaints(self) -> list[str]:
        """Return what the page wrote to the console since the last call: errors, mostly."""
        return [line["message"] for line in self._ask("/se/log", {"type": "browser"})]

    def _ask(self, path: str, body: Any = None, method: str | None = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        request = Request(self._root + path, content, method=method)  # noqa: S310 - loopback
        with self._opener.open(request, timeout=_ANSWER_S) as answer:
            return json.loads(answer.read())["value"]

    def _end(self) -> None:
        self._driver.terminate()
        self._driver.communicate()
