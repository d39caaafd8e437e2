"""Schedules of faults on the production decider, and proof that the invariants can fail."""

from __future__ import annotations

import os
from typing import Any

import pytest

from blitzgw.gossip.events import (
    AnswerSync,
    Effect,
    Event,
    FinishSync,
    PacketArrived,
    SendPacket,
    TimePassed,
)
from blitzgw.gossip.knobs import Knobs
from blitzgw.gossip.membership import Membership
from blitzgw.sim import faults
from blitzgw.sim.faults import Crash, Leave, Publish, Schedule, Split, Start
from blitzgw.sim.trial import Outcome, Trial, try_seed

KNOBS = Knobs.of(0.25)
LONG = os.environ.get("BLITZGW_LONG") == "1"


def describe(outcomes: list[Outcome]) -> str:
    lost = [outcome for outcome in outcomes if not outcome.passed]
    return "\n".join(f"seed {o.seed}: {'; '.join(o.violations[:3])}" for o in lost)


def test_a_sample_of_schedules() -> None:
    outcomes = [try_seed(seed, 3, 12, KNOBS) for seed in range(1, 26)]
    assert all(outcome.passed for outcome in outcomes), describe(outcomes)


@pytest.mark.skipif(not LONG, reason="takes minutes: set BLITZGW_LONG=1, as scripts/test --long")
def test_a_thousand_schedules() -> None:
    outcomes = [try_seed(seed, 3, 12, KNOBS) for seed in range(1, 1001)]
    assert all(outcome.passed for outcome in outcomes), describe(outcomes)


def test_a_seed_gives_the_same_schedule_and_the_same_outcome() -> None:
    assert str(faults.draw(5, 3, 12, 25.0)) == str(faults.draw(5, 3, 12, 25.0))
    assert str(faults.draw(5, 3, 12, 25.0)) != str(faults.draw(6, 3, 12, 25.0))
    assert try_seed(5, 3, 5, KNOBS) == try_seed(5, 3, 5, KNOBS)


def test_a_schedule_is_possible_and_ends_mended() -> None:
    kinds: set[str] = set()
    for seed in range(200):
        schedule = faults.draw(seed, 3, 12, 25.0)
        up: set[int] = set()
        for at_s, action in schedule.actions:
            kinds.add(type(action).__name__)
            assert at_s + getattr(action, "duration_s", 0.0) <= schedule.end_s
            if isinstance(action, Start):
                assert action.node not in up
                up.add(action.node)
            elif isinstance(action, Crash | Leave):
                up.remove(action.node)
        assert up >= set(range(schedule.seeds))
    assert kinds == {"Start", "Crash", "Leave", "Pause", "Publish", "Split", "Deafen", "BreakLink"}


class Broken(Membership):
    """A decider whose events or effects pass through `keeps`, which drops or changes some."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        told = self.hears(event)
        return [] if told is None else [e for e in super().handle(told, now) if self.keeps(e)]

    def hears(self, event: Event) -> Event | None:
        return event

    def keeps(self, effect: Effect) -> bool:
        return True


class NeverRefutes(Broken):
    """Does not hear what is said about itself, so that it cannot contradict."""

    def hears(self, event: Event) -> Event | None:
        me = self.members()[0].boot
        if isinstance(event, PacketArrived):
            rumours = tuple(r for r in event.packet.rumours if r.boot != me)
            packet = event.packet._replace(rumours=rumours)
            return PacketArrived(event.boot, event.address, packet)
        answer: Any = getattr(event, "answer", None) or getattr(event, "offer", None)
        if answer is None:
            return event
        kept = answer._replace(members=tuple(r for r in answer.members if r.boot != me))
        field = "answer" if hasattr(event, "answer") else "offer"
        values = {name: getattr(event, name) for name in event.__slots__} | {field: kept}
        return type(event)(**values)


class NeverAccuses(Broken):
    """Never learns that the time has passed once it has been told of others: it probes nobody."""

    def hears(self, event: Event) -> Event | None:
        return None if isinstance(event, TimePassed) and len(self.members()) > 1 else event

    def deadline(self) -> float:
        return float("inf") if len(self.members()) > 1 else super().deadline()


class KeepsToItself(Broken):
    """Sends no state: neither in packets nor in syncs."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        return [self.without_state(effect) for effect in super().handle(event, now)]

    def without_state(self, effect: Effect) -> Effect:
        match effect:
            case SendPacket(boot, address, packet):
                return SendPacket(boot, address, packet._replace(updates=()))
            case AnswerSync(exchange, answer):
                return AnswerSync(exchange, answer._replace(updates=()))
            case FinishSync(exchange, rest):
                return FinishSync(exchange, rest._replace(updates=()))
        return effect


class Unsound(Broken):
    """Contradicts itself as soon as it knows two others."""

    def check_integrity(self) -> None:
        assert len(self.members()) < 3, "too many for me"


def outcome_of(make: type[Membership], *actions: tuple[float, faults.Action]) -> Outcome:
    """Carry out a schedule on four nodes that start at once and publish something."""
    starts = [(0.0, Start(node)) for node in range(4)]
    state = [(1.0, Publish(node, (("load/0", b"x"),))) for node in range(4)]
    everything = tuple(sorted([*starts, *state, *actions], key=lambda entry: entry[0]))
    return Trial(1, Schedule(4, 1, 20.0, everything), KNOBS, make).run()


SPLIT = (3.0, Split((3,), mutual=True, duration_s=16.0))
CRASH = (3.0, Crash(3, off=False))


@pytest.mark.parametrize(
    ("make", "fault", "violation"),
    [
        (NeverRefutes, SPLIT, "living:"),
        (NeverAccuses, CRASH, "gone:"),
        (KeepsToItself, CRASH, "state:"),
        (Unsound, CRASH, "sound:"),
    ],
)
def test_the_invariants_catch_a_broken_decider(
    make: type[Membership],
    fault: tuple[float, faults.Action],
    violation: str,
) -> None:
    assert outcome_of(Membership, fault).passed
    broken = outcome_of(make, fault)
    assert any(line.startswith(violation) for line in broken.violations), broken


def test_a_broken_decider_is_wrapped_and_not_only_disabled() -> None:
    """What `Broken` leaves alone works: the failures above are those of what it breaks."""
    assert outcome_of(Broken, CRASH).passed
