"""The table of an instance's states, and who is bound by it."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blitzgw.core.instance import InstanceState
from blitzgw.placement import Instance
from blitzgw.scaling.lifecycle import (
    BORN,
    DRAINING,
    GONE,
    KEPT,
    LOADING,
    REVIVABLE,
    SERVING,
    TRANSITIONS,
    check,
    illegal,
)

STATES = st.sampled_from(list(InstanceState))


def test_every_state_is_reached_and_only_the_last_is_for_ever():
    reached, left = {BORN}, {BORN}
    while left:
        former = left.pop()
        new = {state for start, state in TRANSITIONS if start is former} - reached
        reached |= new
        left |= new
    assert reached == set(InstanceState)
    assert {former for former, _ in TRANSITIONS} == set(InstanceState) - {GONE}
    assert all((state, GONE) in TRANSITIONS for state in set(InstanceState) - {GONE})
    assert {DRAINING, KEPT} == REVIVABLE


@pytest.mark.parametrize(
    ("former", "state", "legal"),
    [
        (LOADING, SERVING, True),
        (SERVING, DRAINING, True),
        (DRAINING, KEPT, True),
        (DRAINING, SERVING, True),
        (KEPT, SERVING, True),
        (KEPT, DRAINING, False),
        (KEPT, LOADING, False),
        (SERVING, KEPT, False),
        (LOADING, DRAINING, False),
        (LOADING, KEPT, False),
        (DRAINING, LOADING, False),
        (GONE, SERVING, False),
        (GONE, LOADING, False),
    ],
)
def test_the_table(former, state, legal):
    assert (illegal(former, state) == "") == legal
    if legal:
        check(former, state)
    else:
        with pytest.raises(AssertionError, match=f"from {former} to {state}"):
            check(former, state)


@given(STATES)
def test_to_stay_is_no_transition(state):
    assert illegal(state, state) == ""


@given(st.lists(STATES, max_size=8))
def test_a_slip_is_counted_and_does_what_it_says(states):
    logging.getLogger("blitzgw.placement").disabled = True
    try:
        instance = Instance(*_parts())
        wrong, now = [], BORN
        for state in states:
            if illegal(now, state):
                wrong.append(illegal(now, state))
            instance.move(state)
            now = state
            assert instance.state is state
        assert instance.slips == wrong
    finally:
        logging.getLogger("blitzgw.placement").disabled = False


def test_a_slip_is_logged_as_an_error(caplog):
    instance = Instance(*_parts())
    instance.move(KEPT)
    assert "illegal_transition instance=m@a/g0" in caplog.text
    assert caplog.records[0].levelno == logging.ERROR


def _parts():
    return SimpleNamespace(), SimpleNamespace(id="m@a/g0")
