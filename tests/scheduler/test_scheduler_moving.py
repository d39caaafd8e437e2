"""Running sequences move to another instance: nothing is lost, doubled or computed anew."""

from __future__ import annotations

import os
from random import Random

import pytest

from blitzgw.core.live import Move, Moved, NoRoom, Room, Withdraw
from blitzgw.core.step import KvGeometry
from blitzgw.scheduler.events import InstanceRemoved
from tests.scheduler.move_kit import MoveWorld, two

SEEDS = int(os.environ.get("BLITZGW_LIVE_SEEDS", "120" if "BLITZGW_LONG" in os.environ else "40"))
"""More are for long runs: none of 2,000 may fail."""

LONG = 200
"""Tokens to go: enough for everything to happen while a sequence runs."""


def running(n: int = 1, max_tokens: int = LONG, **options: object) -> MoveWorld:
    """A world in which a's sequences decode."""
    world = two(**options)
    for i in range(n):
        world.ask(list(range(i, i + 20)), max_tokens, instance="a")
    while any(len(story.outputs) < 3 for story in world.stories.values()):
        world.run_step("a")
    return world


def until_said(world: MoveWorld, kind: type, random: Random) -> None:
    while not any(isinstance(said, kind) for said in world.said):
        world.happen(random)


def finish(world: MoveWorld, random: Random | None = None) -> None:
    world.play(random or Random(1))
    world.assert_done()


@pytest.mark.parametrize("seed", range(5))
def test_a_sequence_goes_on_elsewhere_with_its_kv(seed):
    world = running()
    world.pair_to_move("a", "b")
    finish(world, Random(seed))
    [moved] = world.moved()
    story = world.stories["r1"]
    assert story.instance == "b"
    assert story.failures == 0
    assert world.computed("b") == 20 + LONG - 1 - moved.tokens, "nothing is computed twice"
    assert not any(pair.alive for pair in world.pairings.values())


def test_several_sequences_move_at_once_and_only_as_many_as_asked():
    world = running(4)
    world.pair_to_move("a", "b", 3)
    finish(world)
    assert len(world.moved()) == 3
    assert sorted(story.instance for story in world.stories.values()) == ["a", "b", "b", "b"]


def test_those_that_wait_are_given_away_at_once():
    world = running(2, max_num_seqs=2)
    waiting = world.ask([5] * 30, 4, instance="a")
    world.pair_to_move("a", "b", queued=True)
    assert list(world.resubmit) == [waiting]
    finish(world)
    assert {story.instance for story in world.stories.values()} == {"b"}


def test_one_that_is_still_prefilled_moves_when_it_decodes():
    world = two()
    world.ask([1] * 100, LONG, instance="a")
    world.run_step("a")
    world.pair_to_move("a", "b")
    finish(world)
    assert len(world.moved()) == 1


@pytest.mark.parametrize("full", ["places", "memory"])
def test_without_room_a_sequence_stays(full):
    world = running(1, max_num_seqs=1, kv_bytes=400)
    world.ask([9] * (300 if full == "memory" else 20), 250, instance="b")
    for _ in range(12):
        world.run_step("b")
    world.pair_to_move("a", "b")
    until_said(world, NoRoom, Random(1))
    finish(world)
    assert not world.moved()
    assert world.stories["r1"].instance == "a"


def test_long_kv_is_taken_in_while_it_arrives():
    world = two(max_batched_tokens=100)
    world.ask(list(range(300)), LONG, instance="a")
    while not world.stories["r1"].outputs:
        world.run_step("a")
    world.pair_to_move("a", "b")
    until_said(world, Moved, Random(2))
    inbox = world.nodes["b"].worker.inbox
    held = sum(parcel.stop - parcel.start for of in inbox.values() for parcel, _ in of)
    assert held < 300, "not all of it waits for the submission"
    finish(world, Random(2))
    assert world.computed("b") <= LONG


def test_an_early_submission_waits_for_the_rest():
    world = running()
    world.pair_to_move("a", "b")
    until_said(world, Moved, Random(1))
    while world.resubmit:
        world.retry()
    before = len(world.stories["r1"].outputs)
    assert world.live("b").kept == 1, "it waits"
    finish(world)
    assert world.computed("b") == LONG - before


def test_a_submission_waits_no_longer_than_two_seconds():
    world = running()
    name = world.pair_to_move("a", "b")
    until_said(world, Moved, Random(1))
    world.nodes["a"].worker.outgoing.clear()  # nothing more comes, and nobody hears of it
    world.retry()
    for _ in range(3):
        world.tick()
    while world.stories["r1"].finish is None:
        world.run_step("b")
    assert world.computed("b") > LONG, "computed anew"
    world.break_pairing(name)
    finish(world)


def test_what_nobody_submits_is_forgotten():
    world = running()
    world.pair_to_move("a", "b")
    until_said(world, Moved, Random(1))
    world.resubmit.clear()
    world.stories["r1"].over = True
    finish(world)
    assert world.now >= 10


