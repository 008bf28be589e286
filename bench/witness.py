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
NEAR_S = 1.0  # a record tells the time of its images to about this


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
        began, ended = (
            datetime.fromisoformat(record[name]).timestamp() for name in ("started_at", "ended_at")
        )
        # Not by the period, which is a median: over minutes the camera is seconds behind it.
        at = began + gap["before_frame"] * (ended - began) / record["taken"]
        near = [s for when, s in self.late if at - NEAR_S <= when <= at + NEAR_S]
        return f"the witness was late by {max(near, default=0.0) * 1000:.1f} ms then, at most"

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
