"""Pipelines among receivers: whole requests are served before any of them is complete."""

from __future__ import annotations

from random import Random

import pytest

from blitzgw.core.live import (
    Keep,
    LivePolicy,
    NoRoom,
    Nothing,
    Pass,
    Pull,
    Reserve,
    Return,
    StageReady,
)
from blitzgw.core.span import Span
from blitzgw.scheduler.events import StageAssigned
from blitzgw.scheduler.live.returning import cheaper
from tests.scheduler.stage_kit import StageWorld

NAMES, CUTS = ["a", "b", "c"], [2, 3, 5]
SPANS = [Span(0, 2), Span(2, 3), Span(3, 5)]
LONG = [7 * i % 97 for i in range(50)]


def pipeline(*, serve: bool = True, headroom: int = 128, **changes) -> StageWorld:
    """Three stages of a pipeline whose lead helps a home that can run two sequences."""
    world = StageWorld()
    world.add("home", max_num_seqs=2, max_batched_tokens=20)
    for name in NAMES:
        own = changes.get(name, {})
        node = world.add(name, loading=True, max_batched_tokens=20, **own)
        node.scheduler._live.pipelines.lead.headroom = headroom
    world.chain(NAMES, CUTS)
    if serve:
        world.serve(NAMES, CUTS)
    world.pair("a", "home", LivePolicy.PIPELINE)
    world.play()
    return world


def ask(world: StageWorld, count: int = 6, max_tokens: int = 8, longest: int = 50) -> None:
    random = Random(1)
    for _ in range(count):
        prompt = [random.randrange(97) for _ in range(random.randint(1, longest))]
        world.ask(prompt, max_tokens)


def led(world: StageWorld, name: str = "a"):
    """What an instance says of its pipeline."""
    return world.nodes[name].scheduler.statistics().instances[name].live


def go(world: StageWorld, count: int, seed: int = 3) -> None:
    random = Random(seed)
    for _ in range(count):
        if found := world.choices():
            act, *arguments = random.choice(found)
            act(*arguments)


def test_requests_are_served_by_receivers_alone():
    world = pipeline()
    ask(world, 9)
    world.play(Random(2))
    world.assert_done()
    assert not any(story.failures for story in world.stories.values())
    served = [story for story in world.stories.values() if story.instance == "a"]
    assert len(served) >= 3
    route = list(zip(NAMES, SPANS, strict=True))
    for story in served:
        assert [(stage.instance, stage.span) for stage in story.route] == route
    assert sum(len(said.kept) for said in world.said if isinstance(said, Keep)) == len(served)
    for name, span in route:
        assert {step.span for step in world.nodes[name].worker.ran if step.rows} == {span}
    assert led(world).staged_total == len(served)


def test_nothing_is_taken_before_every_stage_has_its_layers():
    world = pipeline(serve=False)
    ask(world)
    for i in (2, 0):
        world.stage_layers(NAMES[i], SPANS[i])
        go(world, 40)
    assert led(world).stages == 0
    assert not any(isinstance(said, Pull) for said in world.said)
    world.stage_layers("b", SPANS[1])
    go(world, 40)
    assert sum(isinstance(said, StageReady) for said in world.said) == 2
    assert (led(world).stage, led(world).stages, led(world, "c").stages) == (SPANS[0], 3, 1)
    ask(world)
    world.play()
    assert led(world).staged_total > 0
    world.assert_done()


def test_chunks_of_a_prompt_are_in_several_stages_at_once():
    world = pipeline()
    for _ in range(3):
        world.ask(LONG, 2)
    while not any(isinstance(said, Pass) for said in world.said):
        go(world, 1)
    rows = [row for step in world.nodes["a"].worker.posted for row in step.rows]
    assert [(row.start, row.count) for row in rows] == [(0, 20), (20, 20)]
    world.play()
    world.assert_done()
    passes = [said for said in world.said if isinstance(said, Pass)]
    mine = [said for said in passes if said.request_id == passes[0].request_id]
    b, c = ([said for said in mine if said.pairing == name] for name in ("p1", "p2"))
    for each in (b, c):
        assert [(said.start, said.stop, said.sample) for said in each] == [
            (0, 20, False),
            (20, 40, False),
            (40, 50, True),
            (50, 51, True),
        ]
        assert [said.token >= 0 for said in each] == [False, False, False, True]


