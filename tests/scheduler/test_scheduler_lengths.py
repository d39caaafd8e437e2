"""What a scheduler says of the memory that its requests will need, and of the prefill ahead."""

from __future__ import annotations

from blitzgw.core.request import GenerationRequest, SamplingParams
from blitzgw.core.step import KvGeometry
from blitzgw.scheduler.fairness import Account
from blitzgw.scheduler.lengths import KNOWN_ENOUGH, RECENT, OutputLengths, committed_tokens
from blitzgw.scheduler.sequence import Sequence
from tests.scheduler.live_kit import LiveWorld
from tests.scheduler.test_scheduler_stages import go, pipeline
from tests.scheduler.world import World, served


def sequence(prompt: int, max_tokens: int, output: int = 0, context: int = 10_000) -> Sequence:
    sampling = SamplingParams(max_tokens, seed=1)
    request = GenerationRequest("r", "toy", (1,) * prompt, prompt, sampling)
    account = Account("", 0)
    seq = Sequence(
        request,
        "a",
        account=account,
        arrival=1,
        arrived_s=0.0,
        due_s=0.0,
        context=context,
        eos_ids=(),
    )
    seq.tokens.extend([2] * output)
    return seq


def recorded(*outputs: int) -> OutputLengths:
    lengths = OutputLengths()
    for output in outputs:
        lengths.record(sequence(5, 1000, output))
    return lengths


def figures(world: World, name: str = "a"):
    return world.scheduler.statistics().instances[name]


def test_with_few_answers_known_what_is_asked_for_counts():
    assert recorded(*range(1, KNOWN_ENOUGH)).expected is None
    assert recorded(*range(1, KNOWN_ENOUGH + 1)).expected == KNOWN_ENOUGH
    few = recorded(3)
    assert committed_tokens([sequence(10, 100), sequence(20, 7)], few) == 110 + 27


def test_the_percentile_is_of_the_last_answers():
    assert recorded(*range(1, 101)).expected == 95
    assert recorded(*[9000] * 50, *[10] * RECENT).expected == 10
    assert recorded(*[10] * 244, *[500] * 12).expected == 10
    assert recorded(*[10] * 243, *[500] * 13).expected == 500


def test_what_is_usual_counts_unless_less_is_asked_for_or_more_is_there():
    usual = recorded(*[50] * 20)
    assert committed_tokens([sequence(10, 1000)], usual) == 60
    assert committed_tokens([sequence(10, 20)], usual) == 30
    assert committed_tokens([sequence(10, 1000, output=70)], usual) == 80
    assert committed_tokens([sequence(10, 1000, context=40)], usual) == 40
    assert committed_tokens([], usual) == 0


def test_what_runs_and_waits_is_committed_until_it_ends():
    world = World()
    world.add(served())
    assert (figures(world).kv_tokens, figures(world).kv_committed_tokens) == (4 * 96, 0)
    for _ in range(6):
        world.ask([1, 2, 3, 4], 10)
    assert 0 < figures(world).waiting < 6
    assert figures(world).kv_committed_tokens == 6 * 14
    world.run()
    assert figures(world).kv_committed_tokens == 0
    for _ in range(KNOWN_ENOUGH):
        world.ask([1, 2], 3)
    world.run()
    world.ask([1, 2, 3, 4], 60)
    assert figures(world).kv_committed_tokens == 4 + 10


def test_the_budget_bounds_what_can_be_held():
    world = World(kv_bytes=105)
    world.add(served())
    world.add(served("b", kv=KvGeometry(slots=1, blocks_per_slot=6, block_bytes=10)))
    assert figures(world).kv_tokens == 10 * 16
    assert figures(world, "b").kv_tokens == 96


def test_prefill_counts_until_it_is_computed():
    world = World()
    world.add(served(max_num_seqs=2, prefix_caching=False))
    for _ in range(3):
        world.ask(list(range(50)), 4)
    computed = 0
    while world.worker.posted:
        assert figures(world).queued_tokens == 150 - computed
        rows = world.worker.posted[0].rows
        computed += sum(row.count for row in rows if row.start < 50)
        world.step()
    assert computed == 150
    assert figures(world).queued_tokens == 0


def test_what_is_lent_counts_once():
    world = LiveWorld()
    world.add("home", max_num_seqs=2)
    world.add("help", loading=True)
    world.pair("help", "home")
    world.layers("help", 2)
    for _ in range(6):
        world.ask(list(range(30)), 2)
    world.talk()
    home, helper = (
        world.nodes[name].scheduler.statistics().instances[name] for name in ("home", "help")
    )
    assert helper.live.tasks > 0
    assert home.queued_tokens == 6 * 30
    assert (helper.queued_tokens, helper.kv_committed_tokens) == (0, 0)
    assert home.kv_committed_tokens == 6 * 32
    world.play()
    world.complete("help")
    world.play()
    world.assert_done()


def test_what_a_pipeline_serves_counts_at_its_lead():
    world = pipeline()
    for _ in range(6):
        world.ask(list(range(50)), 5)

    def lead():
        return world.nodes["a"].scheduler.statistics().instances["a"]

    while not world.nodes["a"].scheduler.statistics().instances["a"].kv_committed_tokens:
        go(world, 1)
    kept = lead().kv_committed_tokens // 55
    assert kept >= 1
    assert lead().queued_tokens == kept * 50
    world.play()
    assert (lead().queued_tokens, lead().kv_committed_tokens) == (0, 0)
    world.assert_done()
