"""One watched tree: its intake, its runs that still grow, and what went wrong in it."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from segbatch import log
from segbatch.acquire.folder.intake import Intake
from segbatch.errors import EngineError, StorageError, UsageError
from segbatch.service.live import LiveRun
from segbatch.service.monitor.status import FolderStatus
from segbatch.service.process import Process
from segbatch.service.record.atomic import make_folder
from segbatch.service.record.lock import FolderLock, folder_lock
from segbatch.service.selection import Selection
from segbatch.settings.sections import ServeSettings, WatchSettings

ARRIVALS_AT_ONCE = 256
MOST_WAITING = 2000  # files of a tree that are known to be complete; others wait on the disk
RETRY_S, MAX_RETRY_S = 5.0, 300.0
SPACE_EVERY_S = 1.0
LOCK_EVERY_S = 1.0
_logger = log.get_logger(__name__)


@dataclass(slots=True)
class Trouble:
    """What went wrong with a run or a tree, and when it is tried again."""

    why: str = ""
    retry_at: float = 0.0
    pause_s: float = RETRY_S

    @property
    def is_over(self) -> bool:
        """Whether it is time to try again."""
        return time.monotonic() >= self.retry_at

    def grow(self, why: str) -> None:
        """Note what went wrong, again or anew: the next try comes later than the last."""
        self.why = why
        self.retry_at = time.monotonic() + self.pause_s
        self.pause_s = min(2 * self.pause_s, MAX_RETRY_S)


class Tree:
    """One watched tree.

    A fault of the tree (it is gone, or somebody else holds it) or of one run
    in it (a folder without permission, a full disk) is told and tried again
    with growing pauses; it never reaches the other runs and trees.
    """

    def __init__(
        self,
        watch: WatchSettings,
        serve: ServeSettings,
        process: Process,
        wake: Callable[[], None],
    ) -> None:
        self.root = Path(watch.path)
        self.out = Path(watch.out) if watch.out else self.root
        self._watch, self._serve, self._process, self._wake = watch, serve, process, wake
        self._intake: Intake | None = None
        self._held = ExitStack()
        self._lock: FolderLock | None = None
        self._lock_at = float("-inf")
        self._lives: dict[Path, LiveRun] = {}
        # A run that the crew is at work on is let go of when the crew is through.
        self._at_work: Path | None = None
        self._postponed: list[Callable[[], object]] = []
        self._trouble = Trouble()
        self._troubles: dict[Path, Trouble] = {}
        self._free_bytes: int | None = None
        self._free_at = float("-inf")
        self._was_short = False

    def look(self) -> None:
        """Take what has arrived; open the tree first where that is due."""
        self._tell_of_space()
        if self._intake is None:
            if self._trouble.is_over:
                self._open()
            return
        for run in [run for run, trouble in self._troubles.items() if trouble.is_over]:
            if self._troubles[run].retry_at:
                self._troubles[run].retry_at = 0.0
                for raw in self._intake.raws(run):
                    self._intake.again(raw)
        room = max(0, MOST_WAITING - self.backlog)
        for arrival in self._intake.take(min(room, ARRIVALS_AT_ONCE)):
            if self._is_in_trouble(arrival.run):
                continue  # all of the run's files are asked for when it is tried again
            with self._faults_of(arrival.run):
                self._live(arrival.run).add([arrival])

    def work(self, enough: Callable[[], bool], meanwhile: Callable[[], None]) -> bool:
        """Work on the run that waits longest; return whether there was one.

        Raises
        ------
        EngineError
            The engine cannot be used any more.
        """
        if self._intake is None or self.is_short_of_space:
            return False
        run = next((run for run, live in self._lives.items() if live.backlog), None)
        if run is None:
            return False
        live = self._lives.pop(run)
        self._lives[run] = live  # behind the others
        self._at_work = run
        try:
            with self._faults_of(run):
                for raw in live.work(lambda: bool(self._postponed) or enough(), meanwhile):
                    self._intake.again(raw)
                if not self._postponed:
                    self._troubles.pop(run, None)
                    self._trouble = Trouble()
        finally:
            self._at_work = None
            postponed, self._postponed = self._postponed, []
            for act in postponed:
                act()
        return True

    def settle(self) -> bool:
        """End a run that has been quiet for long enough; return whether there was one.

        Raises
        ------
        EngineError
            The engine cannot be used any more.
        """
        if self._intake is None:
            return False
        if self._is_another_folder():
            _logger.warning("another folder stands in its place; begun anew", folder=str(self.out))
            self.close()
            return True
        self._forget_what_went(self._intake)
        if self.is_short_of_space:
            return False
        run = next((run for run in self._intake.runs() if self._is_over(run)), None)
        if run is None:
            return False
        with self._faults_of(run):
            self._end(run, self._intake)
        return True

    @property
    def due_in_s(self) -> float:
        """Seconds until there is something to do, unless something happens before."""
        now = time.monotonic()
        if self._intake is None:
            return max(0.0, self._trouble.retry_at - now)
        # Where enough wait already, those that arrived are not asked for.
        due = [self._intake.due_in_s] if self.backlog < MOST_WAITING else []
        due += [t.retry_at - now for t in self._troubles.values() if t.retry_at]
        if not self.is_short_of_space:  # else runs that are over wait for room
            due += [
                self._serve.run_quiet_s - self._intake.quiet_s(run)
                for run in self._intake.runs()
                if not self._is_in_trouble(run)
            ]
        return max(0.0, min(due, default=math.inf))

    @property
    def backlog(self) -> int:
        """Complete files with frames that wait to be worked on."""
        return sum(live.backlog for live in list(self._lives.values()))

    @property
    def runs_waiting(self) -> int:
        """Runs with frames that wait to be worked on."""
        return sum(live.backlog > 0 for live in list(self._lives.values()))

    @property
    def is_short_of_space(self) -> bool:
        """Whether the disk of the results has less room than is to be left."""
        free = self.free_bytes
        return free is not None and free < self._serve.min_free_gib * 2**30

    def _tell_of_space(self) -> None:
        short = self.is_short_of_space
        if short and not self._was_short:
            least = f"less than {self._serve.min_free_gib:g} GiB left for {self.out}"
            _logger.error("folder paused", folder=str(self.root), why=least)
        elif self._was_short and not short:
            _logger.info("folder goes on: there is room again", folder=str(self.root))
            for trouble in self._troubles.values():  # perhaps it was the lack of room
                trouble.retry_at = min(trouble.retry_at, time.monotonic())
        self._was_short = short

    @property
    def free_bytes(self) -> int | None:
        """Room on the disk of the results; None where that cannot be told."""
        if time.monotonic() - self._free_at > SPACE_EVERY_S:
            self._free_at = time.monotonic()
            try:
                self._free_bytes = shutil.disk_usage(self.out).free
            except OSError:
                self._free_bytes = None
        return self._free_bytes

    def status(self) -> FolderStatus:
        """Return what is to be said of the tree; any thread may ask."""
        intake = self._intake
        troubles = [self._trouble.why, *(t.why for t in list(self._troubles.values()))]
        if intake is not None:
            troubles += [intake.error or "", intake.unreadable]
        short = self.is_short_of_space
        if short:
            room = f"less than {self._serve.min_free_gib:g} GiB left for {self.out}"
            troubles.append(f"paused: {room}")
        return FolderStatus(
            path=str(self.root),
            observer=intake.observer if intake is not None else "none",
            why=intake.why if intake is not None else "",
            pending=intake.pending if intake is not None else 0,
            backlog=self.backlog,
            runs_open=len(self._lives),
            takes_in=intake is not None and not intake.error and not short,
            error="; ".join(filter(None, troubles)) or None,
            disk_free_bytes=self.free_bytes,
        )

    def begin_anew(self, error: Exception) -> None:
        """Close the tree after an error that nobody foresaw, and open it again after a pause."""
        self._trouble.grow(f"unexpected {type(error).__name__}: {error}")
        if self._at_work is None:
            self.close()
        else:
            self._postponed.append(self.close)

    def close(self) -> int:
        """Let go of everything; return how many complete files are left for the next start."""
        left = self.backlog
        for run in list(self._lives):
            self._let_go(run)
        self._troubles.clear()
        if self._intake is not None:
            self._intake.stop()
            self._intake = None
        self._held.close()
        self._lock = None
        return left

    def _open(self) -> None:
        try:
            if self.out != self.root:
                make_folder(self.out)
            elif not self.root.is_dir():
                is_there = "no folder" if self.root.exists() else "not there"
                raise StorageError(
                    f"{self.root} is {is_there}", "a folder to watch", "make it, or mount its disk"
                )
            self._lock = self._held.enter_context(folder_lock(self.out, below=False))
        except StorageError as error:
            if str(error) != self._trouble.why:
                _logger.error("folder in trouble", folder=str(self.root), why=str(error))
            self._trouble.grow(str(error))
            return
        self._intake = Intake(
            self.root,
            run_depth=self._watch.run_depth,
            settle_s=self._serve.settle_s,
            rescan_s=self._serve.rescan_s,
            wake=self._wake,
            out=self.out if self.out != self.root else None,
        )
        self._intake.start()
        self._trouble.why = ""

    def _live(self, run: Path) -> LiveRun:
        if run not in self._lives:
            self._require_free(run)
            self._lives[run] = self._process.live(run, self._out_of(run))
        return self._lives[run]

    def _require_free(self, run: Path) -> None:
        """Make sure that nobody processes a run since before this tree was held."""
        if self._lock is not None:
            deep = len(run.relative_to(self.root).parts) >= self._watch.run_depth
            self._lock.require_free(self._out_of(run), deep=deep)

    def _is_another_folder(self) -> bool:
        """Whether the folder that is held is not the one of that name, as after a new mount."""
        if self._lock is None or time.monotonic() - self._lock_at < LOCK_EVERY_S:
            return False
        self._lock_at = time.monotonic()
        return not self._lock.stands

    def _out_of(self, run: Path) -> Path:
        return self.out / run.relative_to(self.root)

    def _is_over(self, run: Path) -> bool:
        live = self._lives.get(run)
        waits = live is not None and live.backlog
        quiet = self._intake is not None and self._intake.quiet_s(run) >= self._serve.run_quiet_s
        return quiet and not waits and not self._is_in_trouble(run)

    def _end(self, run: Path, intake: Intake) -> None:
        """Judge a run as a whole and write its run files, as ``segbatch process`` would."""
        raws = intake.raws(run)
        if intake.quiet_s(run) < self._serve.run_quiet_s:
            return  # something came that no hint had told of
        self._let_go(run)
        if raws:
            self._require_free(run)
            report = self._process.run_locked(Selection(root=run, raws=raws, out=self._out_of(run)))
            if report.state != "complete":
                return
            _logger.info(
                "run is over",
                folder=report.folder,
                frames=report.counts.frames,
                segmented=report.counts.segmented,
                rejected=report.counts.rejected,
                failed=report.counts.failed,
                verdicts_changed=report.this_run["verdicts_changed"],
            )
        self._troubles.pop(run, None)
        intake.release(run)

    def _forget_what_went(self, intake: Intake) -> None:
        """Let go of runs that somebody took away before they were over."""
        there = set(intake.runs())
        for run in self._lives.keys() - there:
            self._let_go(run)
        for run in self._troubles.keys() - there:
            del self._troubles[run]

    def _is_in_trouble(self, run: Path) -> bool:
        return run in self._troubles and not self._troubles[run].is_over

    @contextmanager
    def _faults_of(self, run: Path) -> Iterator[None]:
        """Begin a run anew after a pause where it fails: the disk says what is left to do.

        An error that nobody foresaw costs no more than that either.
        """
        try:
            yield
        except EngineError:
            raise
        except Exception as error:
            foreseen = isinstance(error, StorageError | UsageError)
            why = str(error) if foreseen else f"unexpected {type(error).__name__}: {error}"
            trouble = self._troubles.setdefault(run, Trouble())
            if not foreseen:
                _logger.exception("unexpected error", folder=str(run))
            elif why != trouble.why:
                _logger.error("run in trouble", folder=str(run), why=why)
            trouble.grow(why)
            if run != self._at_work:
                self._let_go(run)
            else:
                self._postponed.append(partial(self._let_go, run))

    def _let_go(self, run: Path) -> None:
        """Close a run; what was recorded stays."""
        live = self._lives.pop(run, None)
        if live is not None:
            try:
                live.close()
            except OSError as error:  # some shares tell only now what they could not write
                _logger.error("not closed in order", folder=str(run), why=str(error))
