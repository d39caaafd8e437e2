"""What instances leave behind in memory for a while, in virtual time."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blitzgw.scaling.caching import LINGER_S, LONGER_S, MAX_CACHE_S, HostCache
from blitzgw.scaling.effects import DropWeights, HoldWeights
from blitzgw.scaling.events import CopyTried, InstanceComes, InstanceLeft, TimePassed, WorkerLost

SIZE = 100


@dataclass
class Node:
    """A node's instances and copies; implements the decider's `Shelf`, and does what it says."""

    free: int = 10 * SIZE
    instances: set = field(default_factory=set)
    copies: dict = field(default_factory=dict)
    senders: set = field(default_factory=set)
    now: float = 0.0

    def __post_init__(self):
        self.cache = HostCache(self)

    def in_use(self, weights):
        return any(w == weights for w, _ in self.instances)

    def holds(self, weights):
        return weights in self.copies

    def whole(self, weights):
        return self.copies.get(weights, False)

    def busy(self, device, weights):
        return (device, weights) in self.senders

    def free_bytes(self):
        return self.free

    def tell(self, event):
        effects = self.cache.handle(event, self.now)
        for effect in effects:
            match effect:
                case HoldWeights(weights=weights, reads=()):
                    self.copies[weights] = False
                case DropWeights(weights=weights):
                    del self.copies[weights]
        return effects

    def come(self, weights="w", device="d", cache_s=30.0):
        effects = self.tell(InstanceComes(device, "m", "digest", weights, SIZE, cache_s))
        self.instances.add((weights, device))
        return effects

    def complete(self, weights="w"):
        if weights in self.copies:
            self.copies[weights] = True

    def leave(self, weights="w", device="d"):
        self.instances.discard((weights, device))
        return self.tell(InstanceLeft())

    def run(self, until_s):
        """Let time pass; return what is done, with when."""
        done = []
        while (due := self.cache.deadline()) is not None and due <= until_s:
            self.now = max(self.now, due)
            done += [(self.now, effect) for effect in self.tell(TimePassed())]
            self.cache.check_integrity()
        self.now = until_s
        return done


def lived(**more):
    """A node whose instance has come, been completed, and gone."""
    node = Node(**more)
    assert node.come() == [HoldWeights("d", "m", "digest", "w", ())]
    node.complete()
    assert node.cache.deadline() is None, "while it is there it stays"
    assert node.leave() == []
    return node


def test_it_stays_for_its_time_after_the_instance():
    node = lived()
    assert node.run(29.9) == []
    assert node.cache.has("w")
    assert not node.cache.goes("w")
    assert node.run(30.0) == []
    assert node.cache.goes("w"), "nobody is told of it any more"
    assert node.run(100.0) == [(30.0 + LINGER_S, DropWeights("d", "w"))]
    assert not node.copies
    assert node.cache.deadline() is None


def test_the_next_instance_finds_it_and_time_begins_anew_when_that_goes():
    node = lived()
    node.run(20.0)
    assert node.come(device="e") == [], "it is there already"
    assert node.run(500.0) == []
    node.leave(device="e")
    assert node.run(530.0) == []
    assert node.run(600.0) == [(530.0 + LINGER_S, DropWeights("d", "w"))]


def test_who_has_planned_with_it_finds_it_yet():
    node = lived()
    node.run(30.0 + LINGER_S / 2)
    assert node.cache.goes("w")
    assert node.come() == []
    assert not node.cache.goes("w")
    assert node.run(500.0) == []


def test_of_two_instances_the_last_one_counts():
    node = Node()
    node.come()
    node.complete()
    node.come(device="e")
    node.leave()
    assert node.cache.deadline() is None
    node.leave(device="e")
    assert node.cache.deadline() == 30.0


def test_without_a_time_nothing_is_left_behind():
    node = Node()
    assert node.come(cache_s=0.0) == []
    node.leave()
    assert (len(node.cache), node.cache.deadline()) == (0, None)


def test_half_a_model_is_of_no_use():
    node = Node()
    node.come()
    assert node.leave() == [DropWeights("d", "w")]


def test_a_copy_that_the_cluster_wants_is_left_alone():
    node = Node(copies={"w": True})
    assert node.come() == []
    node.leave()
    assert node.run(1000.0) == []
    assert node.copies == {"w": True}


def test_it_can_become_one_that_the_cluster_wants():
    node = lived()
    assert node.cache.give_up("w")
    assert not node.cache.has("w")
    assert node.run(1000.0) == []
    assert not node.cache.give_up("w"), "it is none of these any more"


def test_one_that_is_not_whole_is_begun_anew_for_the_cluster():
    node = Node()
    node.come()
    assert not node.cache.give_up("w")
    assert not node.cache.has("w")


def test_from_which_others_are_sent_is_kept_till_they_have_it():
    node = lived()
    node.senders.add(("d", "w"))
    assert node.run(33.5) == []
    node.senders.clear()
    [(at, effect)] = node.run(100.0)
    assert effect == DropWeights("d", "w")
    assert 33.5 < at <= 33.5 + LONGER_S + LINGER_S


def test_memory_goes_to_what_needs_it_the_next_to_go_first():
    node = Node()
    for number, weights in enumerate("abc"):
        node.come(weights)
        node.complete(weights)
        node.leave(weights)
        node.run(number + 1.0)
    node.come("d")
    node.free = 0
    assert node.come("e", cache_s=0.0) == [DropWeights("d", "a")], "one is enough, of those idle"
    node.free = -SIZE
    assert node.come("f", cache_s=30.0) == [DropWeights("d", "b"), DropWeights("d", "c")]
    assert node.cache.has("d"), "in use"
    assert not node.cache.has("f"), "there is no room for it yet"


def test_a_copy_that_failed_is_none_and_one_that_found_no_room_gets_it():
    node = Node()
    node.come()
    del node.copies["w"]
    assert node.tell(CopyTried("w", "no room")) == []
    assert not node.cache.has("w")
    node = lived()
    assert node.tell(CopyTried("other")) == []
    assert node.tell(CopyTried("other", "it was cancelled")) == []
    assert node.tell(CopyTried("other", "no room", no_room=True)) == [DropWeights("d", "w")]


def test_a_workers_end_is_its_end():
    node = lived()
    assert node.tell(WorkerLost("e", "died")) == []
    assert node.tell(WorkerLost("d", "died")) == [DropWeights("d", "w")]
    assert node.cache.deadline() is None


@pytest.mark.parametrize(("told", "stays_s"), [(-5.0, 0.0), (float("nan"), 0.0), (1e300, None)])
def test_times_of_nonsense(told, stays_s):
    node = Node()
    assert bool(node.come(cache_s=told)) == (stays_s is None)
    if stays_s is None:
        node.complete()
        node.leave()
        assert node.cache.deadline() == MAX_CACHE_S


def fail(node, weights, _device, _seconds):
    node.copies.pop(weights, None)
    node.tell(CopyTried(weights, "why"))


def lose(node, _weights, device, _seconds):
    node.instances = {(w, d) for w, d in node.instances if d != device}
    node.tell(WorkerLost(device, "why"))
    node.tell(InstanceLeft())


def send(node, weights, device, _seconds):
    node.senders ^= {(device, weights)}


DOES = {
    "come": lambda node, weights, device, seconds: node.come(weights, device, seconds),
    "leave": lambda node, weights, device, _: node.leave(weights, device),
    "complete": lambda node, weights, *_: node.complete(weights),
    "wait": lambda node, *more: node.run(node.now + more[-1]),
    "give": lambda node, weights, *_: node.cache.give_up(weights),
    "fail": fail,
    "lose": lose,
    "send": send,
}
STEPS = st.lists(
    st.tuples(
        st.sampled_from(sorted(DOES)),
        st.sampled_from("abc"),
        st.sampled_from("de"),
        st.sampled_from([0.0, 1.0, 7.0]),
    ),
    max_size=40,
)


@given(STEPS)
def test_in_any_order_books_hold_and_all_ends(steps):
    node = Node()
    for what, *how in steps:
        DOES[what](node, *how)
        node.cache.check_integrity()
        assert all(node.holds(w) for w in "abc" if node.cache.has(w))
    for weights, device in list(node.instances):
        node.leave(weights, device)
    node.senders.clear()
    node.run(node.now + 10.0)
    assert len(node.cache) == 0
