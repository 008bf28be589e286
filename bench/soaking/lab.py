"""The lab around the service: its trees, its writers, its clean-up, and what it found wrong."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from soaking.check import files_in, is_over, look_through
from soaking.frames import Album, Run
from soaking.service import TIMES_S, Service
from soaking.writers import WRITERS, remove_tree

LEAD = 2000  # frames that writers may be ahead
WRITERS_AT_ONCE, OPEN_RUNS = 4, 12
RUN_FRAMES = (20, 1500)
LEFT_PART = 0.15  # of the runs with results beside their frames stay for good
DISK_MIB = 256
MIN_FREE_GIB = 16 / 1024
PATIENCE_S = 900.0  # among kills on a slow machine little is done
REST_S = 10.0
PAUSE_S = (0.2, 3.0)  # between two events


class Lab:
    """Two watched trees and what happens in them.

    Tree ``a`` has its results beside the frames. Those of tree ``b`` go to
    ``b_out``, a small disk of its own where ``small_disk`` says that one can be mounted.
    """

    def __init__(self, folder: Path, seed: int, *, small_disk: bool) -> None:
        self.folder, self.small_disk = folder, small_disk
        self.rng = np.random.default_rng(seed)
        self.a, self.b, self.b_out = folder / "a", folder / "b", folder / "b_out"
        for place in (self.a, self.b, self.b_out):
            place.mkdir()
        if small_disk:
            size = f"size={DISK_MIB}m"
            subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", self.b_out], check=True)
        self.album = Album(folder / "album", seed)
        self.service = Service(folder / "service", [(self.a, self.a), (self.b, self.b_out)])
        self.service.configure(min_free_gib=MIN_FREE_GIB)
        self.broken: list[str] = []
        self.done: Counter[str] = Counter()
        self.frames = 0
        self.left: list[Run] = []
        self.given_up: list[Run] = []
        self.hushed = threading.Event()  # nobody asks the service anything
        self._seed = seed
        self._runs = 0
        self._waiting = 0
        self._guard = threading.Lock()
        self._open = threading.Semaphore(OPEN_RUNS)
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def close(self) -> None:
        """End all that is under way, and unmount the small disk."""
        self._ended.set()
        self._watcher.join()
        if self.service.is_alive:
            self.service.end(signal.SIGKILL)
        if self.small_disk:
            subprocess.run(["umount", self.b_out], check=True)

    def plan(self, frames: int, kind: str | None = None, root: Path | None = None) -> Run:
        """Return a run with so many frames, of some kind in some tree where none is named."""
        self._runs += 1
        if kind is None:
            kind = str(self.rng.choice(list(WRITERS)))
        if root is None:
            root = self.a if self.rng.random() < 0.5 else self.b
        return Run(
            name=f"run_{self._runs:04d}",
            kind=kind,
            root=root,
            out=self.b_out if root == self.b else root,
            frames=frames,
            rng=np.random.default_rng([self._seed, self._runs]),
            album=self.album,
            gate=self._wait_for_room,
            pauses_s=2 * TIMES_S["run_quiet_s"] if self.rng.random() < 0.2 else 0.0,
        )

    def plan_many(self, frames: int) -> list[Run]:
        """Return runs of random sizes, in the given number of frames together."""
        runs, (least, most) = [], RUN_FRAMES
        while frames > 0:
            count = int(least * (most / least) ** self.rng.random())
            runs.append(self.plan(min(count, frames)))
            frames -= runs[-1].frames
        return runs

    def storm(self, runs: list[Run], events: Mapping[Callable[[], None], float]) -> None:
        """Have runs written, checked and cleaned away, while events happen at random.

        ``events`` says how often each happens, relative to the others.
        """
        acts, weights = list(events), np.array(list(events.values()))
        with ThreadPoolExecutor(WRITERS_AT_ONCE) as writers, ThreadPoolExecutor(OPEN_RUNS) as rest:
            jobs: list[Future[Future[None]]] = [
                writers.submit(self._write, run, rest) for run in runs
            ]
            try:
                while not all(job.done() for job in jobs):
                    time.sleep(self.rng.uniform(*PAUSE_S))
                    act = acts[self.rng.choice(len(acts), p=weights / weights.sum())]
                    act()
                    self.done[act.__name__] += 1
            except BaseException:
                self._ended.set()  # so that nobody waits for what will not come
                raise
            for job in jobs:
                job.result().result()

    def check(self, run: Run, *, counts: bool = True) -> None:
        """Wait until a run is over and look through its results."""
        until = time.monotonic() + PATIENCE_S
        while not is_over(run):
            if time.monotonic() > until or self._ended.is_set():
                waits_for = f"{self._what_is_left()}; {self.service.said_of(run.name)}"
                self._complain(
                    f"{run.name} ({run.kind}): not over after {PATIENCE_S:.0f} s: {waits_for}"
                )
                break
            time.sleep(0.5)
        for trial in range(3):
            outcomes: Counter[str] = Counter()
            wrong = look_through(run, outcomes)
            if not wrong:
                break
            time.sleep(2.0 * (trial + 1))  # verdicts of the last frames may be under the pen
        with self._guard:
            self.broken += wrong
            if counts:
                self.frames += len(run.written)
                self.done[f"runs: {run.kind}"] += 1
                self.done.update({f"frames {name}": count for name, count in outcomes.items()})

    def rest(self) -> float:
        """Wait until nothing is left to do; return the part of a core that is used then."""
        until = time.monotonic() + PATIENCE_S
        while (left := self._what_is_left()) and time.monotonic() < until:
            time.sleep(0.5)
        if left:
            self._complain(f"never at rest: {left}")
        for run in self.given_up:
            remove_tree(run.results)
        self.hushed.set()
        time.sleep(2 * TIMES_S["rescan_s"])
        before, start = self.service.cpu_s(), time.monotonic()
        time.sleep(REST_S)
        share = (self.service.cpu_s() - before) / (time.monotonic() - start)
        self.hushed.clear()
        return share

    def look_around(self) -> None:
        """Look through the runs that were left, and for what should not lie in the trees."""
        for run in self.left:
            self.broken += look_through(run, Counter())
        left = {run.name for run in self.left}
        for tree, stays in ((self.a, left), (self.b, set()), (self.b_out, set())):
            self.broken += [
                f"{tree.name}/{path.name} came back"
                for path in tree.iterdir()
                if path.name not in stays
            ]
        hidden = [n for n in files_in(self.a, self.b, self.b_out) if Path(n).name[0] == "."]
        self.broken += [f"{name}: a hidden file was left" for name in hidden]

    def _what_is_left(self) -> str:
        """Say what the service still has to do, or is troubled by; nothing: an empty text."""
        status = self.service.status()
        if status is None:
            return "no answer"
        said = [f"{status['backlog']} files waiting"] if status["backlog"] else []
        for folder in status["folders"]:
            name = Path(folder["path"]).name
            said += [f"{folder['runs_open']} open runs in {name}"] if folder["runs_open"] else []
            said += [f"{name}: {folder['error']}"] if folder["error"] else []
        return ", ".join(said)

    def _watch(self) -> None:
        """Ask the service again and again how much waits, until all is over."""
        while not self._ended.wait(1.0):
            status = None if self.hushed.is_set() else self.service.status()
            if status is not None:
                with self._guard:
                    self._waiting = status["backlog"]

    def _wait_for_room(self) -> None:
        """Let a writer wait while too many frames wait; end it where all has ended."""
        while self._waiting >= LEAD and not self._ended.is_set():
            time.sleep(0.05)
        if self._ended.is_set():
            raise InterruptedError("the soak was stopped")
        with self._guard:
            self._waiting += 1

    def _write(self, run: Run, rest: ThreadPoolExecutor) -> Future[None]:
        self._open.acquire()
        WRITERS[run.kind](run)
        return rest.submit(self._see_off, run)

    def _see_off(self, run: Run) -> None:
        """Wait until a run is over, look through its results, and clean it away."""
        self.check(run)
        self._clean_up(run)
        self._open.release()

    def _clean_up(self, run: Run) -> None:
        """Leave a run, move it away in one go, or delete it file by file."""
        if run.root == run.out and run.rng.random() < LEFT_PART:
            self.left.append(run)
            return
        if run.rng.random() < 0.5:
            away = self.folder / f"away_{run.name}"
            run.folder.rename(away)
            remove_tree(away)
            self._note("runs moved away")
        else:
            remove_tree(run.folder)
            self._note("runs deleted")
        remove_tree(run.results)

    def _note(self, what: str) -> None:
        with self._guard:
            self.done[what] += 1

    def _complain(self, of: str) -> None:
        with self._guard:
            self.broken.append(of)
