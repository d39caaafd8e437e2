"""A process: its timer, its clock, and what becomes of it in a pause."""

from __future__ import annotations

import pytest

from blitzgw.gossip.events import LeaveRequested, PacketArrived
from blitzgw.sim.heap import EventHeap
from blitzgw.sim.process import INBOX_PACKETS, TICK_S
from tests.sim.sim_kit import Notes, address, packet, process


def arrived(seq: int) -> PacketArrived:
    return PacketArrived("other", address(9), packet(seq))


def test_a_deadline_is_kept_on_the_process_own_clock() -> None:
    heap, notes = EventHeap(), Notes()
    notes.due_s, notes.interval_s = 1000.5, 0.25
    process(heap, notes=notes, origin_s=1000.0)
    heap.run_until(1.1)
    assert [now for now, _ in notes.taken] == pytest.approx([1000.5, 1000.75, 1001.0])


def test_a_deadline_that_moves_ahead_is_kept_and_the_old_one_is_not() -> None:
    heap, notes = EventHeap(), Notes()
    notes.due_s = 5.0
    subject = process(heap, notes=notes)
    notes.due_s = 2.0
    subject.take(arrived(0))
    heap.run_until(9.0)
    assert [now for now, _ in notes.taken] == [0.0, 2.0]


def test_a_deadline_that_is_put_off_is_kept_late() -> None:
    heap, notes = EventHeap(), Notes()
    notes.due_s = 2.0
    process(heap, notes=notes)
    notes.due_s = 5.0
    heap.run_until(9.0)
    assert [now for now, _ in notes.taken] == [5.0]


def test_a_deadline_in_the_past_does_not_stop_the_time() -> None:
    heap, notes = EventHeap(), Notes()
    notes.due_s, notes.interval_s = 0.0, -1.0
    process(heap, notes=notes)
    heap.run_until(10 * TICK_S + TICK_S / 2)
    assert notes.kinds == ["TimePassed"] * 10


@pytest.mark.parametrize("timer_first", [True, False])
def test_a_paused_process_gets_everything_afterwards_in_order(timer_first: bool) -> None:
    heap, notes = EventHeap(), Notes()
    notes.due_s = 1.0
    subject = process(heap, notes=notes)
    subject.pause(2.0, timer_first=timer_first)
    for seq in range(3):
        subject.take(arrived(seq))
    heap.run_until(1.9)
    assert not notes.taken
    heap.run_until(9.0)
    packets = ["PacketArrived"] * 3
    assert notes.kinds == (["TimePassed", *packets] if timer_first else [*packets, "TimePassed"])
    assert {now for now, _ in notes.taken} == {2.0}
    order = [event.packet.seq for _, event in notes.taken if isinstance(event, PacketArrived)]
    assert order == [0, 1, 2]


def test_a_receive_buffer_overflows_but_loses_no_other_event() -> None:
    heap, notes = EventHeap(), Notes()
    subject = process(heap, notes=notes)
    subject.pause(1.0, timer_first=True)
    for seq in range(INBOX_PACKETS + 5):
        subject.take(arrived(seq))
    subject.take(LeaveRequested())
    heap.run_until(2.0)
    assert notes.kinds == ["PacketArrived"] * INBOX_PACKETS + ["LeaveRequested"]


def test_one_that_has_ended_does_nothing_any_more() -> None:
    heap, notes = EventHeap(), Notes()
    notes.due_s = 1.0
    subject = process(heap, notes=notes)
    subject.pause(0.5, timer_first=True)
    subject.take(arrived(0))
    subject.end()
    subject.take(arrived(1))
    heap.run_until(9.0)
    assert not notes.taken
