"""What is told of an instance's load is what its statistics say."""

from __future__ import annotations

import random

from tests.scheduler.world import World, served


def test_load_is_a_part_of_the_statistics() -> None:
    dice = random.Random(5)
    world = World(400)
    world.add(served())
    for n in range(60):
        if n % 4 == 0 and n < 40:
            world.ask([dice.randrange(1, 90) for _ in range(dice.randint(1, 50))], 20)
        world.step()
        load, told = world.scheduler.load("a"), world.scheduler.statistics().instances["a"]
        assert load is not None
        for name in (
            "running", "waiting", "queued_tokens", "kv_usage", "prefill_tokens_per_s",
            "decode_step_s", "kv_tokens", "kv_committed_tokens",
        ):  # fmt: skip
            assert getattr(load, name) == getattr(told, name), name


def test_no_load_of_an_instance_that_is_not_here() -> None:
    assert World().scheduler.load("a") is None
