"""The queue of a road, against a list."""

from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.transport.parcel import Outgoing
from blitzgw.transport.parcel_queue import ParcelQueue
from tests.transport.parcels_kit import hidden, kv

calls = st.lists(st.tuples(st.booleans(), st.integers(1, 3)), max_size=4)
actions = st.one_of(
    calls.map(lambda call: ("add", call)),
    st.just(("next", None)),
    st.just(("fail", None)),
    st.sets(st.integers(1, 3), max_size=2).map(lambda tickets: ("drop", tickets)),
)


class Model:
    """What the queue should hold: (call, is_hidden, ticket, number), and who is told what."""

    def __init__(self):
        self.waiting, self.present, self.left, self.told = [], None, {}, []

    def next(self):
        first = [w for w in self.waiting if w[1]] or self.waiting
        self.present = first[0] if first else None
        if first:
            self.waiting.remove(first[0])

    def finish(self, *, failed):
        present, self.present = self.present, None
        if present is None:
            return
        call = present[0]
        if failed:
            self.waiting = [w for w in self.waiting if w[0] != call]
            if self.left[call]:
                self.told.append((call, "bad"))
            self.left[call] = set()
        elif present in self.left[call]:
            self.left[call].remove(present)
            if not self.left[call]:
                self.told.append((call, ""))

    def drop(self, tickets):
        self.waiting = [w for w in self.waiting if w[2] not in tickets]
        for call, left in self.left.items():
            self.left[call] = {w for w in left if w[2] not in tickets}


@settings(max_examples=300, deadline=None)
@given(st.lists(actions, max_size=25))
def test_order_drops_and_news_are_those_of_a_list(actions):
    queue, model, told = ParcelQueue(), Model(), []
    numbers = iter(range(1000))

    def finish(*, failed):
        call = queue.failed() if failed else queue.written(10)
        if call is not None:
            call.tell("bad" if failed else "")
        model.finish(failed=failed)

    for number, (action, value) in enumerate(actions):
        if action == "add":
            named = [(number, h, ticket, next(numbers)) for h, ticket in value]
            parcels = [(hidden if h else kv)(ticket, layer=n) for _, h, ticket, n in named]
            assert not queue.add(
                [Outgoing(p, lambda: memoryview(b"")) for p in parcels],
                lambda size, seconds, reason, number=number: told.append((number, reason)),
            )
            model.left[number] = set(named)
            model.waiting += named
        elif action == "drop":
            queue.drop(value)
            model.drop(value)
        else:
            if action == "fail":
                finish(failed=True)
            else:
                finish(failed=False)
            item = queue.next()
            model.next()
            layer = item.outgoing.parcel.span.start if item else None
            assert layer == (model.present[3] if model.present else None)
        assert len(queue) == len(model.waiting)
        assert told == model.told
    for call in queue.clear():
        call.tell("over")
    ended = [number for number, reason in told if reason == "over"]
    assert sorted(ended) == sorted(call for call, left in model.left.items() if left)
    assert len(told) == len({number for number, _ in told})
