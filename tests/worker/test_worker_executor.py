"""The executor carries out steps in the documented order, on any engine."""

import pytest

from blitzgw.core.request import Logprobs, SamplingParams
from blitzgw.core.span import Span
from blitzgw.core.step import NewSequence, Row, Step
from blitzgw.engine.base import Sampled
from blitzgw.worker.execution import Executor
from blitzgw.worker.executor import InstanceExecutor
from tests.worker.worker_kit import GREEDY, WHOLE


class Hidden:
    """All of a step's hidden states, or a part of them."""

    def __init__(self, part=None):
        self.part = part

    def __getitem__(self, part):
        return Hidden(part)


class LoggingEngine:
    """Notes what it is asked for; samples 100, 101, …"""

    def __init__(self, fail=False):
        self.log, self.fail, self.next = [], fail, 100

    def forward(self, rows, span, hidden):
        tokens = [r.sequence.tokens[r.start : r.start + r.count] for r in rows]
        self.log.append(("forward", span, tokens, [list(r.sequence.table) for r in rows]))
        if self.fail:
            raise RuntimeError("the device is on fire")
        return Hidden()

    def logits(self, rows, hidden):
        assert isinstance(hidden, Hidden)
        if hidden.part is not None:
            self.log.append(("score", hidden.part))
        return "logits"

    def score(self, rows, logits):
        assert logits == "logits"
        return [Logprobs(-float(r.sequence.tokens[r.start + r.count])) for r in rows]

    def sample(self, rows, logits):
        assert logits == "logits"
        asking = [r.sequence.sampling.logprobs for r in rows if r.sample]
        sampled = []
        for asked in asking:
            logprobs = None if asked is None else Logprobs(-0.5, ((self.next, -0.5),))
            sampled.append(Sampled(self.next, logprobs))
            self.next += 1
        return sampled

    def copy_blocks(self, pairs):
        self.log.append(("copy", tuple(pairs)))

    def release(self, ranges):
        self.log.append(("release", tuple(ranges)))


def build(fail=False):
    engine, times = LoggingEngine(fail), iter(range(1000))
    executor = Executor(now=lambda: float(next(times)))
    executor.instances["i0"] = InstanceExecutor(engine, WHOLE.stop)
    return executor, engine


def new(seq, tokens=(1, 2, 3), sampling=GREEDY):
    return NewSequence(seq, tuple(tokens), len(tokens), 0, sampling)


def test_the_order_of_a_step():
    executor, engine = build()
    executor.execute(Step(1, "i0", WHOLE, (Row(1, 0, 3, True, (4,)),), new=(new(1),)))
    engine.log.clear()
    step = Step(
        2,
        "i0",
        WHOLE,
        (Row(1, 0, 2, False, (8, 9)), Row(2, 0, 1, True, (7,))),
        new=(new(1, (5, 6)), new(2, (9,))),
        drop=(1,),
        copies=((4, 8),),
        release=((4, 4),),
    )
    result = executor.execute(step)
    assert engine.log == [
        ("release", ((4, 4),)),
        ("copy", ((4, 8),)),
        ("forward", WHOLE, [[5, 6], [9]], [[8, 9], [7]]),
    ]
    assert (result.step, result.instance, result.tokens) == (2, "i0", (101,))
    assert result.duration_s == 1.0
    assert result.logprobs is None


def test_sampled_tokens_are_there_for_the_next_step_and_tables_grow():
    executor, engine = build()
    executor.execute(Step(1, "i0", WHOLE, (Row(1, 0, 3, True, (4,)),), new=(new(1),)))
    executor.execute(Step(2, "i0", WHOLE, (Row(1, 3, 1, True, (5,)),)))
    assert engine.log[-1] == ("forward", WHOLE, [[100]], [[4, 5]])


def test_logprobs_are_aligned_with_tokens_where_anyone_asked():
    executor, _ = build()
    asking = SamplingParams(max_tokens=4, logprobs=1)
    rows = (Row(1, 0, 3, True), Row(2, 0, 3, False), Row(3, 0, 3, True))
    news = (new(1), new(2), new(3, sampling=asking))
    result = executor.execute(Step(1, "i0", WHOLE, rows, new=news))
    assert result.tokens == (100, 101)
    assert result.logprobs == (None, Logprobs(-0.5, ((101, -0.5),)))


