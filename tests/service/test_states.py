"""The states of the service."""

from __future__ import annotations

import itertools

import pytest

from segbatch.service.monitor.status import STATES
from segbatch.service.runner.states import EDGES, State, StateMachine

WAYS = {
    State.STARTING: [],
    State.RUNNING: [State.RUNNING],
    State.PAUSED: [State.RUNNING, State.PAUSED],
    State.RELOADING: [State.RUNNING, State.RELOADING],
    State.DRAINING: [State.DRAINING],
    State.STOPPED: [State.DRAINING, State.STOPPED],
}


def machine_in(state: State) -> StateMachine:
    """Return a machine that was led to a state."""
    machine = StateMachine()
    for step in WAYS[state]:
        machine.go(step)
    return machine


@pytest.mark.parametrize(("start", "end"), list(itertools.product(State, State)))
def test_every_edge_is_taken_or_refused_as_the_table_says(start: State, end: State) -> None:
    """A state is entered from those that the table names, and from no other."""
    machine = machine_in(start)

    if end is start:
        assert not machine.go(end, "again")
        assert machine.status.why == "again"
    elif end in EDGES[start]:
        assert machine.go(end, "why")
        assert (machine.status.state, machine.status.why) == (end, "why")
    else:
        with pytest.raises(ValueError, match=f"no way from {start} to {end}"):
            machine.go(end)
        assert machine.status.state is start


def test_every_state_can_be_reached_and_left_but_the_last() -> None:
    """Each state but the first is entered from somewhere, and each but the last is left."""
    assert set().union(*EDGES.values()) == set(State) - {State.STARTING}
    assert [state for state in State if not EDGES[state]] == [State.STOPPED]


def test_the_status_is_frozen() -> None:
    """A status that was handed out does not change when the service goes on."""
    machine = machine_in(State.RUNNING)
    before = machine.status
    machine.go(State.PAUSED, "the disk is full")

    assert (before.state, before.why) == (State.RUNNING, "")
    with pytest.raises(AttributeError):
        before.why = "another"  # type: ignore[misc]


def test_the_pages_know_every_state() -> None:
    """The states that pages and metrics tell of are those of the service."""
    assert set(STATES) == {state.value for state in State}
