"""What stands in a step, when it is posted, and how requests end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blitzgw.core.messages import StepFailed
from blitzgw.core.request import FinishReason, GenerationRequest, SamplingParams
from blitzgw.core.step import BLOCK_TOKENS, NO_TOKEN, KvGeometry, Step, StepResult
from blitzgw.errors import InvalidRequest, Overloaded, Unavailable
from blitzgw.scheduler.events import RequestAborted, RequestArrived, RunStep, StepCompleted
from blitzgw.scheduler.lane import PostedStep
from tests.scheduler import toy
from tests.scheduler.toy import EOS, VOCAB, alone
from tests.scheduler.world import World, served

PROMPT = list(range(1, 41))


def world(kv_bytes: int = 10_000, *, depth: int = 2, queue: int = 1024, **changes) -> World:
    made = World(kv_bytes, max_in_flight=depth, max_queue=queue)
    made.add(served(**changes))
    return made


def steps(made: World) -> list[Step]:
    return made.worker.told


def shape(step: Step) -> list[tuple[int, int, int, bool]]:
    return [(row.seq, row.start, row.count, row.sample) for row in step.rows]


def instance(made: World):
    return made.scheduler.statistics().instances["a"]


def test_a_prompt_is_cut_into_chunks_and_decoding_is_posted_ahead():
    made = world(max_batched_tokens=30)
    made.ask(PROMPT, 3)
    made.run()
    assert [shape(step) for step in steps(made)] == [
        [(1, 0, 30, False)],
        [(1, 30, 10, True)],
        [(1, 40, 1, True)],
        [(1, 41, 1, True)],
        [],
    ]
    assert steps(made)[-1].drop == (1,)
    assert steps(made)[0].rows[0].blocks == (0, 1, 2)


def test_decoding_rows_come_first_then_old_prefill_then_new():
    made = world(max_batched_tokens=30, depth=1)
    made.ask(PROMPT[:5], 20)
    made.ask(PROMPT, 3)
    made.ask(PROMPT[:9], 3)
    made.step()
    made.step()
    made.step()
    assert [shape(step) for step in steps(made)] == [
        [(1, 0, 5, True)],
        [(1, 5, 1, True), (2, 0, 29, False)],
        [(1, 6, 1, True), (2, 29, 11, True), (3, 0, 9, True)],
        [(1, 7, 1, True), (2, 40, 1, True), (3, 9, 1, True)],
    ]


def paced(made: World, tokens_per_s: float) -> None:
    """Let the instance's measured prefill rate be this."""
    made.scheduler._planner.lanes["a"].pace.observe(1000, 0, 1000 / tokens_per_s)


def test_a_short_prompt_passes_a_long_one_that_is_not_due_before():
    made = world(max_batched_tokens=10, depth=1)
    paced(made, 10.0)
    made.ask(PROMPT, 3)
    made.step()
    made.ask(PROMPT[:4], 1)
    made.step()
    made.step()
    assert [shape(step) for step in steps(made)] == [
        [(1, 0, 10, False)],
        [(1, 10, 10, False)],
        [(2, 0, 4, True), (1, 20, 6, False)],
        [(1, 26, 10, False)],
    ]
    made.run()


def test_who_is_due_waits_for_nobody_that_comes_later():
    made = world(max_batched_tokens=10, depth=1)
    paced(made, 1000.0)  # the long one is due after 0.2 s, the short one comes 2 s later
    made.ask(PROMPT, 3)
    made.step()
    made.ask(PROMPT[:4], 1)
    made.step()
    assert shape(steps(made)[-1]) == [(1, 20, 10, False)]
    made.run()


def test_lower_priority_passes_a_prompt_that_has_been_begun():
    made = world(max_batched_tokens=10, depth=1)
    made.ask(PROMPT, 3)
    made.step()
    made.ask(PROMPT[:4], 1, priority=-1)
    made.step()
    assert shape(steps(made)[-1]) == [(2, 0, 4, True), (1, 20, 6, False)]
    made.run()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_no_more_steps_are_in_flight_than_allowed_and_none_is_wasted(depth):
    made = world(depth=depth)
    made.ask(PROMPT[:10], 5)
    assert made.compute_in_flight() == depth
    made.run()
    assert sum(1 for step in steps(made) if step.rows) == 5


