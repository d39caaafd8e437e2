"""Exchanges of anti-entropy: three messages, and every way to fail."""

from __future__ import annotations

import random

import pytest

from blitzgw.core.rumours import SyncAnswer, SyncOffer, SyncRest, Update
from blitzgw.gossip.events import (
    AnswerSync,
    FinishSync,
    StartSync,
    SyncAnswered,
    SyncFailed,
    SyncFinished,
    SyncOffered,
)
from blitzgw.sim.network import Cut, Network
from blitzgw.sim.streams import HANDSHAKE_BYTES, MAX_BEGUN, MAX_TAKEN, TIMEOUT_S
from tests.sim.sim_kit import Wires, address

OFFER, ANSWER = SyncOffer((), ()), SyncAnswer((), (), ())
REST = SyncRest((Update("boot0", "load/x", 1, bytes(5000)),))
START = StartSync(7, address(1), OFFER)


def begin(network: Network | None = None) -> Wires:
    wires = Wires(network or Network(random.Random("streams")))
    initiator, responder = wires.notes
    responder.answers[SyncOffered] = [AnswerSync(1, ANSWER)]
    initiator.answers[SyncAnswered] = [FinishSync(7, REST)]
    return wires


def start(wires: Wires) -> None:
    wires.streams.start(wires.processes[0], START)


def test_three_messages_take_two_round_trips_and_one_way() -> None:
    wires = begin()
    start(wires)
    wires.heap.run_until(60.0)
    initiator, responder = wires.notes
    assert initiator.kinds == ["SyncAnswered"]
    assert initiator.taken[0][1] == SyncAnswered(7, "boot1", ANSWER)
    assert [event for _, event in responder.taken] == [SyncOffered(1, OFFER), SyncFinished(1, REST)]
    assert 5 * 0.0002 < responder.taken[1][0] < 0.02


def test_bytes_count_at_their_senders() -> None:
    wires = begin()
    start(wires)
    wires.heap.run_until(60.0)
    sent = [process.traffic.sync_bytes for process in wires.processes]
    assert sent[0] > HANDSHAKE_BYTES + 5000 + 4 * 52
    assert 20 < sent[1] < 120
    assert [process.traffic.syncs for process in wires.processes] == [1, 0]


def test_nobody_listening_refuses_at_once() -> None:
    wires = begin()
    wires.processes[1].end()
    start(wires)
    wires.heap.run_until(60.0)
    ((failed_s, event),) = wires.notes[0].taken
    assert event == SyncFailed(7, address(1))
    assert failed_s < 0.1


def test_a_host_that_is_off_makes_it_time_out() -> None:
    wires = begin()
    wires.processes[1].end()
    wires.off = True
    start(wires)
    wires.heap.run_until(60.0)
    assert wires.notes[0].taken == [(TIMEOUT_S, SyncFailed(7, address(1)))]


@pytest.mark.parametrize("source", [0, 1])
def test_a_cut_in_either_direction_makes_it_time_out(source: int) -> None:
    wires = begin(network := Network(random.Random("streams")))
    network.add(Cut(frozenset([address(source)]), frozenset([address(1 - source)])))
    start(wires)
    wires.heap.run_until(60.0)
    assert wires.notes[0].taken == [(TIMEOUT_S, SyncFailed(7, address(1)))]
    assert not wires.notes[1].taken


def test_a_responder_that_does_not_answer_makes_it_time_out_once() -> None:
    wires = begin()
    wires.notes[1].answers.clear()
    start(wires)
    wires.heap.run_until(60.0)
    assert wires.notes[0].taken == [(TIMEOUT_S, SyncFailed(7, address(1)))]
    wires.streams.answer(wires.processes[1], AnswerSync(1, ANSWER))  # too late
    wires.heap.run_until(120.0)
    assert len(wires.notes[0].taken) == 1


def test_an_initiator_that_has_ended_hears_nothing() -> None:
    wires = begin()
    start(wires)
    wires.processes[0].end()
    wires.heap.run_until(60.0)
    assert not wires.notes[0].taken
    assert wires.notes[1].kinds == ["SyncOffered"]


def test_a_responder_whose_process_ends_resets_the_connection() -> None:
    wires = begin()
    start(wires)
    while not wires.processes[0].traffic.syncs:
        wires.heap.run_until(wires.heap.now + 0.0001)
    wires.processes[1].end()
    wires.heap.run_until(60.0)
    ((failed_s, event),) = wires.notes[0].taken
    assert event == SyncFailed(7, address(1))
    assert failed_s < 0.1


def test_a_process_answers_and_begins_a_bounded_number_at_a_time() -> None:
    wires = begin()
    wires.notes[1].answers.clear()  # so that all stay open
    for number in range(MAX_BEGUN + 1):
        wires.streams.start(wires.processes[0], StartSync(number, address(1), OFFER))
    wires.heap.run_until(1.0)
    assert wires.notes[1].kinds == ["SyncOffered"] * MAX_TAKEN
    failed = [event.exchange for _, event in wires.notes[0].taken if isinstance(event, SyncFailed)]
    assert failed[0] == MAX_BEGUN  # not even tried
    assert len(failed) == MAX_BEGUN + 1 - MAX_TAKEN
    wires.heap.run_until(60.0)
    start(wires)  # there is room again
    wires.heap.run_until(61.0)
    assert wires.notes[1].kinds == ["SyncOffered"] * (MAX_TAKEN + 1)
