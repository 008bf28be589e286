"""What happens to a service and its disk at random, and to runs that somebody gives up."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from soaking.lab import MIN_FREE_GIB, Lab
from soaking.writers import WRITERS, remove_tree

GIVEN_UP_FRAMES = (10, 120)


class Events:
    """Each method is one event; it returns when the event is over."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def kill(self) -> None:
        """SIGKILL, and a new start; the next kill may come before it is ready."""
        service, rng = self._lab.service, self._lab.rng
        service.end(signal.SIGKILL)
        time.sleep(rng.uniform(0, 1))
        service.start()
        if rng.random() < 0.8:
            service.wait_ready()

    def stop(self) -> None:
        """SIGTERM, a clean end, and a new start."""
        service = self._lab.service
        service.wait_ready()
        code = service.end(signal.SIGTERM)
        if code != 143:
            self._lab.broken.append(f"stopped by SIGTERM it ended with {code}, not 143")
        service.start()
        service.wait_ready()

    def reload(self) -> None:
        """SIGHUP with other settings: another number of bytes to be left free."""
        wanted = MIN_FREE_GIB if self._lab.rng.random() < 0.5 else 0.0
        self._lab.service.configure(min_free_gib=wanted)
        self._lab.service.reload()

    def reload_with_mistake(self) -> None:
        """SIGHUP with settings that are no good."""
        self._lab.service.configure(min_free_gib=MIN_FREE_GIB, sound=False)
        self._lab.service.reload()
        self._lab.service.configure(min_free_gib=MIN_FREE_GIB)

    def fill_nearly(self) -> None:
        """Leave less room on the small disk than is to be left, for a while."""
        self._fill(int(MIN_FREE_GIB * 2**29), self._lab.rng.uniform(3, 8))

    def fill(self) -> None:
        """Leave no room at all on the small disk, for a while."""
        self._fill(0, self._lab.rng.uniform(2, 8))

    def fill_and_kill(self) -> None:
        """Kill it while its disk is full."""
        self._fill(0, self._lab.rng.uniform(0, 3), self.kill)

    def give_up(self) -> None:
        """Write a run, and take it away while the service works on it."""
        lab = self._lab
        run = lab.plan(int(lab.rng.integers(*GIVEN_UP_FRAMES)), "plain")
        run.pauses_s = 0.0
        lab.given_up.append(run)
        WRITERS[run.kind](run)
        time.sleep(lab.rng.uniform(0.0, 3.0))
        if lab.rng.random() < 0.5:
            away = lab.folder / f"away_{run.name}"
            run.folder.rename(away)
            remove_tree(away)
        else:
            remove_tree(run.folder)

    def _fill(self, leave_bytes: int, for_s: float, then: Callable[[], None] | None = None) -> None:
        ballast = self._lab.b_out / ".ballast"
        there = os.statvfs(self._lab.b_out)
        with ballast.open("wb") as file:
            size = there.f_bavail * there.f_frsize - leave_bytes
            for _ in range(20):  # what others write meanwhile is not there to be taken
                try:
                    os.posix_fallocate(file.fileno(), 0, max(size, 1))
                    break
                except OSError:
                    size -= 1 << 18
        time.sleep(for_s)
        if then is not None:
            then()
        ballast.unlink()
