"""What becomes of an instance: the legal transitions of its state, as a table.

      ┌──────────────── begun anew ───────────────┐
      ▼                                           │
    loading ──► serving ──► draining ──► kept     │        (all: ──► gone)
                 │  ▲ ▲         │          │      │
                 │  │ └─revived─┘          │      │
                 │  └───────revived────────┘      │
                 └────────────────────────────────┘

An instance computes what it is asked while it is loading (live scaling), serving or draining. Only
one that serves is given new requests. Each state has less than the one before it: draining has no
new requests, kept no requests at all but weights and KV memory yet, gone nothing. So an instance
goes back from draining and kept to serving without a byte being moved, and from gone never: what
comes after that is another instance, which may have the same name. Nothing is kept that has not
drained, and nothing drains that does not serve: an instance that is not complete is dropped.

A worker that dies takes all with it. The instances that its node is to have begin anew with the
next worker; those that were about to go are gone.

Whoever sets a state asks `illegal` first. An illegal transition is a mistake of the program. The
state is set all the same, because it says what has happened; it is logged as an error, and
`check_integrity` raises for it (placement.py, device.py).
"""

from __future__ import annotations

from blitzgw.core.instance import InstanceState

LOADING, SERVING = InstanceState.LOADING, InstanceState.SERVING
DRAINING, KEPT, GONE = InstanceState.DRAINING, InstanceState.KEPT, InstanceState.GONE

BORN = LOADING
"""The first state of every instance."""

TRANSITIONS: dict[tuple[InstanceState, InstanceState], str] = {
    (LOADING, SERVING): "its weights are complete and its engine is warm",
    (LOADING, GONE): "it cannot be loaded, or is not wanted any more",
    (SERVING, DRAINING): "it is told to go",
    (SERVING, LOADING): "its worker has died, and it begins anew with the next one",
    (SERVING, GONE): "its device is taken away",
    (DRAINING, SERVING): "it is wanted again before it was gone",
    (DRAINING, KEPT): "it has finished or moved all that it had",
    (DRAINING, GONE): "it has drained and is not to be kept, or its worker has died",
    (KEPT, SERVING): "it is wanted again",
    (KEPT, GONE): "its time is over, its device is for another, or its worker has died",
}
"""Each transition that there is, and what brings it about. To stay what it is is none."""

REVIVABLE = frozenset(former for former, state in TRANSITIONS if state is SERVING) - {LOADING}
"""States in which an instance has all that it needs to serve, and does not."""


def illegal(former: InstanceState, state: InstanceState) -> str:
    """Return what is wrong with a transition, empty where nothing is."""
    if former is state or (former, state) in TRANSITIONS:
        return ""
    return f"an instance cannot go from {former} to {state}"


def check(former: InstanceState, state: InstanceState) -> None:
    """Raise AssertionError for a transition that is not in the table."""
    wrong = illegal(former, state)
    assert not wrong, wrong
