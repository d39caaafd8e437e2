"""Any order of arrivals, aborts, failures, scale events and steps gives the right tokens."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from blitzgw.core.step import KvGeometry, LastRows
from blitzgw.scheduler.events import RunStep
from blitzgw.scheduler.scheduler import Scheduler
from tests.scheduler.world import World, served

LONG = os.environ.get("BLITZGW_LONG") == "1"
TENANTS = ("", "alice", "bob")
FAMILIES = tuple([(7 * i * (family + 1)) % 89 + 1 for i in range(90)] for family in range(2))
"""Prompts begin alike across tenants, so that sharing between them would be easy."""


class Plodding(Scheduler):
    """Takes each result first and composes the next step then, whatever may be done in one pass.

    Its steps have all their rows.
    """

    def handle(self, event, now):
        self._planner.follow = lambda _: None
        self._steady = False
        return super().handle(event, now)


class Random(RuleBasedStateMachine):
    @initialize(
        kv_blocks=st.integers(2, 26),
        depth=st.integers(1, 3),
        budget_tokens=st.integers(1, 60),
        n_seqs=st.integers(1, 5),
        slots=st.integers(1, 5),
        caching=st.booleans(),
        context=st.integers(18, 90),
        other_bytes=st.sampled_from([5, 10, 15]),
    )
    def begin(self, kv_blocks, depth, budget_tokens, n_seqs, slots, caching, context, other_bytes):
        self.world = World(kv_blocks * 10, max_in_flight=depth)
        self.second = ""
        self.other = served("b", kv=KvGeometry(3, 4, other_bytes), max_model_len=context)
        self.world.add(
            served(
                "a",
                kv=KvGeometry(slots, 6, 10),
                max_batched_tokens=budget_tokens,
                max_num_seqs=n_seqs,
                max_model_len=context,
                prefix_caching=caching,
            )
        )

    @rule(
        second=st.booleans(),
        tenant=st.sampled_from(TENANTS),
        priority=st.sampled_from([0, 0, 0, 1]),
        family=st.integers(0, 1),
        shared=st.integers(0, 70),
        own=st.lists(st.integers(1, 96), max_size=20),
        max_tokens=st.integers(0, 40),
        min_tokens=st.integers(0, 3),
        ignore_eos=st.booleans(),
        stops=st.sampled_from([(), (3, 4, 5)]),
    )
    def arrive(
        self,
        second,
        tenant,
        priority,
        family,
        shared,
        own,
        max_tokens,
        min_tokens,
        ignore_eos,
        stops,
    ):
        tokens = FAMILIES[family][:shared] + own
        instance = list(self.world.contexts)[-1] if second else "a"
        if tokens:
            self.world.ask(
                tokens,
                max(max_tokens, 1),
                instance=instance,
                tenant=tenant,
                priority=priority,
                min_tokens=min(min_tokens, max_tokens),
                ignore_eos=ignore_eos,
                stop_token_ids=stops,
            )

    @rule(data=st.data(), more=st.lists(st.integers(1, 96), min_size=1, max_size=20))
    def go_on(self, data, more):
        """Ask again with a finished answer in the prompt, as a conversation does."""
        told = [
            story
            for story in self.world.stories.values()
            if story.finish and story.instance in self.world.contexts
        ]
        if told:
            story = data.draw(st.sampled_from(told))
            prompt = story.request.tokens[: story.request.prompt_length]
            self.world.ask(
                [*prompt, *story.outputs, *more],
                instance=story.instance,
                tenant=story.request.tenant,
            )

    @rule(data=st.data())
    def abort(self, data):
        open_ones = [name for name, story in self.world.stories.items() if not story.over]
        if open_ones:
            self.world.abort(data.draw(st.sampled_from(open_ones)))

    @rule(n_steps=st.integers(1, 12))
    def steps(self, n_steps):
        for _ in range(n_steps):
            self.world.step()

    @rule()
    def fail(self):
        self.world.step(fail=True)

    @precondition(lambda self: len(self.world.contexts) == 1)
    @rule()
    def scale_up(self):
        self.second += "b"
        self.world.add(replace(self.other, id=self.second))

    @precondition(lambda self: len(self.world.contexts) == 2)
    @rule()
    def scale_down(self):
        self.world.remove(self.second)

    def teardown(self):
        if not hasattr(self, "world"):
            return
        self.world.run()
        statistics = self.world.scheduler.statistics()
        assert statistics.kv_active_bytes == 0
        assert statistics.steps_in_flight == 0
        assert all(not instance.sequences for instance in self.world.worker.instances.values())
        self._replay()

    def _replay(self):
        effects = self.world.effects
        assert [repr(e) for e in self._again(Scheduler)] == [repr(e) for e in effects]
        assert [repr(e) for e in self._again(Plodding)] == [repr(e) for e in in_full(effects)]

    def _again(self, kind):
        scheduler = kind(self.world.worker.kv_bytes, max_in_flight=self.world.max_in_flight)
        for i, event in enumerate(self.world.events):
            yield from scheduler.handle(event, float(i + 1))


def in_full(effects):
    last = defaultdict(LastRows)
    for effect in effects:
        if isinstance(effect, RunStep):
            effect = RunStep(last[effect.step.instance].in_full(effect.step))
        yield effect


TestRandom = Random.TestCase
TestRandom.settings = settings(
    max_examples=150 if LONG else 50, stateful_step_count=60, deadline=None
)