def test_max_num_seqs_bounds_a_step():
    made = world(max_num_seqs=2)
    for _ in range(5):
        made.ask(PROMPT[:4], 4)
    made.step()
    assert (instance(made).running, instance(made).waiting) == (2, 3)
    made.run()
    assert max(len(step.rows) for step in steps(made)) == 2


def test_a_step_that_cannot_take_a_token_of_everybody_admits_fewer():
    made = world(max_batched_tokens=2)
    for _ in range(4):
        made.ask(PROMPT[:4], 4)
    made.run()
    assert instance(made).running == 0


def test_the_answer_ends_at_max_tokens_or_at_the_end_of_the_context():
    made = world()
    short, long = made.ask(PROMPT, 3), made.ask(PROMPT, 500)
    made.run()
    assert len(made.story(short).outputs) == 3
    assert len(made.story(long).outputs) == 90 - 40
    assert made.story(long).finish is FinishReason.LENGTH


def with_eos() -> tuple[list[int], int]:
    """Return a prompt that the toy model answers with EOS as its third token."""
    for first in range(1, VOCAB * VOCAB):
        sampling = SamplingParams(max_tokens=20, seed=1)
        request = GenerationRequest("x", "toy", (first, 2, 3), 3, sampling)
        outputs, finish = alone(request, 90)
        if finish is FinishReason.STOP and len(outputs) == 3:
            return [first, 2, 3], outputs[1]
    raise AssertionError("none found")


def test_eos_ends_an_answer_and_belongs_to_it():
    prompt, _ = with_eos()
    made = world()
    name = made.ask(prompt, 20, ignore_eos=False)
    made.run()
    assert made.story(name).finish is FinishReason.STOP
    assert made.story(name).outputs[-1] == EOS
    assert len(made.story(name).outputs) == 3


def test_eos_may_be_ignored():
    prompt, _ = with_eos()
    made = world()
    name = made.ask(prompt, 20)
    made.run()
    assert len(made.story(name).outputs) == 20


def test_a_stop_token_ends_an_answer_once_there_are_min_tokens():
    prompt, second = with_eos()
    made = world()
    name = made.ask(prompt, 20, stop_token_ids=(second,))
    made.run()
    assert made.story(name).outputs[-1] == second
    made = world()
    name = made.ask(prompt, 20, stop_token_ids=(second,), min_tokens=15)
    made.run()
    assert len(made.story(name).outputs) >= 15


def test_an_answer_whose_grammar_was_given_up_ends_with_an_error(monkeypatch):
    monkeypatch.setattr(toy, "next_token", lambda _, n, __: NO_TOKEN if n == 2 else 5)
    made = world()
    name = made.ask(PROMPT, 20, min_tokens=9, grammar="x")
    made.run()
    assert made.story(name).finish is FinishReason.ERROR
    assert made.story(name).outputs[:2] == [5, 5]


def test_a_token_may_end_an_answer_for_both_reasons_and_stop_is_told():
    prompt, _ = with_eos()
    made = world()
    name = made.ask(prompt, 3, ignore_eos=False)
    made.run()
    assert made.story(name).finish is FinishReason.STOP


def test_answers_are_reused_as_well():
    made = world()
    first = made.story(made.ask(PROMPT[:10], 30))
    made.run()
    name = made.ask([*PROMPT[:10], *first.outputs, 5], 2)
    made.run()
    assert made.story(name).cached_tokens == 32


def test_no_memory_is_reserved_for_a_last_token():
    made = world()
    made.ask(PROMPT[:16], 1)
    made.ask(PROMPT[:16], 2)
    made.run()
    assert [len(row.blocks) for step in steps(made) for row in step.rows if row.blocks] == [1, 2]


def test_a_newcomer_waits_while_it_would_take_the_last_block_of_those_that_run():
    made = world(kv_bytes=60, prefix_caching=False)
    made.ask(PROMPT[:10], 20)
    waiting = made.ask([1] * 79, 2)
    small = world(kv_bytes=60, prefix_caching=False)
    small.ask(PROMPT[:10], 20)
    small.ask([1] * 63, 2)
    made.step()
    small.step()
    assert (instance(made).running, instance(small).running) == (1, 2)
    made.run()
    assert made.story(waiting).finish
    assert instance(made).preemptions == 0