def test_a_stage_that_falls_behind_shares_its_steps():
    world = pipeline()
    ask(world, 9, longest=12)
    while found := world.choices():
        act, *arguments = min(found, key=lambda one: one[0] == world.run_step and one[1] == "b")
        act(*arguments)
    world.play()
    world.assert_done()
    assert max(len(step.rows) for step in world.nodes["b"].worker.ran) >= 3


@pytest.mark.parametrize("headroom", [1, 5])
def test_more_room_is_asked_for_before_it_is_needed(headroom):
    world = pipeline(headroom=headroom)
    ask(world, 6, max_tokens=30, longest=30)
    world.play(Random(1))
    world.assert_done()
    asked = [said for said in world.said if isinstance(said, Reserve)]
    assert len(asked) > 2 * len({said.request.id for said in asked})
    assert led(world).staged_total
    assert {story.instance for story in world.stories.values()} == {"home", "a"}


@pytest.mark.parametrize("who", NAMES)
def test_who_has_no_room_has_it_given_back(who):
    world = pipeline(**{who: {"kv_bytes": 10}})
    for _ in range(5):
        world.ask(LONG, 4)
    world.play(Random(1))
    world.assert_done()
    assert {story.instance for story in world.stories.values()} == {"home"}
    assert any(isinstance(said, Nothing) for said in world.said)
    assert any(isinstance(said, NoRoom) for said in world.said) == (who != "a")


@pytest.mark.parametrize("who", ["a", "b", "c"])
def test_who_runs_out_of_room_gives_it_away(who):
    """One block for the prompt, and no second one."""
    world = pipeline(headroom=1, **{who: {"kv_bytes": 20}})
    for _ in range(4):
        world.ask(LONG[:8], 20)
    world.play(Random(1))
    world.assert_done()
    assert any(isinstance(said, Keep) for said in world.said)
    assert not any(story.failures for story in world.stories.values())


@pytest.mark.parametrize("moment", range(0, 150, 10))
@pytest.mark.parametrize("what", ["abort", "kill b", "kill a", "kill home", "break", "fail", "end"])
def test_whatever_happens_at_any_moment(what, moment):
    world = pipeline()
    world.add("spare")
    ask(world)
    go(world, moment, seed=moment)
    match what.split():
        case ["abort"]:
            for name, story in list(world.stories.items()):
                if not story.over:
                    world.abort(name)
        case ["kill", name]:
            world.kill(name)
        case ["break"]:
            world.break_pairing("p2")
        case ["fail"]:
            posted = [name for name in NAMES if world.nodes[name].worker.posted]
            for name in posted:
                world.run_step(name, fail=True)
        case _:
            world.complete("a")
    world.play(Random(moment))
    world.assert_done()
    assert all(led(world, name).staged == 0 for name in NAMES if name in world.nodes)
    if what in ("kill b", "break", "end"):
        assert not any(story.failures for story in world.stories.values())


def test_a_stage_that_is_complete_serves_by_itself_besides():
    world = pipeline()
    ask(world, 6, max_tokens=20)
    go(world, 120)
    assert led(world, "b").staged
    world.complete("b")
    for _ in range(3):
        world.ask(LONG, 5, instance="b")
    world.play(Random(1))
    world.assert_done()
    spans = [step.span for step in world.nodes["b"].worker.ran if step.rows]
    first = spans.index(Span(0, 5))
    assert SPANS[1] in spans[first:]
    assert not any(story.failures for story in world.stories.values())


def test_neighbours_that_meet_again_go_on():
    world = pipeline()
    world.break_pairing("p1")
    world.play()
    assert (led(world).stages, led(world, "b").stages, led(world, "c").stages) == (0, 0, 1)
    world.join("b", "c")
    world.join("a", "b")
    world.play()
    assert led(world).stages == 3
    ask(world)
    world.play(Random(1))
    world.assert_done()
    assert led(world).staged_total


@pytest.mark.parametrize("pair", [("a", "b"), ("b", "c")])
@pytest.mark.parametrize("moment", [0, 40, 80, 120])
def test_a_new_way_to_a_neighbour_leaves_the_other_one_alone(pair, moment):
    world = pipeline()
    ask(world, 6, max_tokens=20)
    go(world, moment, seed=moment)
    world.join(*pair)
    world.play(Random(moment))
    world.assert_done()
    other = "p2" if pair == ("a", "b") else "p1"
    assert world.pairings[other].alive
    assert not any(story.failures for story in world.stories.values())
    assert led(world).stages == 3
    before = led(world).staged_total
    ask(world)
    world.play(Random(1))
    assert led(world).staged_total > before
    world.assert_done()


