"""Log-probabilities of prompts: all of a prompt is computed, and told with the first token."""

from __future__ import annotations

import random

import pytest

from blitzgw.core.messages import StepFailed
from blitzgw.core.request import GenerationRequest, SamplingParams
from blitzgw.errors import Outdated
from blitzgw.scheduler.events import Refuse, RequestArrived
from tests.scheduler.stage_kit import StageWorld
from tests.scheduler.world import World, served

PROMPT = list(range(1, 41))


def world(**changes: object) -> World:
    made = World(max_in_flight=2)
    made.add(served(prefix_caching=True, **changes))
    return made


@pytest.mark.parametrize("chunk", [7, 40])
def test_scores_come_with_the_first_token_whatever_the_chunks(chunk):
    made = world(max_batched_tokens=chunk)
    made.ask(PROMPT, 3, prompt_logprobs=0)  # the world compares them
    made.ask(PROMPT[:1], 3, prompt_logprobs=0)  # of which nothing is known
    made.ask(PROMPT, 3)
    made.run()


def test_what_others_have_computed_is_computed_again_and_kept_for_others():
    made = world()
    for expected, scored in ((0, True), (0, True), (32, False), (0, True)):
        name = made.ask(PROMPT, 3, **({"prompt_logprobs": 1} if scored else {}))
        made.run()
        assert made.story(name).cached_tokens == expected


def test_choices_of_a_scored_prompt_do_not_wait_for_each_other():
    made = world(max_batched_tokens=90)
    made.scheduler._planner.lanes["a"].pace.observe(1000, 0, 10.0)
    for _ in range(2):
        made.ask(PROMPT, 3, prompt_logprobs=0)
    made.run()
    rows = [e.step.rows for e in made.effects if getattr(e, "step", None) and e.step.new]
    assert [len(each) for each in rows] == [1, 2]  # the second one beside the first one's decoding


def test_failed_steps_lose_nothing():
    failed = 0
    for seed in range(40):
        draw = random.Random(seed)
        made = world(max_batched_tokens=16)
        for _ in range(5):
            prompt = draw.choices(range(1, 90), k=draw.randint(1, 60))
            made.ask(prompt, draw.randint(1, 25), prompt_logprobs=0)
        while made.step(fail=draw.random() < 0.05):
            pass
        made.run()
        failed += sum(isinstance(event, StepFailed) for event in made.events)
    assert failed > 10


@pytest.mark.parametrize("chunk", [9, 16])  # its first token is on its way then, or not
def test_who_is_preempted_in_the_middle_of_its_prompt_is_scored_anew(chunk):
    made = world(max_batched_tokens=chunk)
    name = made.ask(PROMPT, 3, prompt_logprobs=0)
    made.step()
    seq = made.scheduler._requests[name]
    assert len(seq.prompt_logprobs) == chunk
    made.scheduler._planner.evict(seq)
    made.run()


def test_a_pipeline_takes_none_and_says_that_it_will_be_complete():
    made = StageWorld()
    for name in ("a", "b"):
        made.add(name, loading=True)
    made.chain(["a", "b"], [2, 5])
    made.serve(["a", "b"], [2, 5])
    made.play()
    scheduler = made.nodes["a"].scheduler
    for prompt_logprobs, taken in ((None, True), (0, False)):
        sampling = SamplingParams(max_tokens=3, prompt_logprobs=prompt_logprobs)
        request = GenerationRequest(f"r{prompt_logprobs}", "toy", (1, 2, 3), 3, sampling)
        refused = [
            e for e in scheduler.handle(RequestArrived("a", request), 1.0) if isinstance(e, Refuse)
        ]
        assert bool(refused) is not taken
        assert taken or isinstance(refused[0].error, Outdated)