def test_a_failure_does_not_concern_who_has_begun_anew_since():
    made = world(depth=1)
    made.ask(PROMPT, 3)
    lane = made.scheduler._planner.lanes["a"]
    seq = lane.decoding[1]
    assert PostedStep(9, lane, [], [(seq, 1, 16)], 16, 0).members() == [seq]
    assert PostedStep(9, lane, [], [(seq, 7, 16)], 16, 0).members() == []
    assert PostedStep(9, lane, [seq], [(seq, 1, 40)], 40, 0).members() == [seq]


def test_cached_tokens_are_told_once_and_counted():
    made = world()
    made.ask(PROMPT, 2)
    made.run()
    name = made.ask([*PROMPT, 90], 4)
    made.run()
    assert made.story(name).cached_tokens == 32
    assert (instance(made).prefix_queries, instance(made).prefix_hits) == (81, 32)


def test_the_wait_for_a_first_step_is_told_once():
    made = world(depth=1)
    made.ask(PROMPT, 3)
    step, waiting = made.worker.posted[0], made.ask(PROMPT[:3], 3)
    asked_at = made.scheduler._requests[waiting].arrived_s
    handle = made.scheduler.handle
    later = handle(StepCompleted(StepResult(step.id, "a", (7,), 0.01)), asked_at + 2.5)
    second = next(effect.step for effect in later if isinstance(effect, RunStep))
    told = handle(StepCompleted(StepResult(second.id, "a", (7, 8), 0.01)), asked_at + 3.0)[-1]
    assert [event.queued_s for event in told.events] == [None, 2.5]


def test_logprobs_go_to_those_who_are_owed_them():
    made = world()
    made.ask(PROMPT[:3], 3)
    step = made.worker.posted[0]
    told = object()
    result = StepResult(step.id, "a", (7,), 0.01, logprobs=(told,))
    effects = made.scheduler.handle(StepCompleted(result), 1.0)
    assert effects[-1].events[0].logprobs == [told]


def test_an_abort_frees_everything_with_the_next_step():
    made = world()
    name = made.ask(PROMPT, 30)
    made.abort(name)
    assert made.scheduler.statistics().kv_active_bytes == 0
    made.run()
    assert made.worker.instances["a"].sequences == {}
    made.abort(name)  # unknown by now


def test_an_idle_worker_is_told_at_once_what_to_drop():
    made = world(depth=1)
    name = made.ask(PROMPT, 30)
    made.step()
    made.abort(name)
    made.step()
    assert steps(made)[-1].drop == (1,)
    assert steps(made)[-1].rows == ()


@pytest.mark.parametrize(
    "tokens", [[], [1] * 90, [1] * 200, [-1], [2**31], [1, -(2**31)], [2**32, 1], [2**40]]
)
def test_what_can_never_be_answered_is_refused(tokens):
    made = world()
    name = made.ask(tokens)
    assert isinstance(made.refused[name].error, InvalidRequest)
    assert made.scheduler.statistics().instances["a"].waiting == 0


def test_ids_within_four_bytes_but_for_the_sign_are_taken():
    made = world()
    assert not made.refused.get(made.ask([0, 1, 2**31 - 1, 2**24, 255]))


def test_the_budget_bounds_the_context():
    made = world(kv_bytes=30)
    assert isinstance(made.refused[made.ask([1] * 48)].error, InvalidRequest)
    name = made.ask([1] * 30, 50)
    made.run()
    assert len(made.story(name).outputs) == 3 * BLOCK_TOKENS - 30


def test_a_full_queue_refuses_and_says_when_to_come_back():
    made = world(depth=1, queue=2, max_num_seqs=1)
    made.ask(PROMPT, 2)
    made.step()
    made.ask(PROMPT, 2)
    made.ask(PROMPT, 2)
    error = made.refused[made.ask(PROMPT, 2)].error
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == 1.0  # 80 tokens waiting, 40 took two milliseconds
    made.run()


