from __future__ import annotations

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.core.request import FinishReason, Logprobs, TokenEvent
from blitzgw.gossip.outbox import EVENT_BYTES, Outbox, weight
from blitzgw.wire import dump
from tests.cluster.link_kit import event

steps = st.lists(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4)), max_size=4), max_size=20
)


def drained(outbox: Outbox, limit: int) -> list[TokenEvent]:
    events: list[TokenEvent] = []
    while outbox:
        taken = outbox.take(limit)
        assert taken
        assert len(taken) == 1 or sum(map(weight, taken)) <= limit
        events += taken
    return events


@settings(max_examples=60, deadline=None)
@given(steps, st.integers(EVENT_BYTES + 5, 2000), st.booleans())
def test_what_comes_out_is_what_went_in(steps, limit, logprobs):
    outbox, wanted = Outbox(), defaultdict(list)
    number = 0
    for step in steps:
        for name, count in step:
            tokens = [*range(number, number + count)]
            number += count
            wanted[name] += tokens
            outbox.add(
                [
                    event(
                        name, *tokens, logprobs=[Logprobs(-t) for t in tokens] if logprobs else None
                    )
                ]
            )
    assert outbox.size_bytes == sum(map(weight, outbox._pending.values()))
    got = defaultdict(list)
    for e in drained(outbox, limit):
        got[e.request_id] += e.tokens
        if logprobs:
            assert [-p.chosen for p in e.logprobs or ()] == e.tokens
    assert {k: v for k, v in got.items() if v} == {k: v for k, v in wanted.items() if v}
    assert outbox.size_bytes == 0


def test_first_and_last_news_of_a_request_are_kept():
    outbox = Outbox()
    outbox.add([event("r", 1, cached_tokens=16, queued_s=0.5)])
    outbox.add([event("r", 2)])
    outbox.add([event("r", finish=FinishReason.STOP)])
    assert drained(outbox, 1 << 20) == [
        event("r", 1, 2, cached_tokens=16, queued_s=0.5, finish=FinishReason.STOP)
    ]


def test_a_long_event_is_cut_and_finishes_once():
    outbox = Outbox()
    outbox.add([event("r", *range(1000), finish=FinishReason.LENGTH, queued_s=0.1)])
    events = drained(outbox, 1000)
    assert len(events) > 4
    assert [t for e in events for t in e.tokens] == [*range(1000)]
    assert [e.finish for e in events] == [None] * (len(events) - 1) + [FinishReason.LENGTH]
    assert [e.queued_s for e in events] == [0.1] + [None] * (len(events) - 1)


def test_a_newer_attempt_replaces_an_older_one_and_never_the_reverse():
    outbox = Outbox()
    outbox.add([event("r", 1, 2, 3)])
    outbox.add([event("r", 9, attempt=1)])
    outbox.add([event("r", 4)])
    assert outbox.size_bytes == weight(event("r", 9))
    assert drained(outbox, 1 << 20) == [event("r", 9, attempt=1)]


def test_events_that_were_handed_in_are_not_changed():
    outbox, first = Outbox(), event("r", 1, logprobs=[Logprobs(-1.0)])
    outbox.add([first])
    outbox.add([event("r", 2, logprobs=[Logprobs(-2.0)])])
    assert first == event("r", 1, logprobs=[Logprobs(-1.0)])


def test_the_weight_bounds_the_size_on_the_wire():
    top = tuple((2**31 - 1, -1.5) for _ in range(20))
    e = event("r" * 40, *[2**31 - 1] * 100, logprobs=[Logprobs(-1.5, top)] * 100, queued_s=1.5)
    assert len(dump_body(e)) <= weight(e)


def dump_body(e: TokenEvent) -> bytes:
    from blitzgw.core.peer import Tokens

    return dump(Tokens([e]))[10:]