def test_prompts_are_scored_where_a_sequence_asks_for_it():
    executor, engine = build()
    asking = SamplingParams(max_tokens=4, prompt_logprobs=1)
    prompt = tuple(range(5, 205))
    news = (new(1), new(2, prompt, asking), new(3, (7, 8), asking))
    rows = (Row(1, 0, 3, True), Row(2, 0, 150, False), Row(3, 0, 2, True))
    engine.log.clear()
    result = executor.execute(Step(1, "i0", WHOLE, rows, new=news))
    one, other = result.prompt_logprobs
    assert (one.seq, one.start, other.seq, other.start) == (2, 1, 3, 1)
    assert one.logprobs == tuple(Logprobs(-float(token), ()) for token in prompt[1:151])
    assert other.logprobs == (Logprobs(-8.0, ()),)
    assert [entry for entry in engine.log if entry[0] == "score"] == [
        ("score", slice(3, 67)), ("score", slice(67, 131)), ("score", slice(131, 153)),
        ("score", slice(153, 154)),
    ]  # fmt: skip
    rest = (Row(2, 150, 50, True), Row(3, 2, 1, True))
    result = executor.execute(Step(2, "i0", WHOLE, rest))
    assert [(one.start, len(one.logprobs)) for one in result.prompt_logprobs] == [(151, 49)]
    assert not executor.execute(Step(3, "i0", WHOLE, (Row(2, 200, 1, True),))).prompt_logprobs


def test_a_step_without_rows_does_the_rest():
    executor, engine = build()
    result = executor.execute(Step(1, "i0", WHOLE, (), new=(new(1),), release=((0, 4),)))
    assert result.tokens == ()
    assert engine.log == [("release", ((0, 4),))]
    executor.execute(Step(2, "i0", WHOLE, (Row(1, 0, 3, True),)))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Step(2, "nobody", WHOLE, ()), "unknown instance nobody"),
        (Step(2, "i0", WHOLE, (Row(9, 0, 1, True),)), "unknown sequence 9"),
        (Step(2, "i0", WHOLE, (Row(1, 4, 1, True),)), "has 4 tokens"),
        (Step(2, "i0", WHOLE, (Row(1, 0, 0, True),)), "has 4 tokens"),
        (Step(2, "i0", WHOLE, (Row(1, -1, 1, True),)), "has 4 tokens"),
        (Step(2, "i0", WHOLE, (), new=(new(1),)), "already here"),
        (Step(2, "i0", Span(0, 2), (Row(1, 3, 1, True),)), "cannot sample"),
    ],
)
def test_steps_that_cannot_be_meant_are_refused(step, message):
    executor, _ = build()
    executor.execute(Step(1, "i0", WHOLE, (Row(1, 0, 3, True, (4,)),), new=(new(1),)))
    with pytest.raises(ValueError, match=message):
        executor.execute(step)


def test_a_failed_step_forgets_its_sequences_and_no_others():
    executor, engine = build()
    news = (new(1), new(2), new(3))
    executor.execute(Step(1, "i0", WHOLE, (), new=news))
    engine.fail = True
    with pytest.raises(RuntimeError):
        executor.execute(Step(2, "i0", WHOLE, (Row(1, 0, 3, True),), new=(new(4),)))
    engine.fail = False
    assert set(executor.instances["i0"].sequences) == {2, 3}


def test_warm_up_leaves_no_trace_and_never_touches_a_sequence():
    executor, engine = build()
    instance = executor.instances["i0"]
    instance.warm_up()
    assert [entry[2] for entry in engine.log] == [[[0, 1, 2, 3]], [[100]]]
    assert {table for entry in engine.log for table in entry[3][0]} == {0}
    assert instance.sequences == {}
    executor.execute(Step(1, "i0", WHOLE, (), new=(new(1),)))
    engine.log.clear()
    instance.warm_up()
    assert engine.log == []
    assert set(instance.sequences) == {1}
