"""What nodes tell and views show: followed as it comes it is what would be found anew."""

from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.core.scale import Demand
from blitzgw.core.view import LoadFacts
from blitzgw.scaling.loads import newest
from blitzgw.scaling.tellings import STALE_S, Tellings


def load(instance, number):
    """Return a load; of the same number it says the same, whoever tells of it."""
    rate = (None, 100.0, 200.0)[number % 3]
    return LoadFacts(instance, number=number, running=number, prefill_tokens_per_s=rate)


loads = st.lists(
    st.builds(load, st.sampled_from("ij"), st.integers(0, 6)),
    max_size=2,
    unique_by=lambda load: load.instance,
)
events = st.one_of(
    st.tuples(st.just("take"), st.sampled_from("ab"), loads, st.integers(0, 2)),
    st.tuples(st.just("show"), loads),
    st.tuples(st.just("forget"), st.sampled_from("ab")),
    st.tuples(st.just("wait"), st.sampled_from([STALE_S / 2, STALE_S, STALE_S + 0.1])),
)


class Plain:
    """The same, gone through each time."""

    def __init__(self):
        self.told, self.viewed = {}, []

    def loads(self, now):
        told = [one.loads for one, at_s in self.told.values() if now - at_s <= STALE_S]
        return newest(self.viewed, *told)

    def held(self, now):
        held = [one for one, at_s in self.told.values() if now - at_s <= STALE_S]
        return sum(one.held for one in held), sum(one.held_tokens for one in held)


def paces(found):
    return [(load.instance, load.prefill_tokens_per_s, load.kv_tokens) for load in found]


@settings(max_examples=300)
@given(st.lists(events, min_size=20, max_size=60))
def test_what_is_followed_is_what_would_be_found_anew(happened):
    tellings, plain, now = Tellings(0.0), Plain(), 0.0
    known = None
    for number, (what, *more) in enumerate(happened):
        if what == "take":
            boot, told, held = more
            demand = Demand("m", "d", number, loads=tuple(told), held=held, held_tokens=9 * held)
            tellings.take(boot, demand, now)
            plain.told[boot] = demand, now
        elif what == "show":
            plain.viewed = more[0]
            tellings.show(more[0])
        elif what == "forget":
            plain.told.pop(more[0], None)
            tellings.forget(more[0])
        else:
            now += more[0]
        tellings.check_integrity()
        found = [*tellings.loads(now)]
        assert {one.instance: one for one in found} == plain.loads(now)
        assert tellings.held(now) == plain.held(now)
        if tellings.paces_known:
            assert paces(found) == known
        known, tellings.paces_known = paces(found), True


def test_a_node_that_tells_of_the_same_instances_again_takes_the_place_of_its_own_words():
    tellings = Tellings(0.0)
    one, other = LoadFacts("i", number=1, running=1), LoadFacts("j", number=1)
    tellings.take("a", Demand("m", "d", 1, loads=(one,)), 0.0)
    tellings.take("b", Demand("m", "d", 1, loads=(other,)), 0.0)
    before = tellings.loads(0.0)
    newer = LoadFacts("i", number=2, running=2)
    tellings.take("a", Demand("m", "d", 2, loads=(newer,)), 0.1)
    assert tellings.loads(0.1) is not before
    assert [*before] == [newer, other], "the same book, with what is new in its place"


def test_whoever_learns_paces_is_told_when_they_may_be_others():
    tellings = Tellings(0.0)
    tellings.take("a", Demand("m", "d", 1, loads=(LoadFacts("i", number=1),)), 0.0)
    tellings.loads(0.0)
    tellings.paces_known = True
    tellings.take("a", Demand("m", "d", 2, loads=(LoadFacts("i", number=2, running=3),)), 0.1)
    tellings.loads(0.1)
    assert tellings.paces_known
    faster = LoadFacts("i", number=3, prefill_tokens_per_s=9.0)
    tellings.take("a", Demand("m", "d", 3, loads=(faster,)), 0.2)
    tellings.loads(0.2)
    assert not tellings.paces_known