def test_another_stage_behind_is_told_to_those_before():
    world = pipeline()
    world.add("d", loading=True, max_batched_tokens=20)
    world.tell("d", StageAssigned("d", Span(3, 5)))
    world.join("b", "d")
    world.play()
    assert [said.stages for said in world.said if isinstance(said, StageReady)][-1] == ()
    assert (led(world).stages, led(world, "b").stages) == (0, 0)
    world.stage_layers("d", Span(3, 5))
    world.play()
    assert led(world).stages == 3
    ask(world)
    world.play(Random(1))
    world.assert_done()
    routes = {tuple(stage.instance for stage in s.route) for s in world.stories.values()}
    assert ("a", "b", "d") in routes
    assert ("a", "b", "c") not in routes


def test_without_a_home_the_lead_is_asked():
    world = StageWorld()
    for name in NAMES:
        world.add(name, loading=True, max_num_seqs=2)
    world.chain(NAMES, CUTS)
    outlook = world.nodes["a"].scheduler.outlook
    assert not outlook("a").open
    world.serve(NAMES, CUTS)
    world.play()
    assert (outlook("a").open, outlook("a").reluctant) == (True, True)
    assert not world.nodes["b"].scheduler.outlook("b").open
    for _ in range(2):
        world.ask(LONG, 4, instance="a")
    assert not outlook("a").open
    third = world.ask(LONG, 4, instance="a")
    assert third in world.refused
    world.play(Random(1))
    assert [story.over for story in world.stories.values()] == [True, True, False]
    assert outlook("a").open
    world.complete("a")
    world.play(Random(1))
    world.assert_done()


def test_a_lead_that_found_no_room_behind_waits_until_something_ends():
    world = StageWorld()
    for name in NAMES:
        world.add(name, loading=True, kv_bytes=60 if name == "c" else 10_000)
    world.chain(NAMES, CUTS)
    world.serve(NAMES, CUTS)
    world.play()
    outlook = world.nodes["a"].scheduler.outlook
    world.ask(LONG, 4, instance="a")
    world.ask(LONG, 4, instance="a")
    while not any(isinstance(said, NoRoom) for said in world.said):
        go(world, 1)
    while "r2" not in world.resubmit:
        go(world, 1)
    assert not outlook("a").open
    world.play(Random(1))
    assert world.stories["r1"].over
    assert outlook("a").open
    world.stories["r2"].instance = "a"
    world.retry()
    world.play(Random(1))
    world.assert_done()


def test_who_is_complete_leads_no_pipeline_but_may_be_another_stage():
    world = StageWorld()
    world.add("a")
    world.assign(["a"], [2])
    assert led(world).stages == 0
    assert not world.nodes["a"].scheduler._live.pipelines.books.stations
    world.add("c")
    world.add("z", loading=True)
    world.assign(["z", "c"], [2, 5])
    assert (led(world, "c").stages, led(world, "c").stage) == (1, Span(2, 5))
    world.join("z", "c")
    world.stage_layers("z", Span(0, 2))
    world.ask(LONG, 3, instance="c")
    world.play()
    world.stories.clear()
    for _ in range(3):
        world.ask(LONG, 3, instance="z")
    world.play(Random(1))
    world.assert_done()
    assert led(world, "c").staged_total == 3


