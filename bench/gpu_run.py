"""One part of ``gpu.py`` after the other, each in a process of its own, within a budget of time.

A part writes down what it has found each time that it has found something, so that what ends it
(an error, a fault of a native library, its time) loses nothing of before. Time that a part does
not take is there for the parts after it; one that has little measures fewer rounds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NETWORKS = ("large", "shipped")
LEAST_S = 10.0  # that is kept back for each part to come
LOUDEST = 600  # characters of what a part that failed said


@dataclass(frozen=True)
class Part:
    """A part of the measurement: its name, its arguments, its share of the time."""

    name: str
    arguments: tuple[str, ...]
    share: float


class Notes:
    """What a part has found so far, in a file that is whole at any time."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.found: dict[str, Any] = {}

    def put(self, **found: Any) -> None:
        """Note more; ``doing`` names what is tried next, and is blamed if the process dies."""
        self.found |= found
        scratch = self._file.with_suffix(".part")
        scratch.write_text(json.dumps(self.found, indent=1), encoding="utf-8")
        scratch.replace(self._file)

    def attempt(self, what: str, action: Callable[[], Any]) -> Any:
        """Return what ``action`` returns; where it fails, note why and return None."""
        self.put(doing=what)
        try:
            return action()
        except Exception as error:  # noqa: BLE001 - whatever it is must not cost the rest
            said = " ".join(f"{type(error).__name__}: {error}".split())[:LOUDEST]
            self.put(failed={**self.found.get("failed", {}), what: said})
            print(f"  {what} failed: {said}", file=sys.stderr, flush=True)
            return None


class Rounds:
    """Rounds of measurement within a part's time: at least ``fewest``, at most ``most``."""

    def __init__(self, seconds: float, fewest: int, most: int) -> None:
        self._until = time.monotonic() + seconds
        self._fewest, self._most = fewest, most
        self.done = 0
        self._began = time.monotonic()

    def another(self) -> bool:
        """Tell whether there is time for one more round, as long as those before."""
        now = time.monotonic()
        if self.done == 0:
            self._began = now
        each = (now - self._began) / self.done if self.done else 0.0
        if self.done >= self._most or (self.done >= self._fewest and now + each > self._until):
            return False
        self.done += 1
        return True


def run_all(
    parts: list[Part],
    work: Path,
    seconds: float,
    keep: Callable[[dict[str, dict[str, Any]]], None],
) -> None:
    """Run every part, and after each give ``keep`` what it found, by its name.

    ``outcome`` of what was found says in words how the part ended, ``took_s`` how long it took.
    """
    until = time.monotonic() + seconds
    for at, part in enumerate(parts):
        later = parts[at + 1 :]
        left = until - time.monotonic()
        fair = left * part.share / (part.share + sum(each.share for each in later))
        longest = max(LEAST_S, left - LEAST_S * len(later))
        print(f"{part.name}: {fair:.0f} s", file=sys.stderr, flush=True)
        found = run_part(part, work, max(fair, 1.0), min(2 * fair + LEAST_S, longest))
        print(f"  {found['outcome']}", file=sys.stderr, flush=True)
        keep({part.name: found})


def run_part(part: Part, work: Path, seconds: float, longest: float) -> dict[str, Any]:
    """Run one part; it is told of ``seconds``, and ended after ``longest``."""
    file = work / f"{part.name}.json"
    command = [sys.executable, *part.arguments, "--seconds", f"{seconds:.1f}", "--notes", str(file)]
    started = time.monotonic()
    # A session of its own, so that what a part started ends with it.
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        try:
            _, said = running.communicate(timeout=longest)
            ended = running.returncode
        except subprocess.TimeoutExpired:
            _end(running.pid)
            _, said = running.communicate()
            ended = None
    found: dict[str, Any] = {}
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
    found["outcome"] = _outcome(ended, found.pop("doing", "it began"), said, longest)
    found["took_s"] = round(time.monotonic() - started, 1)
    return found


def _end(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def _outcome(ended: int | None, doing: str, said: str, longest: float) -> str:
    if ended == 0:
        return "done"
    if ended is None:
        return f"ended after {longest:.0f} s, while: {doing}"
    lines = [line for line in said.splitlines() if line.strip()]
    last = " ".join(lines[-1].split())[:LOUDEST] if lines else "nothing"
    if ended < 0:
        return f"died of {signal.Signals(-ended).name}, while: {doing}; said last: {last}"
    return f"ended with exit code {ended}, while: {doing}; said last: {last}"
