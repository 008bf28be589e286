"""The states of the service and the ways between them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """What the service does at a moment.

    ``paused``: it waits for room on a disk. ``draining``: frames under way are
    finished, nothing more is begun.
    """

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    RELOADING = "reloading"
    DRAINING = "draining"
    STOPPED = "stopped"


EDGES: dict[State, frozenset[State]] = {
    State.STARTING: frozenset({State.RUNNING, State.DRAINING}),
    State.RUNNING: frozenset({State.PAUSED, State.RELOADING, State.DRAINING}),
    State.PAUSED: frozenset({State.RUNNING, State.RELOADING, State.DRAINING}),
    State.RELOADING: frozenset({State.RUNNING, State.DRAINING}),
    State.DRAINING: frozenset({State.STOPPED}),
    State.STOPPED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Status:
    """The state at one moment, and for people why it is not ``running``."""

    state: State
    why: str = ""


class StateMachine:
    """Holds the state; any thread may read it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._status = Status(State.STARTING)

    @property
    def status(self) -> Status:
        """The state now."""
        with self._guard:
            return self._status

    def go(self, state: State, why: str = "") -> bool:
        """Enter a state; return whether that is a change.

        Raises
        ------
        ValueError
            There is no way from the present state to that one.
        """
        with self._guard:
            before = self._status
            if state is not before.state and state not in EDGES[before.state]:
                raise ValueError(f"no way from {before.state} to {state}")
            self._status = Status(state, why)
            return state is not before.state
