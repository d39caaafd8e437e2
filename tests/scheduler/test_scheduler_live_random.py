"""Any order of layers, handoffs, kills, aborts and failures gives the right tokens."""

from __future__ import annotations

import os
from random import Random

import pytest

from blitzgw.core.live import LivePolicy
from tests.scheduler import live_toy
from tests.scheduler.live_kit import LiveWorld

SEEDS = int(os.environ.get("BLITZGW_LIVE_SEEDS", "200" if "BLITZGW_LONG" in os.environ else "60"))
"""More are for long runs: none of 2,000 may fail."""

POLICIES = [LivePolicy.ZIGZAG] * 3 + [LivePolicy.BEST_EFFORT, LivePolicy.PIPELINE, LivePolicy.STOP]


@pytest.fixture(autouse=True)
def cut_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a layer's KV and the hidden states of a prompt come in several parcels."""
    monkeypatch.setattr(live_toy, "CUT", 7)


class Dice:
    """A world in which everything may go wrong at any moment."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.world = LiveWorld()
        self.n_layers = self.random.randint(2, 6)
        self.helpers = [f"help{i}" for i in range(self.random.randint(1, 2))]
        self.layers = dict.fromkeys(self.helpers, 0)
        for name in ("home", "spare"):
            self._add(name)
        for name in self.helpers:
            self._add(name, loading=True)
        self.failures = self.random.choice([0.0, 0.0, 0.02])
        self.rough = self.random.random() < 0.5
        self.slow = self.random.choice([0.14, 0.16, 0.18])
        """Up to here on the dice: how soon layers arrive."""
        for name in self.helpers:
            policy = self.random.choice(POLICIES)
            self.world.pair(name, "home", policy)

    def _add(self, name: str, *, loading: bool = False) -> None:
        random = self.random
        options = {
            "max_in_flight": random.randint(1, 3),
            "home_layers": random.randint(1, 3),
            "patience": random.choice([0.0, 4.0]),
            "in_flight": random.choice([None, 1, 2, 4]),
        }
        changes = {
            "n_layers": self.n_layers,
            "max_batched_tokens": random.choice([6, 20, 40]),
            "max_num_seqs": random.randint(2, 6),
            "prefix_caching": random.random() < 0.7,
        }
        kv_bytes = random.choice([60, 120, 300, 10_000, 10_000])
        self.world.add(name, loading=loading, kv_bytes=kv_bytes, **options, **changes)

    def roll(self) -> None:
        for _ in range(self.random.randint(20, 300)):
            self._happen()
        for name in self.helpers:
            if name in self.world.nodes and not self.world.nodes[name].complete:
                while self.layers[name] < self.n_layers and self.random.random() < 0.8:
                    self._arrive(name)
                if self.random.random() < 0.7:
                    self.world.complete(name)
        self.world.play(self.random)
        self.world.assert_done()

    def _happen(self) -> None:
        random, world = self.random, self.world
        dice = random.random()
        if dice < 0.12:
            self._ask()
        elif dice < 0.13:
            self._pair()
        elif dice < self.slow:
            self._load()
        elif 0.18 < dice < 0.19 and self.rough:
            self._break()
        elif 0.19 < dice < 0.20:
            if open_ones := [n for n, s in world.stories.items() if not s.over]:
                world.abort(random.choice(open_ones))
        elif found := world.choices():
            act, *arguments = random.choice(found)
            if act == world.run_step and random.random() < self.failures:
                world.run_step(*arguments, fail=True)
            else:
                act(*arguments)
        elif dice > 0.95:
            world.tick()

    def _ask(self) -> None:
        random = self.random
        shared = [3] * random.choice([0, 0, 0, 0, 16, 35])
        own = [random.randrange(97) for _ in range(random.choice([1, 5, 16, 30, 50]))]
        whole = [name for name, node in self.world.nodes.items() if node.complete]
        instance = "home" if "home" in whole and random.random() < 0.9 else random.choice(whole)
        self.world.ask(
            [*shared, *own],
            random.choice([1, 1, 2, 5, 20]),
            instance=instance,
            priority=random.choice([0, 0, 1]),
            tenant=random.choice(["", "alice"]),
        )

    def _pair(self) -> None:
        guest = self.random.choice(self.helpers)
        host = "home" if self.random.random() < 0.9 else "spare"
        nodes = self.world.nodes
        joined = any(pair.alive and pair.guest == guest for pair in self.world.pairings.values())
        if guest in nodes and host in nodes and not joined:
            self.world.pair(guest, host, self.random.choice(POLICIES))

    def _load(self) -> None:
        name = self.random.choice(self.helpers)
        node = self.world.nodes.get(name)
        if node is None or node.complete:
            return
        if self.layers[name] < self.n_layers:
            self._arrive(name)
        else:
            self.world.complete(name)

    def _arrive(self, name: str) -> None:
        self.layers[name] += 1
        self.world.layers(name, self.layers[name])

    def _break(self) -> None:
        random, world = self.random, self.world
        alive = [name for name, pair in world.pairings.items() if pair.alive]
        if alive and random.random() < 0.6:
            world.break_pairing(random.choice(alive))
        elif random.random() < 0.3 and len(world.nodes) > 2:
            victim = random.choice([name for name in world.nodes if name != "spare"])
            world.kill(victim)


@pytest.mark.parametrize("batch", range(10))
def test_no_token_is_lost_doubled_or_altered(batch):
    for seed in range(batch, SEEDS, 10):
        try:
            Dice(seed).roll()
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
