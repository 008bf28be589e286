"""What a frame costs: processor time of a service, beside a fresh one on the same frames."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from soaking.lab import Lab
from soaking.service import Service
from soaking.writers import WRITERS, remove_tree

ROUNDS = 5


@dataclass(frozen=True)
class Cost:
    """Processor time of a frame (ms), user and system, round by round.

    ``lived`` is that of the service that lives through the day, ``fresh`` that of one
    that has just begun: what the machine makes of the same work at the same time.
    """

    lived: list[float]
    fresh: list[float]

    @property
    def relative(self) -> float:
        """Of the one that lives, in units of the fresh one's: the median of the rounds."""
        return median(lived / fresh for lived, fresh in zip(self.lived, self.fresh, strict=True))


def cost_of(lab: Lab, frames: int) -> Cost:
    """Give plain frames and nothing else to the service, and the same to a fresh one, in turns."""
    shares = [len(part) for part in np.array_split(np.arange(frames), ROUNDS)]
    place = lab.folder / f"fresh_{lab.frames}"
    place.mkdir()
    tree = place / "tree"
    tree.mkdir()
    fresh = Service(place / "service", [(tree, tree)])
    fresh.configure(min_free_gib=0)
    lived_ms, fresh_ms = [], []
    lab.hushed.set()
    fresh.start()
    try:
        fresh.wait_ready()
        _round(lab, fresh, tree, shares[0], ROUNDS)  # to warm it up
        for number, share in enumerate(shares):
            lived_ms.append(_round(lab, lab.service, lab.a, share, number))
            fresh_ms.append(_round(lab, fresh, tree, share, number))
    finally:
        code = fresh.end(signal.SIGTERM)
        lab.hushed.clear()
    if code != 143:
        lab.broken.append(f"the fresh service ended with {code}, not 143")
    lab.broken += fresh.faults
    remove_tree(place)
    return Cost(lived_ms, fresh_ms)


def _round(lab: Lab, service: Service, root: Path, frames: int, number: int) -> float:
    """Have one run processed; return the processor time of a frame, ms."""
    before = service.cpu_s()
    run = lab.plan(frames, "renamed", root)
    run.rng = np.random.default_rng(number)  # the same frames each time
    run.gate = lambda: None
    WRITERS[run.kind](run)
    lab.check(run, counts=service is lab.service)
    remove_tree(run.folder)
    return 1e3 * (service.cpu_s() - before) / frames
