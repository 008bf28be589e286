"""Turns: work that runs in parallel but must be judged in the order of the frames."""

from __future__ import annotations

import threading


class Turns:
    """Lets the holder of ticket n pass only when tickets 0 to n-1 have passed or given up.

    Tickets must be taken up in ascending order, so that the oldest one never
    waits for anybody and the others wait only for it: no deadlock. Whoever
    waits is woken once, when it is his turn.
    """

    def __init__(self) -> None:
        self._next = 0
        self._passed: set[int] = set()
        self._waiting: dict[int, threading.Lock] = {}
        self._guard = threading.Lock()

    def wait(self, ticket: int) -> None:
        """Return when it is this ticket's turn; for its one holder."""
        with self._guard:
            if self._next >= ticket:
                return
            turn = self._waiting[ticket] = threading.Lock()
            turn.acquire()
        turn.acquire()

    def passed(self, ticket: int) -> None:
        """End the ticket's turn, had or not; a second call changes nothing."""
        with self._guard:
            if ticket < self._next:
                return
            self._passed.add(ticket)
            while self._next in self._passed:
                self._passed.remove(self._next)
                self._next += 1
            turn = self._waiting.pop(self._next, None)
        if turn is not None:
            turn.release()