def test_a_target_says_when_all_is_there_and_only_then_the_pairing_ends():
    world = running()
    name = world.pair_to_move("a", "b")
    until_said(world, Moved, Random(3))
    while world.nodes["a"].worker.outgoing.get(name) or not any(
        isinstance(said, Withdraw) for said in world.said
    ):
        assert world.pairings[name].alive
        world.happen(Random(3))
    finish(world)


def test_a_removed_instance_leaves_nothing_behind():
    for victim in ("a", "b"):
        world = running(2)
        world.pair_to_move("a", "b")
        until_said(world, Room, Random(1))
        world.tell(victim, InstanceRemoved(victim))
        world.kill(victim)
        finish(world)


@pytest.mark.parametrize(
    "what", ["abort", "break", "kill a", "kill b", "fail a", "fail b", "spoil"]
)
def test_whatever_ends_it_at_whatever_moment_no_token_is_wrong(what):
    for moment in range(0, 70, 3):
        random = Random(moment)
        world = running(2, 80)
        name = world.pair_to_move("a", "b")
        for _ in range(moment):
            world.happen(random)
        verb, _, node = what.partition(" ")
        match verb:
            case "abort":
                world.abort("r1")
            case "break":
                world.break_pairing(name)
            case "kill":
                world.kill(node)
            case "fail" if world.nodes[node].worker.posted:
                world.run_step(node, fail=True)
            case "spoil":
                world.spoil(name)
        finish(world, random)


class MoveDice:
    """Three instances that give each other sequences; everything may go wrong at any moment."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.world = MoveWorld()
        self.failures = random.choice([0.0, 0.0, 0.02])
        self.rough = random.random() < 0.5
        for name in ("a", "b", "c"):
            self.world.add(
                name,
                kv_bytes=random.choice([120, 200, 300, 10_000]),
                kv=KvGeometry(slots=6, blocks_per_slot=10, block_bytes=10),
                max_model_len=150,
                max_in_flight=random.randint(1, 3),
                max_batched_tokens=random.choice([6, 20, 40]),
                max_num_seqs=random.randint(2, 6),
                prefix_caching=random.random() < 0.7,
            )

    def roll(self) -> None:
        for _ in range(self.random.randint(20, 400)):
            self._happen()
        self.world.play(self.random)
        self.world.assert_done()

    def _happen(self) -> None:
        random, world = self.random, self.world
        dice = random.random()
        alive = [name for name, pair in world.pairings.items() if pair.alive]
        if dice < 0.06:
            self._ask()
        elif dice < 0.10 and len(alive) < 3 and len(world.nodes) > 1:
            guest, host = random.sample(sorted(world.nodes), 2)
            world.pair_to_move(guest, host, random.randint(1, 5), queued=random.random() < 0.3)
        elif dice < 0.13:
            self._harm(dice, alive)
        elif found := world.choices():
            act, *arguments = random.choice(found)
            if act == world.run_step and random.random() < self.failures:
                world.run_step(*arguments, fail=True)
            else:
                act(*arguments)

    def _harm(self, dice: float, alive: list[str]) -> None:
        random, world = self.random, self.world
        open_ones = [n for n, s in world.stories.items() if not s.over]
        if dice < 0.11 and open_ones:
            world.abort(random.choice(open_ones))
        elif dice < 0.12 and self.rough and alive:
            name = random.choice(alive)
            if random.random() < 0.5:
                world.break_pairing(name)
            elif world.pairings[name].guest in world.nodes:
                world.spoil(name)
        elif dice < 0.123 and self.rough and len(world.nodes) > 1:
            world.kill(random.choice([name for name in world.nodes if name != "a"]))
        else:
            world.tick()

    def _ask(self) -> None:
        random = self.random
        shared = [3] * random.choice([0, 0, 16, 35])
        own = [random.randrange(97) for _ in range(random.choice([1, 5, 16, 50]))]
        self.world.ask(
            [*shared, *own],
            random.choice([1, 5, 20, 60, 60]),
            instance=random.choice(sorted(self.world.nodes)),
            priority=random.choice([0, 0, 1]),
            tenant=random.choice(["", "alice"]),
        )


@pytest.mark.parametrize("batch", range(10))
def test_no_token_is_lost_doubled_or_altered_by_moves(batch):
    moved = 0
    for seed in range(batch, SEEDS, 10):
        dice = MoveDice(seed)
        try:
            dice.roll()
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
        moved += len(dice.world.moved())
    assert moved > 0


def test_a_move_is_of_all_tokens_that_are_known():
    world = running()
    world.pair_to_move("a", "b")
    [move] = [said for said in world.said if isinstance(said, Move)]
    assert len(move.request.tokens) == 20 + len(world.stories["r1"].outputs)
