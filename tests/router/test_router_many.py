"""Of very many instances a request looks at some, and finds what there is nevertheless."""

from __future__ import annotations

import random

from blitzgw.core.ports import Outlook
from blitzgw.core.request import GenerationRequest, SamplingParams
from blitzgw.router.dispatch import FEW, SOME
from blitzgw.router.router import Router
from tests.router.router_kit import Clock, Instance, World

MANY = 10 * FEW


class Counted(Instance):
    """An instance of another node; `looks` counts who has asked how busy any of them is."""

    looks = 0

    def outlook(self) -> Outlook:
        type(self).looks += 1
        return Outlook(self.queued(), 1000.0, 0.001, 0.01, open=self.open, reluctant=self.reluctant)


class Client:
    def __init__(self) -> None:
        self.failed: list[object] = []

    def push(self, event) -> None:
        pass

    def fail(self, error) -> None:
        self.failed.append(error)


def fleet(count: int = MANY) -> tuple[Router, list[Counted]]:
    router = Router(Clock(), max_attempts=3, hold_timeout_s=10, max_held=4, dice=random.Random(7))
    instances = [Counted(f"i{n}") for n in range(count)]
    for instance in instances:
        instance.router = router
        router.instance_up(instance)
    Counted.looks = 0
    return router, instances


def ask(router: Router, name: str, tokens: tuple[int, ...] = (1, 2, 3), session: str = "") -> str:
    sampling = SamplingParams(max_tokens=4, seed=1)
    request = GenerationRequest(name, "m", tokens, len(tokens), sampling, session=session)
    router.generate(request, Client())
    router.check_integrity()
    return router.instance_of(name) or ""


def test_a_request_looks_at_some_only() -> None:
    router, instances = fleet()
    for n in range(50):
        assert ask(router, f"r{n}", (n, 2, 3))
    assert Counted.looks <= 50 * SOME
    assert len({i.instance for i in instances if i.requests}) > 35  # and at others each time


def test_few_are_all_looked_at() -> None:
    router, instances = fleet(FEW)
    for instance in instances[1:]:
        instance.requests[f"old-{instance.instance}"] = GenerationRequest(
            "old", "m", (1,) * 500, 500, SamplingParams(1)
        )
    assert ask(router, "r") == "i0"
    assert Counted.looks == FEW


def test_the_only_open_one_is_found() -> None:
    router, instances = fleet()
    for instance in instances:
        instance.open = instance.instance == "i77"
    assert ask(router, "r") == "i77"


def test_the_only_one_with_room_is_found() -> None:
    router, instances = fleet()
    for instance in instances:
        instance.room = int(instance.instance == "i77")
    assert ask(router, "r") == "i77"


def test_none_open_means_held() -> None:
    router, instances = fleet()
    for instance in instances:
        instance.open = False
    assert ask(router, "r") == ""
    assert router.held("m") == 1


def test_a_reluctant_one_comes_after_all_willing_ones() -> None:
    router, instances = fleet()
    for instance in instances:
        instance.reluctant = instance.instance != "i5"
    assert ask(router, "r") == "i5"


def test_what_has_the_prompt_is_looked_at() -> None:
    router, _ = fleet()
    prompt = tuple(range(1000))
    first = ask(router, "r0", prompt)
    router.abort("r0")
    for n in range(1, 20):
        assert ask(router, f"r{n}", prompt) == first
        router.abort(f"r{n}")


def test_a_session_stays_where_it_is() -> None:
    router, _ = fleet()
    prompt = tuple(range(300))
    first = ask(router, "r0", prompt, session="s")
    router.abort("r0")
    assert ask(router, "r1", prompt, session="s") == first


def test_instances_come_and_go() -> None:
    router, instances = fleet()
    dice = random.Random(3)
    for n in range(200):
        gone = dice.choice(instances)
        router.instance_down(gone.instance, "test", planned=True)
        if dice.random() < 0.7:
            router.instance_up(gone)
        assert ask(router, f"r{n}", (n,))


def test_the_only_one_with_room_is_found_where_others_decline_later() -> None:
    """Instances of other nodes say so when the request has come to them."""
    world = World(dice=random.Random(7))
    instances = [world.far(f"i{n}", room=int(n == 77)) for n in range(MANY)]
    for instance in instances:
        instance.told = 0 if instance.room else 900
    sink = world.ask()
    for _ in range(2):
        for instance in instances:
            instance.arrive()
    assert not sink.errors
    assert world.router.instance_of("r0") == "i77"


def test_routers_agree_upon_the_place_of_a_session() -> None:
    """Though none has heard of it before, and each has its own dice."""
    found = set()
    for order in range(4):
        router = Router(
            Clock(), max_attempts=3, hold_timeout_s=10, max_held=4, dice=random.Random(order)
        )
        names = [f"i{n}" for n in range(MANY)]
        random.Random(order).shuffle(names)
        for name in names:
            instance = Counted(name)
            instance.router = router
            router.instance_up(instance)
        found.add(ask(router, "r", session="conversation"))
    assert len(found) == 1
