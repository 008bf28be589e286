"""The runs of one tree and their files: what is new, what is waited for, what is ready."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

from segbatch.acquire.folder.complete import Candidate, Oracle
from segbatch.acquire.folder.runs import Arrival, Due, Ended, Ready, Run
from segbatch.acquire.folder.scan import Rules, Seen
from segbatch.acquire.sidefiles import forget_side_files


class Book:
    """Takes note of files as they are seen, and looks at them until they are complete.

    Attributes
    ----------
    runs
        Open runs, by their folders.
    ended
        Released runs.
    ready
        What waits to be handed over.
    renamed
        Files that were renamed into place before their run was known.
    """

    def __init__(self, rules: Rules, settle_s: float) -> None:
        self.rules = rules
        self.runs: dict[str, Run] = {}
        self.ended: dict[str, Ended] = {}
        self.ready = Ready()
        self.renamed: set[str] = set()
        self._settle_s = settle_s
        self._oracle = Oracle(settle_s)
        self._due = Due()

    @property
    def due_at(self) -> float:
        """When a file is to be looked at next (seconds, monotonic)."""
        return self._due.first_at

    @property
    def pending(self) -> int:
        """Files that were seen, and not handed over at all."""
        waiting = (file for run in self.runs.values() for file in run.waiting.values())
        return len(self.ready) + sum(file.reported == 0 for file in waiting)

    def open(self, folder: str) -> None:
        """Begin to know the files of a run."""
        self.ended.pop(folder, None)
        self.runs[folder] = Run(folder, time.monotonic())

    def end(self, folder: str, fingerprint: str) -> None:
        """Forget the files of a run."""
        self.runs.pop(folder, None)
        self.ready.discard(folder)
        self.ended[folder] = Ended(fingerprint, time.monotonic())
        forget_side_files(Path(folder))

    def note(self, run: Run, seen: Seen, *, renamed: bool = False) -> None:
        """Take note of a file of an open run, as it was just seen."""
        name = run.name(seen.path)
        taken = run.taken.get(name)
        if taken is not None:
            if taken != (seen.size, seen.mtime_ns):
                self.wait_for(run, seen, needs_quiet=True)
            return
        file = run.waiting.get(name)
        if file is None:
            self.wait_for(run, seen, renamed=renamed or seen.path in self.renamed)
            self.renamed.discard(seen.path)
        elif file.seen != seen or renamed:
            now = time.monotonic()
            if file.seen != seen:
                file.change(seen, now)
                run.changed_at = now
            file.renamed = renamed
            self._due.add(run, name, file, now)

    def wait_for(
        self, run: Run, seen: Seen, *, needs_quiet: bool = False, renamed: bool = False
    ) -> None:
        """Hand a file over once it is complete; see ``Candidate`` for what is told of it."""
        name, now = run.name(seen.path), time.monotonic()
        self._forget(run, name)
        file = Candidate(seen, now, renamed=renamed, needs_quiet=needs_quiet)
        run.waiting[name] = file
        run.changed_at = now
        self._due.add(run, name, file, now)

    def look_at_due(self, until: float) -> None:
        """Look at the files that are due, until a moment is reached."""
        while (now := time.monotonic()) < until:
            due = self._due.next(now)
            if due is None:
                return
            run, name, file = due
            again_in_s = self._look_at(run, name, file, now)
            if again_in_s is not None:
                self._due.add(run, name, file, now + again_in_s)

    def forget_missing(self, run: Run, present: set[str]) -> None:
        """Forget the files of a run that are gone; ``present`` were just seen."""
        if not os.path.isdir(self.rules.root):  # noqa: PTH112
            return  # the whole tree is gone, and may come back as it was
        for name in run.names:
            if name not in present and not os.path.lexists(os.path.join(run.folder, name)):  # noqa: PTH118
                self._forget(run, name)
        self._close_if_empty(run)

    def _look_at(self, run: Run, name: str, file: Candidate, now: float) -> float | None:
        """Return when to look again, None for never."""
        try:
            status = os.stat(file.seen.path)  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            if not os.path.isdir(self.rules.root):  # noqa: PTH112
                return self._settle_s
            self._forget(run, name)
            self._close_if_empty(run)
            return None
        except OSError:  # a share that does not answer for a while
            return self._settle_s
        if (status.st_size, status.st_mtime_ns) != (file.seen.size, file.seen.mtime_ns):
            file.change(Seen(file.seen.path, status.st_size, status.st_mtime_ns), now)
        finding = self._oracle.judge(file, now)
        run.changed_at = max(run.changed_at, file.since)
        if not finding.complete:
            return finding.again_in_s
        if not stat.S_ISREG(status.st_mode) or not self.rules.is_still_raw(file.seen):
            self._forget(run, name)
            return None
        run.changed_at = now
        file.reported = finding.frames or 0
        size, mtime_ns = file.seen.size, file.seen.mtime_ns
        arrival = Arrival(
            Path(file.seen.path), Path(run.folder), finding.frames, finding.closed, size, mtime_ns
        )
        self.ready.put(run.folder, name, arrival)
        if not finding.closed:
            return finding.again_in_s
        del run.waiting[name]
        run.taken[name] = (size, mtime_ns)
        return None

    def _forget(self, run: Run, name: str) -> None:
        run.taken.pop(name, None)
        run.waiting.pop(name, None)
        self.ready.discard(run.folder, name)

    def _close_if_empty(self, run: Run) -> None:
        if not run.taken and not run.waiting:
            self.runs.pop(run.folder, None)
