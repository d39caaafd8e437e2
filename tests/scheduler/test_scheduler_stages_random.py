"""Any order of events in a pipeline, and whatever is lost of it, gives the right tokens."""

from __future__ import annotations

import os
from random import Random

import pytest

from blitzgw.core.live import LivePolicy
from blitzgw.core.span import Span
from tests.scheduler.stage_kit import StageWorld

SEEDS = int(os.environ.get("BLITZGW_STAGE_SEEDS", "150" if "BLITZGW_LONG" in os.environ else "50"))
"""More are for long runs: none of 2,000 may fail."""

NAMES = ["a", "b", "c"]
JOINS = [("a", "b"), ("b", "c")]


class Dice:
    """A pipeline of three stages in which everything may go wrong at any moment."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.world = StageWorld()
        self.world.back_bytes_per_s = random.choice([0.0, 1e9, 1e9])
        self.n_layers = random.randint(3, 6)
        for name in ("home", "spare", *NAMES):
            self._add(name, loading=name in NAMES)
        first, second = sorted(random.sample(range(1, self.n_layers), 2))
        self.cuts = [first, second, self.n_layers]
        self.failures = random.choice([0.0, 0.0, 0.01])
        self.rough = random.random() < 0.5
        self.todo = [(self._resident, name) for name in NAMES]
        self.todo += [(self.world.complete, name) for name in NAMES if random.random() < 0.4]
        self.soon = random.random() < 0.7
        late = random.random() < 0.2
        if not late:
            self.world.assign(NAMES, self.cuts)
        for pair in random.sample(JOINS, 2):
            self.world.join(*pair)
        if late:
            self.world.assign(NAMES, self.cuts)
        self.world.pair("a", "home", LivePolicy.PIPELINE)
        if random.random() < 0.2:
            self.world.pair("b", "home", LivePolicy.ZIGZAG)
        if self.soon:
            for _ in NAMES:
                self._load()

    def _add(self, name: str, *, loading: bool) -> None:
        random = self.random
        node = self.world.add(
            name,
            loading=loading,
            kv_bytes=random.choice([60, 120, 300, 10_000, 10_000]),
            max_in_flight=random.randint(1, 3),
            n_layers=self.n_layers,
            max_batched_tokens=random.choice([6, 20, 40]),
            max_num_seqs=1 if name == "home" else random.randint(2, 6),
            prefix_caching=random.random() < 0.7,
        )
        node.scheduler._live.pipelines.lead.headroom = random.choice([1, 4, 20, 128])

    def _resident(self, name: str) -> None:
        i = NAMES.index(name)
        start = self.cuts[i - 1] if i else 0
        self.world.stage_layers(name, Span(start, self.cuts[i]))

    def roll(self) -> None:
        for _ in range(self.random.randint(40, 350)):
            self._happen()
        self.world.play(self.random)
        self.world.assert_done()

    def _happen(self) -> None:
        random, world = self.random, self.world
        dice = random.random()
        if dice < 0.025:
            for _ in range(random.randint(1, 6)):
                self._ask()
        elif dice < 0.035 - 0.008 * self.soon:
            self._load()
        elif dice < 0.05 and self.rough:
            self._break()
        elif dice < 0.055 and self.rough:
            self._join()
        elif dice < 0.065:
            if open_ones := [n for n, s in world.stories.items() if not s.over]:
                world.abort(random.choice(open_ones))
        else:
            self._go_on()

    def _go_on(self) -> None:
        random, world = self.random, self.world
        found = world.choices()
        if not found:
            if random.random() < 0.04:
                world.tick()
            return
        act, *arguments = random.choice(found)
        if act == world.run_step and random.random() < self.failures:
            world.run_step(*arguments, fail=True)
        else:
            act(*arguments)

    def _ask(self) -> None:
        random = self.random
        prompt = [random.randrange(97) for _ in range(random.choice([1, 5, 16, 30, 50]))]
        whole = [name for name, node in self.world.nodes.items() if node.complete]
        instance = "home" if "home" in whole and random.random() < 0.9 else random.choice(whole)
        if "a" in self.world.nodes and random.random() < 0.1:
            instance = "a"
        self.world.ask(
            prompt,
            random.choice([1, 2, 5, 20, 40]),
            instance=instance,
            priority=random.choice([0, 0, 1]),
            tenant=random.choice(["", "alice"]),
        )

    def _load(self) -> None:
        if not self.todo:
            return
        act, name = self.todo.pop(self.random.randrange(min(3, len(self.todo))))
        if name in self.world.nodes and not self.world.nodes[name].complete:
            act(name)

    def _break(self) -> None:
        random, world = self.random, self.world
        alive = [name for name, pair in world.pairings.items() if pair.alive]
        if alive and random.random() < 0.6:
            world.break_pairing(random.choice(alive))
        elif len(world.nodes) > 2:
            name = random.choice([name for name in world.nodes if name != "spare"])
            random.choice([world.kill, world.remove])(name)

    def _join(self) -> None:
        """Let neighbours meet again that have lost each other."""
        world = self.world
        alive = {(p.guest, p.host) for p in world.pairings.values() if p.alive}
        for pair in JOINS:
            here = pair[0] in world.nodes and pair[1] in world.nodes
            again = pair not in alive or self.random.random() < 0.1
            if here and again and not world.nodes[pair[0]].complete:
                world.join(*pair)


@pytest.mark.parametrize("batch", range(10))
def test_no_token_is_lost_doubled_or_altered(batch):
    for seed in range(batch, SEEDS, 10):
        try:
            Dice(seed).roll()
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
