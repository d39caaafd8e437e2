"""Targets that get nothing: the source is blamed first, then the target, never who waits for it."""

from __future__ import annotations

import pytest

from blitzgw.core.operation import EdgeOrder
from blitzgw.scaling.stalls import HANG_S, hangs_at, hung
from blitzgw.scaling.targets import CLAIMED, LOADING, READY, EdgeBook, Target
from tests.scaling.operation_kit import World


def target(worker, moved_s=0.0, state=CLAIMED, arrived=()):
    made = Target(worker, "boot", "g0", 1, state)
    made.moved_s, made.arrived = moved_s, dict.fromkeys(arrived, 0.0)
    return made


def edges(*pairs):
    return [
        EdgeBook(EdgeOrder(f"e{i}", source, to, "net", "h", 1, (0, 1), b"k" * 32), 10)
        for i, (source, to) in enumerate(pairs)
    ]


def found(targets, books, now=HANG_S, readers=()):
    known = {each.worker: each for each in targets}
    return {t.worker: sources for t, sources in hung(known, books, readers, now)}


def test_the_first_of_a_chain_is_meant():
    chain = edges(("s/0", "a/0"), ("a/0", "b/0"), ("b/0", "c/0"))
    targets = [target("a/0"), target("b/0"), target("c/0")]
    assert found(targets, chain) == {"a/0": {"s/0"}}
    assert found(targets, chain, HANG_S - 1) == {}
    targets[0].moved_s = 5.0
    assert found(targets, chain) == {"b/0": {"a/0"}}


def test_rings_are_broken_somewhere():
    ring = edges(("a/0", "b/0"), ("b/0", "a/0"))
    assert found([target("a/0"), target("b/0")], ring) == {"a/0": {"b/0"}, "b/0": {"a/0"}}


@pytest.mark.parametrize(
    "innocent",
    [
        target("a/0", state=READY),
        target("a/0", state=LOADING, arrived=(0, 1)),
        target("a/0", moved_s=1.0),
    ],
)
def test_who_has_what_he_needs_or_moves_is_not_meant(innocent):
    assert found([innocent], edges(("s/0", "a/0"))) == {}


def test_readers_tell_only_of_whole_blobs():
    targets = [target("a/0")]
    assert found(targets, edges(("s/0", "a/0")), readers={"a/0"}) == {}
    assert hangs_at({"a/0": targets[0]}, edges(("s/0", "a/0")), {"a/0"}) is None
    assert hangs_at({"a/0": targets[0]}, edges(("s/0", "a/0")), ()) == HANG_S


class Deaf(World):
    """No byte ever leaves the devices in `mute`, or comes to those in `deaf`."""

    def __init__(self, *, mute=(), deaf=(), **more):
        self.mute, self.deaf = set(mute), set(deaf)
        super().__init__(**more)

    def step(self, flow):
        source, sink = flow.source[0].name, flow.target[0].name
        if source in self.mute or sink in self.deaf:
            self.after(0.5, self.step, flow)
        else:
            super().step(flow)


def last(world):
    return world.nodes[0].owner.facts(world.now)[-1]


def test_a_source_that_sends_nothing_is_done_without():
    world = Deaf(nodes=4, devices=1, mute=["n0"])
    world.put(0)
    world.put(1)
    world.scale(4)
    world.run(HANG_S + 3.0)
    assert (last(world).state, last(world).reason) == ("done", "")
    assert len(world.serving()) == 4
    world.assert_quiet()


def test_a_target_that_takes_nothing_is_given_up_and_the_rest_goes_on():
    world = Deaf(nodes=4, devices=1, deaf=["n1"])
    world.put(0)
    world.scale(4)
    world.run(2 * HANG_S + 5.0)
    facts = last(world)
    assert facts.state == "done"
    assert "2 of 3 instances: no byte has come for 30 s" in facts.reason
    assert sorted(world.serving()) == ["n0/g0", "n2/g0", "n3/g0"]
    world.run(80.0)
    world.assert_quiet()


def test_where_nothing_moves_at_all_everything_is_undone():
    world = Deaf(nodes=3, devices=1, mute=["n0"])
    world.put(0)
    world.scale(3)
    world.run(119.0)
    assert last(world).state == "failed"
    assert "no byte has come" in last(world).reason
    assert world.serving() == ["n0/g0"]
    world.assert_quiet()
