"""A helper that lives and does nothing costs its home's requests a while, and no more than that."""

from __future__ import annotations

from blitzgw.core.live import Keep, Lend, LivePolicy, Reserve, Withdraw
from blitzgw.scheduler.live.home import LOST_S, SILENT_S
from blitzgw.scheduler.live.lending import SLOW_S
from tests.scheduler.live_kit import LiveWorld
from tests.scheduler.test_scheduler_stages import ask, led, pipeline


def helped(policy: LivePolicy) -> LiveWorld:
    """A home whose helper has layers, and a worker that runs nothing."""
    world = LiveWorld()
    world.add("home", max_num_seqs=2, max_batched_tokens=20)
    world.add("help", loading=True, max_batched_tokens=20, max_in_flight=1)
    world.pair("help", "home", policy)
    world.layers("help", 2)
    world.talk()
    return world


def play_without(world: LiveWorld, hangs: str, *, until_s: float) -> None:
    """Let everything happen but the steps of a worker."""
    while world.now < until_s:
        found = [choice for choice in world.choices() if choice != (world.run_step, hangs)]
        if found:
            act, *arguments = found[0]
            act(*arguments)
        elif not world.tick():
            return


def lent(world: LiveWorld) -> int:
    return sum(isinstance(said, Lend) for said in world.said)


def open_ones(world: LiveWorld) -> int:
    return sum(not story.over for story in world.stories.values())


def test_what_a_helper_should_offer_comes_back():
    world = helped(LivePolicy.BEST_EFFORT)
    for _ in range(8):
        world.ask(list(range(15)), 3)
    play_without(world, "help", until_s=SILENT_S - 2)
    assert world.live("home").lent == open_ones(world) == 1
    play_without(world, "help", until_s=SILENT_S + 5)
    assert open_ones(world) == 0
    assert world.live("home").lent == 0
    before = lent(world)
    for _ in range(8):
        world.ask(list(range(15)), 3)
    play_without(world, "help", until_s=world.now + 5)
    assert (open_ones(world), lent(world)) == (0, before)


def test_meanwhile_its_home_does_the_rest():
    world = helped(LivePolicy.BEST_EFFORT)
    for _ in range(8):
        world.ask(list(range(15)), 3)
    assert open_ones(world) == 8
    play_without(world, "help", until_s=SLOW_S + 2)
    assert open_ones(world) == 1


def test_what_is_not_answered_takes_all_that_is_lent_back():
    world = helped(LivePolicy.ZIGZAG)
    for _ in range(8):
        world.ask(list(range(15)), 3)
    play_without(world, "help", until_s=LOST_S - 2)
    assert open_ones(world) > 1
    play_without(world, "help", until_s=LOST_S + 5)
    assert open_ones(world) == 0


def test_a_helper_that_goes_on_later_does_no_harm():
    for policy in (LivePolicy.BEST_EFFORT, LivePolicy.ZIGZAG):
        world = helped(policy)
        for _ in range(8):
            world.ask(list(range(15)), 3)
        play_without(world, "help", until_s=SILENT_S + 5)
        world.play()
        world.complete("help")
        for _ in range(4):
            world.ask(list(range(15)), 3)
        world.play()
        world.assert_done()


def test_an_idle_or_a_slow_helper_is_trusted():
    world = helped(LivePolicy.BEST_EFFORT)
    world.now = 10 * SILENT_S
    for round_ in range(5):
        before = lent(world)
        for _ in range(8):
            world.ask(list(range(15)), 3)
        play_without(world, "help", until_s=world.now + SILENT_S - 2)
        assert lent(world) > before, round_
        world.play()
    assert not any(isinstance(said, Withdraw) for said in world.said)
    world.complete("help")
    world.play()
    world.assert_done()


def test_a_lead_that_hears_nothing_from_its_stages_gives_back():
    world = pipeline()
    node = world.nodes["c"]
    held = []
    deliver = world.deliver
    world.deliver = lambda pairing, name: (  # c hears nothing
        held.append(world.mail[pairing, name].popleft()) if name == "c" else deliver(pairing, name)
    )
    ask(world)
    play_without(world, "", until_s=SILENT_S - 2)
    assert any(isinstance(said, Reserve) for said in held)
    assert open_ones(world) > 0
    play_without(world, "", until_s=SILENT_S + 5)
    assert not any(isinstance(said, Keep) for said in world.said)
    assert open_ones(world) == 0
    assert led(world).staged == 0
    assert not node.scheduler.statistics().kv_active_bytes
