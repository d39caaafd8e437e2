"""Virtual time: order, ties, and where a run ends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from blitzgw.sim.heap import EventHeap


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5]), max_size=30))
def test_events_happen_by_moment_and_equal_ones_by_insertion(moments: list[float]) -> None:
    heap, happened = EventHeap(), []
    for order, moment_s in enumerate(moments):
        heap.at(moment_s, lambda *entry: happened.append(entry), moment_s, order)
    heap.run_until(2.0)
    assert happened == sorted(happened)
    assert len(happened) == len(moments) == heap.handled
    assert len(heap) == 0


def test_a_run_ends_at_its_moment_even_without_events() -> None:
    heap, happened = EventHeap(), []
    heap.after(1.0, happened.append, "due")
    heap.after(1.1, happened.append, "later")
    assert not heap.run_until(1.0)
    assert (heap.now, happened) == (1.0, ["due"])
    heap.run_until(5.0)
    assert (heap.now, happened) == (5.0, ["due", "later"])


def test_what_an_event_causes_happens_in_the_same_run() -> None:
    heap, happened = EventHeap(), []

    def chain(left: int) -> None:
        happened.append(heap.now)
        if left:
            heap.after(0.25, chain, left - 1)

    heap.after(0.0, chain, 3)
    heap.run_until(10.0)
    assert happened == [0.0, 0.25, 0.5, 0.75]


def test_the_past_means_now() -> None:
    heap, happened = EventHeap(), []
    heap.run_until(3.0)
    heap.at(1.0, lambda: happened.append(heap.now))
    heap.run_until(3.0)
    assert happened == [3.0]


def test_a_condition_ends_a_run_after_the_event_that_made_it_true() -> None:
    heap, happened = EventHeap(), []
    for moment_s in (1.0, 2.0, 3.0):
        heap.at(moment_s, happened.append, moment_s)
    assert heap.run_until(9.0, lambda: len(happened) == 2)
    assert (heap.now, happened) == (2.0, [1.0, 2.0])
    assert heap.run_until(9.0, lambda: True)
    assert heap.now == 2.0
