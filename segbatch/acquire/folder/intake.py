"""One watched tree: what has arrived in it and is complete, handed over once.

Hints say where to look at once; a rescan of the whole tree, now and then,
finds all that no hint told of. What is known of files is kept only while their
run is open; of a run that is over, a fingerprint remains.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from segbatch.acquire.folder.book import Book
from segbatch.acquire.folder.fingerprint import Fingerprint, fingerprint_of_results
from segbatch.acquire.folder.hints import MAX_HINTS, Hints, watches_are_exhausted
from segbatch.acquire.folder.mounts import mount_of
from segbatch.acquire.folder.rescan import Rescan
from segbatch.acquire.folder.runs import Arrival
from segbatch.acquire.folder.scan import Rules
from segbatch.acquire.naming import natural_key
from segbatch.log import get_logger

__all__ = ["Arrival", "Intake"]

_SLICE_S = 0.1  # for each kind of work within one ``take``
_RESCAN_SHARE = 20  # a rescan takes at most one part in so many of the time
_logger = get_logger(__name__)


class Intake:
    """One watched tree. One loop calls it; of its plain attributes any thread may ask.

    Parameters
    ----------
    root
        The folder; it may be missing, and come and go.
    run_depth
        Folders this many levels below ``root`` are the runs, each with all
        below it; a file higher up belongs to a run of the folder it lies in.
    settle_s
        Quiet time of files whose format does not say when it is complete.
    rescan_s
        Time between two rescans; longer where they take long.
    wake
        Called from another thread when there is something to do.
    exclude
        Folders of the tree in which nothing is input.
    out
        Folder that mirrors the tree for results, None: they lie beside the raw
        files. Nothing in it is input either.
    """

    def __init__(
        self,
        root: Path,
        *,
        run_depth: int,
        settle_s: float,
        rescan_s: float,
        wake: Callable[[], None],
        exclude: tuple[Path, ...] = (),
        out: Path | None = None,
    ) -> None:
        self.root = root
        self.observer = "none"
        self.why = ""
        self.pending = 0
        self.error: str | None = None
        self.unreadable = ""
        self._out = root if out is None else out
        self._settle_s, self._rescan_s, self._wake = settle_s, rescan_s, wake
        self._rules = Rules(root, run_depth, exclude if out is None else (*exclude, out))
        self._book = Book(self._rules, settle_s)
        self._hints: Hints | None = None
        self._identity: tuple[int, int] | None = None
        self._lies_on = ""
        self._listed: dict[str, str] = {}  # fingerprints of what ``raws`` returned last
        self._rescan: Rescan | None = None
        self._rescan_at = 0.0
        self._rescan_again = False  # what is under way may have passed by something
        self._was_looked_through = False
        self._polls_later = False  # the observer waits for the end of the first rescan
        self._check: Rescan | None = None
        # Folders that are to be looked through (with all below them, or not), and when.
        self._checks: dict[tuple[str, bool], float] = {}
        self._unreadable: set[str] = set()

    def start(self) -> None:
        """Begin to watch; what is there already is found by the first ``take``.

        Returns at once: ``observer`` is ``none`` until the observer is at work,
        and then the tree is looked through once more.
        """
        self._rescan_at = time.monotonic()
        self._find_root()

    def stop(self) -> None:
        """Stop watching; does not wait for a look of the observer that is under way."""
        if self._hints is not None:
            self._hints.stop()
            self._hints = None
        self.observer, self._polls_later = "none", False

    def take(self, limit: int) -> list[Arrival]:
        """Return up to ``limit`` arrivals, in natural order within a run.

        Does the work that is due, but no more than a fraction of a second of
        it: where more is left, ``due_in_s`` is 0.
        """
        self._follow_hints()
        self._scan()
        self._book.look_at_due(time.monotonic() + _SLICE_S)
        arrivals = list(self._book.ready.take(limit))
        self.pending = self._book.pending
        return arrivals

    @property
    def due_in_s(self) -> float:
        """Seconds until ``take`` has something to do, unless it is woken before."""
        scans = self._rescan is not None or self._check is not None
        hinted = self._hints is not None and (self._hints.has_some or self._has_new_observer)
        if scans or hinted or len(self._book.ready):
            return 0.0
        moments = (self._rescan_at, self._book.due_at, *self._checks.values())
        return max(0.0, min(moments) - time.monotonic())

    def runs(self) -> list[Path]:
        """Return the runs that are known and not released, oldest first."""
        return [Path(run) for run in self._book.runs]

    def quiet_s(self, run: Path) -> float:
        """Return the seconds since a file of the run appeared, changed or was handed over."""
        known = self._book.runs.get(str(run))
        return math.inf if known is None else time.monotonic() - known.changed_at

    def raws(self, run: Path) -> list[Path]:
        """Return all raw files of the run that are on the disk now, in natural order.

        One that is new, or another than it was, is taken note of: after this,
        ``quiet_s`` knows of all that is returned.
        """
        folder = str(run)
        total, paths = Fingerprint(), []
        deep = self._rules.is_within_run(folder)
        known = self._book.runs.get(folder)
        for _, seen in self._rules.walk(folder, self._hear, deep=deep):
            if seen is not None:
                if known is not None:
                    self._book.note(known, seen)
                path = Path(seen.path)
                total.add(path.relative_to(run).as_posix(), seen.size, seen.mtime_ns)
                paths.append(path)
        self._listed[folder] = str(total)
        return sorted(paths, key=lambda path: natural_key(path.relative_to(run)))

    def fingerprint(self, run: Path) -> str:
        """Return the fingerprint of what ``raws`` returned last for this run."""
        if str(run) not in self._listed:
            self.raws(run)
        return self._listed[str(run)]

    def release(self, run: Path) -> str:
        """Forget the files of a run that is over; return the fingerprint that is kept.

        It is that of what ``raws`` returned last: a file that came or changed
        since then opens the run again, and so does every later change.
        """
        kept = self.fingerprint(run)
        del self._listed[str(run)]
        self._book.end(str(run), kept)
        self._check_run(str(run))
        return kept

    def again(self, raw: Path) -> None:
        """Hand a file over again, once it is complete and has been quiet anew."""
        run = self._book.runs.get(self._rules.run_of(str(raw.parent)))
        seen = self._rules.raw_at(str(raw))
        if run is not None and seen is not None:
            self._book.wait_for(run, seen, needs_quiet=True)

    def _follow_hints(self) -> None:
        if self._hints is not None and self._has_new_observer:
            self._begin_to_listen(self._hints)
        if self._hints is None or not self._hints.has_some:
            return
        touched = self._hints.take()
        if touched.lost:
            self._rescan_now()
        for path, renamed in touched.files.items():
            seen = self._rules.raw_at(path)
            if seen is None:
                continue
            folder = os.path.dirname(path)  # noqa: PTH120
            run = self._book.runs.get(self._rules.run_of(folder))
            if run is not None:
                self._book.note(run, seen, renamed=renamed)
                continue
            if renamed:
                if len(self._book.renamed) >= MAX_HINTS:  # their files went away again
                    self._book.renamed.clear()
                self._book.renamed.add(path)
            self._check_run(self._rules.run_of(folder))
        for folder in filter(self._rules.is_open, touched.folders):
            run_folder = self._rules.run_of(folder)
            if self._rules.is_within_run(folder) and run_folder not in self._book.runs:
                self._check_run(run_folder)
            else:
                self._check_soon(folder, deep=True)

    def _check_run(self, run: str) -> None:
        """Look through a run that is not open: what is open is known file by file."""
        ended = self._book.ended.get(run)
        at = 0.0 if ended is None else ended.compared_at + self._settle_s
        self._check_soon(run, deep=self._rules.is_within_run(run), at=at)

    def _check_soon(self, folder: str, *, deep: bool, at: float = 0.0) -> None:
        above = [folder, *map(str, Path(folder).parents)] if deep else [folder]
        if not any((place, True) in self._checks for place in above):
            self._checks.setdefault((folder, deep), max(at, time.monotonic()))

    def _find_root(self) -> bool:
        """Say whether the root is there, and watch it (again) where that is to be done."""
        try:
            status = self.root.stat()
            with os.scandir(self.root):
                pass
        except OSError as error:
            text = f"{self.root}: {error.strerror or error}"
            if text != self.error:
                _logger.warning("watched folder cannot be read; it is tried again", error=text)
            self.error = text
            self.stop()
            return False
        if self.error is not None:
            _logger.info("watched folder is back", folder=str(self.root))
            self.error = None
        identity = (status.st_dev, status.st_ino)
        if identity != self._identity:
            self._identity = identity
            self.stop()
        if self._hints is None or not self._hints.is_alive:
            self._watch()
        elif self.observer == "inotify":
            self._warn_of_exhausted_watches()
        return True

    def _watch(self) -> None:
        """Have the observer started that suits the file system."""
        self.stop()
        mount = mount_of(self.root)
        kind = mount.observer if mount is not None else "native"
        self._lies_on = (
            f"{mount.file_system} at {mount.point}" if mount is not None else "no table of mounts"
        )
        self.why = self.why or self._lies_on
        self._polls_later = kind == "polling" and not self._was_looked_through
        if self._polls_later:  # else it would look at every file of runs that are over
            return
        self._hints = Hints(
            self.root,
            kind,
            polled_s=self._settle_s,
            entries=self._polled,
            is_image=self._rules.has_image_name,
            wake=self._wake,
        )
        self._hints.start()

    @property
    def _has_new_observer(self) -> bool:
        """Whether an observer has been started, or could not be, and nothing was made of it yet."""
        return self.observer == "none" and self._hints is not None and self._hints.is_settled

    def _begin_to_listen(self, hints: Hints) -> None:
        if hints.refused:
            self.why = f"{self._lies_on}; {hints.refused}"
            self.stop()
            return
        self.observer, self.why = hints.kind, self._lies_on
        _logger.info(
            "watching", folder=str(self.root), observer=self.observer, file_system=self.why
        )
        if self.observer == "inotify":
            self._warn_of_exhausted_watches()
        self._rescan_now()  # for what came while it was being started

    def _rescan_now(self) -> None:
        """Look through the whole tree at once, or once more after the look that is under way."""
        self._rescan_at = min(self._rescan_at, time.monotonic())
        self._rescan_again = self._rescan is not None

    def _warn_of_exhausted_watches(self) -> None:
        told = "; the limit of watches is reached: raise fs.inotify.max_user_watches (sysctl)"
        if not watches_are_exhausted(self.root):
            self.why = self.why.removesuffix(told)
        elif not self.why.endswith(told):
            self.why += told
            _logger.warning(
                "not every folder can be watched: the others are rescanned",
                folder=str(self.root),
                remedy="raise fs.inotify.max_user_watches (sysctl), or watch fewer folders",
            )

    def _polled(self, folder: str) -> Iterator[os.DirEntry[str]]:
        """Yield what the polling observer keeps in memory: nothing of runs that are over."""
        ended = self._rules.run_of(folder) in self._book.ended
        if ended and self._rules.is_within_run(folder):
            return iter(())
        return self._rules.entries(folder, without_files=ended)

    def _scan(self) -> None:
        """Go on with checks of folders, then with the rescan of the whole tree."""
        until = time.monotonic() + _SLICE_S / 2
        while time.monotonic() < until and self._has_check():
            if self._check is not None and self._check.go_on(until):
                self._check = None
        if self._rescan is None and time.monotonic() >= self._rescan_at:
            if not self._find_root():
                self._rescan_at = time.monotonic() + self._rescan_s
                return
            self._rescan = self._look_through(str(self.root), deep=True)
        if self._rescan is not None and self._rescan.go_on(time.monotonic() + _SLICE_S / 2):
            self._end_rescan(self._rescan)

    def _end_rescan(self, rescan: Rescan) -> None:
        pause_s = max(self._rescan_s, _RESCAN_SHARE * rescan.spent_s)
        self._rescan_at = time.monotonic() + (0.0 if self._rescan_again else pause_s)
        self._rescan, self._rescan_again, self._was_looked_through = None, False, True
        gone = {folder for folder in self._unreadable if not os.path.lexists(folder)}
        if gone:
            self._unreadable -= gone
            self._tell_unreadable()
        if self._polls_later:
            self._watch()

    def _has_check(self) -> bool:
        if self._check is None:
            now = time.monotonic()
            due = next((check for check, at in self._checks.items() if at <= now), None)
            if due is None:
                return False
            del self._checks[due]
            self._check = self._look_through(due[0], deep=due[1])
        return True

    def _look_through(self, folder: str, *, deep: bool) -> Rescan:
        return Rescan(
            self._book,
            folder,
            deep=deep,
            results=self._results_of,
            reopened=self._check_run,
            on_error=self._hear,
        )

    def _results_of(self, run: str) -> str | None:
        return fingerprint_of_results(self._out / Path(run).relative_to(self.root))

    def _hear(self, folder: str, error: OSError | None) -> bool:
        """Warn once of a folder that cannot be read; return whether it may hide files."""
        if error is None:
            if folder in self._unreadable:
                self._unreadable.discard(folder)
                self._tell_unreadable()
            return False
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return folder == str(self.root)  # others were removed, and so are their files
        if folder not in self._unreadable and len(self._unreadable) < MAX_HINTS:
            self._unreadable.add(folder)
            _logger.warning("folder left out", folder=folder, error=error.strerror or str(error))
            self._tell_unreadable()
        return True

    def _tell_unreadable(self) -> None:
        some, others = next(iter(self._unreadable), ""), len(self._unreadable) - 1
        more = f", and {others} more" * (others > 0)
        self.unreadable = f"cannot be read: {some}{more}" if some else ""