@pytest.mark.parametrize(
    ("attempt", "error"), [(0, InvalidRequest), (1, InvalidRequest), (2, Unavailable)]
)
@pytest.mark.parametrize("steps_before", [0, 1, 5])
def test_an_id_that_is_here_is_not_taken_from_whom_it_belongs_to(steps_before, attempt, error):
    """Two nodes may send the same id: neither may end what is the other's."""
    made = world()
    name = made.ask(PROMPT, 30)
    story = made.story(name)
    story.request = replace(story.request, attempt=1)
    made.tell(RequestAborted(name, 0))
    made.tell(RequestArrived("a", story.request))
    for _ in range(steps_before):
        made.step()
    stranger = replace(story.request, attempt=attempt, tokens=(*PROMPT, 1), tenant="t")
    made.tell(RequestArrived("a", stranger))
    assert type(made.refused[name].error) is error
    story.over = False
    made.run()
    assert story.finish is FinishReason.LENGTH  # and its tokens are the right ones


def test_an_aborted_attempt_makes_way_for_the_next():
    made = world()
    name = made.ask(PROMPT, 30)
    story = made.story(name)
    made.step()
    made.tell(RequestAborted(name, 0))
    made._retry(story)
    assert name not in made.refused
    made.run()
    assert story.finish is FinishReason.LENGTH


def test_a_resubmission_with_nothing_left_to_say_ends_at_once():
    made = world()
    name = made.ask(PROMPT, 4)
    made.run()
    story = made.story(name)
    story.over = False
    made._retry(story)
    assert story.over
    assert made.scheduler.statistics().instances["a"].waiting == 0


def test_instances_take_turns():
    made = world(depth=1)
    made.add(served("b"))
    made.ask(PROMPT[:4], 6)
    made.ask(PROMPT[:4], 6, instance="b")
    made.run()
    assert [step.instance for step in steps(made) if step.rows][:8] == list("abababab")


def test_an_instance_is_added_once():
    made = world()
    with pytest.raises(ValueError, match="already"):
        made.add(served())
    made.remove("a")
    made.scheduler.handle(made.events[-1], 1.0)  # a second removal is ignored


def test_the_last_arrived_of_the_least_urgent_makes_room():
    made = world(kv_bytes=100, depth=1, prefix_caching=False)
    urgent = made.ask(PROMPT[:15], 60, priority=0)
    late = made.ask(PROMPT[:15], 60, priority=1)
    later = made.ask(PROMPT[:15], 60, priority=1)
    made.run()
    assert instance(made).preemptions > 0
    ended = [
        event.request_id
        for effect in made.effects
        for event in getattr(effect, "events", ())
        if event.finish
    ]
    assert ended == [urgent, late, later]


def test_a_token_in_flight_survives_its_sequence_being_preempted():
    made = world(kv_bytes=80, depth=3)
    names = [made.ask(PROMPT[:15], 50, tenant=tenant) for tenant in "xyz"]
    made.run()
    assert instance(made).preemptions > 0
    assert all(len(made.story(name).outputs) == 50 for name in names)


def test_a_failed_step_loses_its_sequences_and_no_others():
    made = world(depth=1)
    first = made.ask(PROMPT, 6)
    second = made.ask(PROMPT[:8], 6)
    made.step(fail=True)
    assert made.story(first).request.attempt == 1
    assert made.story(second).request.attempt == 0
    made.run()
    assert made.story(first).finish is made.story(second).finish is FinishReason.LENGTH


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_failure_spreads_no_further_than_the_steps_in_flight(depth):
    made = world(depth=depth, max_num_seqs=2, max_batched_tokens=24)
    names = [made.ask([i + 1] * 22, 4) for i in range(6)]
    for _ in range(4):
        made.step()
    in_flight = made.compute_in_flight()
    made.step(fail=True)
    made.run(limit=300)
    assert sum(isinstance(event, StepFailed) for event in made.events) <= in_flight
    assert max(made.story(name).request.attempt for name in names) == 1


def test_memory_goes_from_one_instance_to_another_in_order():
    made = world(kv_bytes=60)
    made.add(served("b", kv=KvGeometry(4, 6, 10)))
    made.ask(PROMPT, 20)
    made.run()
    made.ask(PROMPT, 50, instance="b")
    made.run()
    first = next(i for i, step in enumerate(steps(made)) if step.instance == "b")
    assert [step.instance for step in steps(made) if step.release] == ["a"]
    assert any(step.release for step in steps(made)[: first + 3])
