"""A day of frames in minutes: writers, kills, full disks and clean-ups; nothing may be lost.

    python bench/soak.py [--frames 40000] [--seed 1] [--folder FOLDER]

``segbatch serve`` watches two trees, one with its results beside the raw files, one with them on
a small disk of its own, while programs of many kinds write runs into them. In the first part
(30 % of the frames) the service is killed and started again at random; then one process lives to
the end, and is measured from when it is warm. Each run is checked frame by frame before it is
cleaned away. Ends with 1 where a promise is broken. Linux; needs the ``dev`` extra. The disk is
filled only where a tmpfs can be mounted (root, or user namespaces).
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import machine
from soaking.cost import cost_of
from soaking.events import Events
from soaking.lab import MIN_FREE_GIB, Lab
from soaking.table import Findings, promises_broken, show
from soaking.writers import WRITERS

# Parts of all frames, those in which one process gets warm after those in which it is killed.
KILLED_PART, WARMING_PART = 0.3, 0.1
CALM_FRAMES = 1000  # at the start and at the end, whose cost is compared
INSIDE = "SOAK_HAS_MOUNTS_OF_ITS_OWN"


def soak(lab: Lab, frames: int) -> int:
    """Run all of it, print the table and return the exit code."""
    began, calm = time.monotonic(), min(CALM_FRAMES, frames // 10)
    events, service = Events(lab), lab.service
    fills = {events.fill: 3.0, events.fill_nearly: 3.0} if lab.small_disk else {}
    deaths: dict[Callable[[], None], float] = {events.kill: 8, events.stop: 1, events.give_up: 2}
    deaths |= {event: 1.0 for event in (*fills, events.fill_and_kill) if fills}

    def say(what: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s: {lab.frames} frames, {what}", flush=True)

    service.start()
    service.wait_ready()
    lab.storm(lab.plan_many(int(KILLED_PART * frames)), deaths)
    service.wait_ready()
    lab.rest()
    service.end(signal.SIGTERM)
    say("the part with kills is over")

    service.configure(min_free_gib=MIN_FREE_GIB)
    service.start()
    service.wait_ready()
    starts, before, given_up_before = service.starts, lab.frames, len(lab.given_up)
    harms = {events.reload: 3.0, events.reload_with_mistake: 1.0, events.give_up: 2.0, **fills}
    warming = int(WARMING_PART * frames)
    each_kind = [lab.plan(warming // 2 // len(WRITERS), kind) for kind in WRITERS]
    lab.storm(each_kind + lab.plan_many(warming // 2), harms)
    lab.rest()
    first = cost_of(lab, calm)
    shares, vitals = [lab.rest()], [service.vitals()]
    say("warm")
    left = frames - lab.frames - calm
    for part in (left // 2, left - left // 2):
        lab.storm(lab.plan_many(part), harms)
        shares.append(lab.rest())
        vitals.append(service.vitals())
        say("half of the rest is through")
    last = cost_of(lab, calm)
    lab.rest()
    status = service.status() or {}
    if service.starts != starts or not service.is_alive:
        lab.broken.append("the process that was to live did not")
    code = service.end(signal.SIGTERM)
    if code != 143:
        lab.broken.append(f"at the end it stopped with {code}, not 143")
    lab.look_around()
    found = Findings(
        took_s=time.monotonic() - began,
        lived=lab.frames - before,
        given_up=sum(len(run.written) for run in lab.given_up[given_up_before:]),
        counted=sum(status.get("frames", {}).values()),
        costs=(first, last),
        shares=shares,
        vitals=vitals,
    )
    broken = promises_broken(lab, found, frames)
    show(lab, found, broken)
    return 1 if broken else 0


def has_small_disks() -> bool:
    """Go on in a mount namespace of this run alone; return whether it can mount a tmpfs there."""
    if INSIDE in os.environ:
        return True
    inside = ["unshare", "--mount", "--propagation", "private"]
    inside += [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    mount = ["mount", "-t", "tmpfs", "tmpfs", tempfile.gettempdir()]  # seen inside only
    try:
        trial = subprocess.run([*inside, *mount], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        why = str(error)
    else:
        if trial.returncode == 0:
            os.environ[INSIDE] = "1"
            os.execvp("unshare", [*inside, sys.executable, *sys.argv])  # noqa: S606
        why = trial.stderr.strip()
    print(f"no tmpfs can be mounted here, so no disk is filled: {why}", flush=True)
    return False


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the trees go, and are removed from")
    given = parser.parse_args()
    small_disk = has_small_disks()
    for number in (signal.SIGTERM, signal.SIGINT):  # the service ends with this process
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    for line in machine.describe():
        print(line, flush=True)
    with tempfile.TemporaryDirectory(
        prefix="segbatch-soak-", dir=given.folder, ignore_cleanup_errors=True
    ) as name:
        lab = Lab(Path(name).resolve(), given.seed, small_disk=small_disk)
        try:
            return soak(lab, given.frames)
        finally:
            lab.close()


if __name__ == "__main__":
    sys.exit(main())
