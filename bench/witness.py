"""A process that does nothing but wake up on time, and notes when the machine did not let it.

A simulated camera is a thread with a timer. Where that is late, either the program under
measurement held it up, or the machine did: a neighbour on the same host, say. The witness tells
which: it shares nothing with the program but the machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

PERIOD_S = 0.005
LATE_S = 0.005  # less is the kernel's usual slack on a busy machine
NEAR_S = 0.5  # time stamps of a record are of when its run began, to about this


class Witness:
    """Runs beside a measurement; what it saw is there when it has ended."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", "import witness; witness.wake_up_on_time()"]
        place = Path(__file__).parent
        self._child = subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE)
        self.late: list[tuple[float, float]] = []

    def __enter__(self) -> Witness:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.terminate()
        told, _ = self._child.communicate()
        self.late = [tuple(json.loads(line)) for line in told.splitlines()]

    def says_of(self, record: dict[str, Any], gap: dict[str, Any]) -> str:
        """Tell how late the witness itself was when a camera's record has a gap."""
        began = datetime.fromisoformat(record["started_at"]).timestamp()
        at = began + gap["before_frame"] * record["period_ms"] / 1000
        lost = sum(each["late_ms"] for each in record["gaps"]) / 1000  # the camera goes on later
        near = [s for when, s in self.late if at - NEAR_S <= when <= at + lost + NEAR_S]
        if not near:
            return "the machine was on time then"
        return f"the machine was late by {max(near) * 1000:.1f} ms then"

    def summary(self) -> str:
        """Say how often the machine was late, and by how much at most."""
        most = max((s for _, s in self.late), default=0.0)
        return f"{len(self.late)} times, at most {most * 1000:.1f} ms"


def wake_up_on_time() -> None:
    """Print when and by how much it was late, s, until it is ended."""
    due = time.monotonic() + PERIOD_S
    while True:
        time.sleep(max(0.0, due - time.monotonic()))
        late = time.monotonic() - due
        if late > LATE_S:
            print(json.dumps((time.time(), late)), flush=True)
        due = time.monotonic() + PERIOD_S
