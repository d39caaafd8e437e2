"""Several steps told as one event leave the same books as the same steps told one by one."""

from __future__ import annotations

import copy
import os
import random
from collections import deque
from enum import Enum
from typing import Any

import pytest

from blitzgw.core.step import KvGeometry
from blitzgw.scheduler.events import EmitTokens, StepCompleted, StepsRepeated
from blitzgw.scheduler.rates import Pace
from tests.scheduler.world import World, served

SEEDS = 100 if os.environ.get("BLITZGW_LONG") else 4


def picture(thing: Any, seen: dict[int, int] | None = None) -> Any:
    """Return all that an object holds as plain values; who is met again is named by a number."""
    seen = {} if seen is None else seen
    if isinstance(thing, str | bytes | int | float | None | Enum):
        return thing
    if id(thing) in seen:
        return f"#{seen[id(thing)]}"
    seen[id(thing)] = len(seen)
    if isinstance(thing, dict):
        return [(picture(k, seen), picture(v, seen)) for k, v in thing.items()]
    if isinstance(thing, list | tuple | deque):
        return [picture(one, seen) for one in thing]
    if isinstance(thing, set | frozenset):
        return sorted(picture(one, seen) for one in thing)
    if callable(thing):
        return "a function"
    names = getattr(thing, "__dict__", {}).keys() | {
        slot for kind in type(thing).__mro__ for slot in getattr(kind, "__slots__", ())
    }
    return [(name, picture(getattr(thing, name, None), seen)) for name in sorted(names)]


def in_one_go(world: World, count: int) -> World | None:
    """Take `count` steps one by one, and at a twin as one event; compare, and return the world.

    None where one of the tokens has ended a sequence.
    """
    twin = copy.deepcopy(world)
    told, durations, tokens = len(world.effects), [], []
    before = len(world.events)
    for _ in range(count):
        if not world.step():
            break  # the last one has ended
    for event in world.events[before:]:
        assert isinstance(event, StepCompleted)
        durations.append(event.result.duration_s)
        tokens.append(event.result.tokens)
    emitted = [e for e in world.effects[told:] if isinstance(e, EmitTokens)]
    if any(event.finish for effect in emitted for event in effect.events):
        return None
    assert len(durations) == count
    runs = tuple(zip(*tokens, strict=True))
    repeated = StepsRepeated("a", runs, tuple(durations))
    effects = twin.scheduler.handle(repeated, float(len(world.events)))
    twin.scheduler.check_integrity()
    assert picture(twin.scheduler) == picture(world.scheduler)
    (only,) = effects
    joined: dict[str, list[int]] = {}
    for effect in emitted:
        for event in effect.events:
            joined.setdefault(event.request_id, []).extend(event.tokens)
    assert {event.request_id: event.tokens for event in only.events} == joined
    return world


def ask_some(world: World, dice: random.Random) -> None:
    for _ in range(dice.randint(1, 3)):
        shared = [7] * 16 if dice.random() < 0.5 else []
        prompt = shared + [dice.randrange(1, 90) for _ in range(dice.randint(1, 40))]
        ends = {"ignore_eos": False} if dice.random() < 0.3 else {}
        world.ask(prompt, dice.randint(1, 45), tenant=dice.choice(("", "b")), **ends)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_repeated_steps_are_the_same_as_single_ones(seed: int) -> None:
    dice = random.Random(seed)
    world = World(dice.choice((150, 300, 10_000)), max_in_flight=dice.choice((1, 2, 3)))
    world.add(served(prefix_caching=dice.random() < 0.7, max_num_seqs=dice.choice((2, 4))))
    longest = compared = 0
    for _ in range(60):
        if dice.random() < 0.2 and len(world.stories) < 40:
            ask_some(world, dice)
        most = world.scheduler.repeats
        if not most:
            world.step()
            continue
        count = dice.randint(1, most)
        if in_one_go(world, count) is not None:
            compared, longest = compared + 1, max(longest, count)
    assert compared > 2
    assert longest > 1


def test_as_many_as_there_may_be() -> None:
    world = World()
    world.add(served())
    world.ask([3] * 10, 60)
    world.ask([5] * 17, 70)
    for _ in range(3):
        world.step()
    most = world.scheduler.repeats
    assert most > 40
    assert in_one_go(world, most) is not None
    assert not world.scheduler.repeats
    world.run()


def test_nothing_repeats_while_something_else_may_happen() -> None:
    world = World()
    world.add(served())
    assert world.scheduler.repeats == 0  # nobody runs
    name = world.ask([3] * 60, 20)
    assert world.scheduler.repeats == 0  # a prompt is being computed
    for _ in range(4):
        world.step()
    assert world.scheduler.repeats > 0
    world.ask([4] * 3, 20)
    assert world.scheduler.repeats == 0  # somebody waits, and has a place
    for _ in range(4):
        world.step()
    assert world.scheduler.repeats > 0
    world.abort(name)
    assert world.scheduler.repeats == 0  # the worker has something to hear


def test_whoever_waits_without_a_place_does_not_count() -> None:
    world = World()
    world.add(served(max_num_seqs=1))
    world.ask([3] * 5, 30)
    world.ask([4] * 5, 30)
    for _ in range(3):
        world.step()
    assert world.scheduler.repeats > 20
    assert in_one_go(world, 10) is not None


def test_memory_ends_it() -> None:
    world = World(kv_bytes=60)
    world.add(served(kv=KvGeometry(slots=4, blocks_per_slot=6, block_bytes=10)))
    world.ask([3] * 20, 60)
    world.ask([4] * 20, 60)
    for _ in range(4):
        world.step()
    assert 0 < world.scheduler.repeats < 40


def test_what_does_not_look_like_it_is_refused() -> None:
    world = World()
    world.add(served())
    world.ask([3] * 10, 60)
    for _ in range(3):
        world.step()
    for tokens, durations in ((((1, 2),), (0.1,)), ((), (0.1,)), (((1,) * 80,), (0.1,) * 80)):
        with pytest.raises(ValueError, match="steps"):
            world.scheduler.handle(StepsRepeated("a", tokens, durations), 9.0)


def test_the_pace_is_that_of_single_steps() -> None:
    durations = [0.01 * (1 + i % 7) for i in range(50)]
    one, other = Pace(), Pace()
    for duration in durations:
        one.observe(0, 3, duration)
    other.observe_decoding(durations)
    assert one.decode_step_s == other.decode_step_s