def test_the_quicker_way_at_a_switch():
    assert not cheaper(1.0, 500, 1000)
    assert cheaper(0.1, 500, 1000)
    assert not cheaper(float("inf"), 500, 1000)
    assert not cheaper(0.1, 500, 0)


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "c"], ["a", "b", "c", "d"]])
@pytest.mark.parametrize("seed", range(8))
def test_what_a_complete_lead_takes_over_is_not_computed_again(names, seed):
    world = StageWorld()
    world.add("home", max_num_seqs=2, max_batched_tokens=20)
    for name in names:
        world.add(name, loading=True, max_batched_tokens=20)
    cuts = [[2, 5], [1, 3, 5], [1, 3, 4, 5]][len(names) - 2]
    world.chain(names, cuts)
    world.serve(names, cuts)
    world.pair("a", "home", LivePolicy.PIPELINE)
    world.play()
    ask(world, 6, max_tokens=20)
    while not any(s.instance == "a" and len(s.outputs) > 3 for s in world.stories.values()):
        go(world, 1, seed)
        seed += 1
    stories = world.stories.values()
    going = [s for s in stories if s.instance == "a" and s.outputs and not s.over]
    assert going
    world.said.clear()
    before = len(world.nodes["a"].worker.ran)
    world.complete("a")
    returned = [said for said in world.said if isinstance(said, Return)]
    world.play(Random(seed))
    world.assert_done()
    assert {said.request_id for said in returned} == {story.request.id for story in going}
    assert not any(story.failures for story in stories)
    after = [step for step in world.nodes["a"].worker.ran[before:] if step.span == Span(0, 5)]
    rows = {(row.start, row.count) for step in after for row in step.rows}
    assert all((said.tokens, 1) in rows for said in returned)
    assert not any(pair.alive for pair in world.pairings.values() if pair.guest in names)


@pytest.mark.parametrize("rate", [0.0, 1e-3])
def test_over_a_slow_road_all_is_computed_anew(rate):
    world = StageWorld()
    world.back_bytes_per_s = rate
    for name in NAMES:
        world.add(name, loading=True, max_batched_tokens=20)
    world.chain(NAMES, CUTS)
    world.serve(NAMES, CUTS)
    world.play()
    for _ in range(3):
        world.ask(LONG, 20, instance="a")
    while not all(story.outputs for story in world.stories.values()):
        go(world, 1)
    world.complete("a")
    world.play(Random(1))
    world.assert_done()
    assert not any(isinstance(said, Return) for said in world.said)


def interfere(world: StageWorld, what: str) -> None:
    match what.split():
        case ["abort"]:
            for name in [name for name, story in world.stories.items() if not story.over]:
                world.abort(name)
        case ["kill", name]:
            world.kill(name)
        case ["break"]:
            world.break_pairing("p1")
        case ["fail"]:
            for name in [name for name in NAMES if world.nodes[name].worker.posted]:
                world.run_step(name, fail=True)
        case ["late"]:
            for _ in range(5):
                world.tick()
        case _:
            world.remove("a")


@pytest.mark.parametrize("moment", range(0, 40, 3))
@pytest.mark.parametrize("what", ["abort", "kill b", "kill c", "break", "fail", "late", "remove"])
def test_whatever_happens_while_it_takes_over(what, moment):
    world = pipeline()
    world.add("spare")
    ask(world, 6, max_tokens=20)
    while sum(s.instance == "a" and len(s.outputs) > 2 for s in world.stories.values()) < 2:
        go(world, 1, seed=moment + len(world.said))
    world.complete("a")
    assert any(isinstance(said, Return) for said in world.said)
    go(world, moment, seed=moment)
    interfere(world, what)
    world.play(Random(moment))
    world.assert_done()
    assert all(led(world, name).staged == 0 for name in NAMES if name in world.nodes)
    if what in ("kill b", "kill c", "break", "late"):
        assert not any(story.failures for story in world.stories.values())


@pytest.mark.parametrize(("prompt", "batch"), [(80, 10), (80, 40), (25, 10)])
def test_no_stage_idles_while_a_home_has_more(prompt, batch):
    """All stages take as long; what is said or sent is there by the next step."""
    world = StageWorld()
    same = {"n_layers": 6, "max_batched_tokens": batch}
    world.add("home", max_num_seqs=1, **same)
    cuts = [2, 4, 6]
    for name in NAMES:
        world.add(name, loading=True, **same)
    world.chain(NAMES, cuts)
    world.serve(NAMES, cuts)
    world.pair("a", "home", LivePolicy.PIPELINE)
    world.talk()
    for i in range(24):
        world.ask([(7 * i + j) % 97 for j in range(prompt)], 1)
    idle = dict.fromkeys(NAMES, 0)
    home = world.nodes["home"].scheduler
    for _ in range(200):  # its own first request stays there, and no step of it runs
        world.talk()
        if not home.statistics().instances["home"].waiting:
            break
        for name in NAMES:
            if world.nodes[name].worker.posted:
                world.run_step(name)
            else:
                idle[name] += 1
    assert not home.statistics().instances["home"].waiting
    assert idle == {"a": 0, "b": 1, "c": 2}  # until the first chunk is there
    assert not any(isinstance(said, Nothing) for said in world.said)
