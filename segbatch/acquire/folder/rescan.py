"""A look through a tree, or a part of it, in slices: what no event told of is found here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from segbatch.acquire.folder.book import Book
from segbatch.acquire.folder.fingerprint import Fingerprint
from segbatch.acquire.folder.runs import Ended
from segbatch.acquire.folder.scan import Seen


class Rescan:
    """One look through a folder, and all below it unless it is not ``deep``.

    A run that is over, or whose results say so, is only summed up; it is
    opened again where the sum is another. In an open run every file is noted.

    Parameters
    ----------
    results
        Gives the fingerprint that the results of a run on the disk answer for.
    reopened
        Told of each run that is to be looked through once more, file by file.
    on_error
        Told of folders, with the error or None; returns whether files may be hidden by it.

    Attributes
    ----------
    spent_s
        Seconds of work so far.
    """

    def __init__(
        self,
        book: Book,
        folder: str,
        *,
        deep: bool,
        results: Callable[[str], str | None],
        reopened: Callable[[str], None],
        on_error: Callable[[str, OSError | None], bool],
    ) -> None:
        self.spent_s = 0.0
        self._book, self._folder, self._deep = book, folder, deep
        self._results, self._reopened, self._on_error = results, reopened, on_error
        self._walk = book.rules.walk(folder, self._hear, deep=deep)
        self._hidden: list[str] = []  # folders that could not be read
        self._begun: set[str] = set()
        self._here = ""  # the folder whose run is known
        self._run = ""
        self._names: set[str] = set()
        self._total: Fingerprint | None = None
        self._claim: str | None = None

    def go_on(self, until: float) -> bool:
        """Work until a moment is reached; return whether the end was."""
        started = time.monotonic()
        try:
            for folder, seen in self._walk:
                if seen is not None:
                    self._take(folder, seen)
                if time.monotonic() >= until:
                    return False
            self._end_run()
            self._end()
            return True
        finally:
            self.spent_s += time.monotonic() - started

    def _hear(self, folder: str, error: OSError | None) -> None:
        if self._on_error(folder, error):
            self._hidden.append(folder)

    def _take(self, folder: str, seen: Seen) -> None:
        if folder != self._here:
            self._here, run = folder, self._book.rules.run_of(folder)
            if run != self._run:
                self._end_run()
                self._begin_run(run)
        name = seen.path[len(self._run) :].lstrip(os.sep)
        if self._total is not None:
            self._total.add(name.replace(os.sep, "/"), seen.size, seen.mtime_ns)
            return
        known = self._book.runs.get(self._run)
        if known is not None:  # it may have been released meanwhile
            self._names.add(name)
            self._book.note(known, seen)

    def _begin_run(self, run: str) -> None:
        self._run, self._names, self._total = run, set(), None
        self._begun.add(run)
        if run in self._book.runs:
            return
        ended = self._book.ended.get(run)
        self._claim = ended.fingerprint if ended is not None else self._results(run)
        if self._claim is None:
            self._book.open(run)
        else:
            self._total = Fingerprint()

    def _end_run(self) -> None:
        run, known = self._run, self._book.runs.get(self._run)
        self._run = self._here = ""
        if self._total is None:
            if known is not None and self._covers(run):
                self._book.forget_missing(known, self._names)
        elif known is None and str(self._total) == self._claim:
            self._book.ended[run] = Ended(str(self._total), time.monotonic())
        elif known is None:
            self._book.open(run)
            self._reopened(run)

    def _covers(self, run: str) -> bool:
        """Tell whether all files of a run were seen."""
        if run != self._folder and not (self._deep and _lies_in(run, self._folder)):
            return False
        return not any(_lies_in(folder, run) or _lies_in(run, folder) for folder in self._hidden)

    def _end(self) -> None:
        """Forget runs that have no files any more."""
        for run, known in list(self._book.runs.items()):
            if run not in self._begun and self._covers(run):
                self._book.forget_missing(known, set())
        if self._deep and self._folder == self._book.rules.root and not self._hidden:
            for run in self._book.ended.keys() - self._begun:
                del self._book.ended[run]


def _lies_in(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith(outer.rstrip(os.sep) + os.sep)
