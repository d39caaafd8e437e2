"""The worker and the road of the simulation: what they take is time, and nothing wrong passes."""

from __future__ import annotations

import pytest

from blitzgw.core.parcels import Parcel
from blitzgw.core.request import SamplingParams
from blitzgw.core.span import Span
from blitzgw.core.step import Import, NewSequence, Row, Send, Step, StepResult
from blitzgw.sim.liveworker import LAYER_S, Agenda, IdealRoad, IdealWorker, Work

LAYERS = 4


class Bench:
    """A worker with all layers but the last, and what it has finished, with the time."""

    def __init__(self) -> None:
        self.agenda = Agenda()
        self.ended: list[tuple[float, StepResult]] = []
        self.worker = IdealWorker(1, 0, LAYERS, self.agenda, self._note, resident=3)

    def _note(self, _step: Step, result: StepResult) -> None:
        self.ended.append((self.agenda.now, result))

    def run(self) -> None:
        while self.agenda.next():
            pass


def step(number: int, span: Span, *seqs: int, sample: bool = False, **more: object) -> Step:
    rows = tuple(Row(seq, 0, 16, sample) for seq in seqs)
    return Step(number, "i", span, rows, **more)


def new(*seqs: int) -> tuple[NewSequence, ...]:
    """Return sequences that stand for requests of ten times their number."""
    return tuple(
        NewSequence(seq, (1,), 1, 0, SamplingParams(max_tokens=1, seed=10 * seq)) for seq in seqs
    )


def test_equal_moments_go_by_rank_then_by_order() -> None:
    agenda, seen = Agenda(), []
    for moment, rank, name in ((2, 1, "c"), (2, 0, "a"), (2, 0, "b"), (1.5, 9, "first")):
        agenda.at(moment, rank, seen.append, name)
    while agenda.next():
        pass
    assert seen == ["first", "a", "b", "c"]
    assert agenda.now == 2
    assert not agenda.next()


def test_steps_go_one_after_another_and_cost_a_unit_for_each_layer_and_request() -> None:
    bench = Bench()
    bench.worker.post(step(1, Span(0, 2), 1, 2, new=new(1, 2)))
    bench.worker.post(step(2, Span(2, 3), 1))
    bench.worker.post(step(3, Span(0, 0)))
    bench.run()
    assert [(at, result.step) for at, result in bench.ended] == [(4, 1), (5, 2), (5, 3)]
    assert bench.ended[0][1].duration_s == pytest.approx(4 * LAYER_S)
    assert bench.worker.work == [
        Work(1, 10, Span(0, 2), 0, 4),
        Work(1, 20, Span(0, 2), 0, 4),
        Work(1, 10, Span(2, 3), 4, 5),
    ]


def test_rows_that_sample_give_a_token_each() -> None:
    bench = Bench()
    bench.worker.resident = LAYERS
    bench.worker.post(step(1, Span(0, 4), 1, 2, new=new(1, 2), sample=True))
    bench.run()
    assert bench.ended[0][1].tokens == (1, 1)


def test_a_layer_that_is_not_resident_is_not_run() -> None:
    bench = Bench()
    with pytest.raises(AssertionError, match="3 resident"):
        bench.worker.post(step(1, Span(0, 4), 1, new=new(1)))


@pytest.mark.parametrize("wrong", [Span(2, 3), Span(0, 1)])
def test_a_layer_is_neither_left_out_nor_run_twice(wrong: Span) -> None:
    bench = Bench()
    bench.worker.post(step(1, Span(0, 1), 1, new=new(1)))
    bench.run()
    with pytest.raises(AssertionError, match="request 10 is at layer 1"):
        bench.worker.post(step(2, wrong, 1))


def test_hidden_states_say_where_a_sequence_goes_on_and_kv_does_not() -> None:
    bench = Bench()
    bench.worker.take_in("road", Parcel(7, Span(2, 2), 0, 16))
    bench.worker.take_in("road", Parcel(7, Span(0, 1), 0, 16))
    imports = (Import("road", 7, 1),)
    bench.worker.post(step(1, Span(2, 3), 1, new=new(1), imports=imports))
    bench.run()
    assert [at for at, _ in bench.ended] == [1]


def test_dropped_parcels_cannot_be_imported() -> None:
    bench = Bench()
    bench.worker.take_in("road", Parcel(7, Span(2, 2), 0, 16))
    bench.worker.drop_parcels("road", (7,))
    with pytest.raises(AssertionError, match="at layer 0"):
        bench.worker.post(step(1, Span(2, 3), 1, new=new(1), imports=(Import("road", 7, 1),)))


class Carried:
    """A road, and what came off it when."""

    def __init__(self, units: float) -> None:
        self.agenda = Agenda()
        self.seen: list[tuple[float, str]] = []
        self.road = IdealRoad(self.agenda, units, self._arrived, self._sent)

    def _arrived(self, parcel: Parcel) -> None:
        what = "hidden" if parcel.is_hidden else f"kv{parcel.span.start}"
        self.seen.append((self.agenda.now, f"{parcel.ticket}:{what}"))

    def _sent(self, ticket: int) -> None:
        self.seen.append((self.agenda.now, f"{ticket}:sent"))

    def send(self, ticket: int, layers: int) -> None:
        self.road.send(Send("road", ticket, 1, Span(0, layers), 0, 16, hidden=layers > 0))

    def run(self) -> list[tuple[float, str]]:
        while self.agenda.next():
            pass
        return self.seen


def test_a_free_road_carries_everything_at_once() -> None:
    carried = Carried(0)
    carried.send(1, 2)
    assert [what for _, what in carried.seen] == ["1:hidden", "1:kv0", "1:kv1", "1:sent"]


def test_hidden_states_overtake_kv_that_has_not_begun() -> None:
    carried = Carried(2)
    carried.send(1, 2)
    carried.agenda.at(3, 0, carried.send, 2, 1)
    assert carried.run() == [
        (2, "1:hidden"),
        (4, "1:kv0"),
        (6, "2:hidden"),
        (8, "1:kv1"),
        (8, "1:sent"),
        (10, "2:kv0"),
        (10, "2:sent"),
    ]


def test_what_is_dropped_is_not_carried_and_frees_the_road() -> None:
    carried = Carried(1)
    carried.send(1, 3)
    carried.send(2, 1)
    carried.agenda.at(0.5, 0, carried.road.drop, (1,))
    assert carried.run() == [(2, "2:hidden"), (3, "2:kv0"), (3, "2:sent")]
