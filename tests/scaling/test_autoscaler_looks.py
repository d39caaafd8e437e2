"""When an owner looks at a model: as soon as it may have to act, and no oftener."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blitzgw.core.view import ScaleTerms
from blitzgw.scaling.charge import LOOK_S, PROGRESS_S
from tests.scaling.autoscaler_kit import AUTO, Bench, load, orders
from tests.scaling.view_kit import device


class Looks(Bench):
    """Knows when its autoscaler has looked."""

    def __init__(self, *told, **changes):
        self.looks = []
        super().__init__(*told, **changes)

    def start(self, boot):
        super().start(boot)
        judge = self.scalers[boot]._judge
        honest = judge.judge

        def noted(charge, now):
            self.looks.append((charge.model, now))
            return honest(charge, now)

        judge.judge = noted

    def while_(self, happens):
        """Return which models are looked at while that happens."""
        self.looks.clear()
        happens()
        return [model for model, _ in self.looks]


def serving(terms=None, **changes):
    bench = Looks(terms or {"m": replace(AUTO, min_instances=1)}, **changes)
    bench.put("a/g0", prefill_tokens_per_s=1000.0)
    bench.settle()
    bench.demand(arrived=5, loads=(load("a/g0", queued_tokens=100, running=2),))
    return rested(bench)


def rested(bench, boot=None):
    """Let it look, and be ready to look again."""
    bench.run(2.0, boot)
    charge = bench.scalers[boot or min(bench.scalers)]._charges.get("m")
    bench.now = charge.look_at
    bench.look(boot=boot)
    bench.now += LOOK_S
    return bench


MORE = {
    "a request": {"arrived": 6},
    "one that is held": {"held": 1},
    "tokens": {"loads": (load("a/g0", queued_tokens=101, running=2),)},
    "one that waits": {"loads": (load("a/g0", queued_tokens=100, running=2, waiting=1),)},
    "memory": {"loads": (load("a/g0", queued_tokens=100, running=2, kv_committed_tokens=9),)},
    "an instance": {"loads": (load("a/g0", queued_tokens=100, running=2), load("a/g1"))},
}


@pytest.mark.parametrize("told", MORE.values(), ids=MORE)
def test_more_to_do_is_looked_at_at_once(told):
    bench = serving()
    same = {"arrived": 5, "loads": (load("a/g0", queued_tokens=100, running=2),)}
    assert bench.while_(lambda: bench.demand(**{**same, **told})) == ["m"]


@pytest.mark.parametrize(
    ("queued", "running", "waiting"), [(100, 2, 0), (0, 2, 0), (100, 1, 0), (100, 0, 1)]
)
def test_progress_is_looked_at_a_little_later(queued, running, waiting):
    bench = serving()
    told = load("a/g0", queued_tokens=queued, running=running, waiting=waiting)
    began = bench.now
    assert not bench.while_(lambda: bench.demand(arrived=5, loads=(told,)))
    bench.run(PROGRESS_S)
    (looked_s,) = [at for _, at in bench.looks]
    assert looked_s - began == pytest.approx(PROGRESS_S)


def test_what_is_told_of_progress_is_known_to_whoever_looks_sooner():
    bench = serving()
    bench.demand(arrived=5, loads=(load("a/g0", queued_tokens=0, running=1),))
    effects = bench.demand("boot-b", arrived=1, held=1, held_tokens=10)
    assert not orders(effects)
    assert bench.scaler._judged["m"].figures.running == 1


def test_a_rate_that_is_known_at_last_is_news():
    before = replace(load("a/g0", running=1), prefill_tokens_per_s=None)
    bench = Looks({"m": replace(AUTO, min_instances=1)})
    bench.put("a/g0")
    bench.settle()
    bench.demand(arrived=1, loads=(before,))
    rested(bench)
    known = load("a/g0", running=1)
    assert bench.while_(lambda: bench.demand(arrived=1, loads=(known,))) == ["m"]


def test_instances_of_another_model_are_no_reason_to_look():
    bench = Looks({"m": replace(AUTO, min_instances=1), "n": ScaleTerms()}, nodes=("a", "b"))
    bench.put("a/g0", prefill_tokens_per_s=1000.0)
    boot = bench.owner("m")
    for model, seen in (("n", False), ("m", True)):
        bench.changed(boot)
        rested(bench, boot)
        bench.put("b/g1", model=model)
        assert ("m" in bench.while_(lambda: bench.changed(boot))) is seen


def test_terms_are_a_reason_to_look():
    bench = serving({"m": replace(AUTO, min_instances=1), "n": ScaleTerms()})
    bench.run(0.2)
    told = bench.nodes["boot-a"].models["m"]
    fewer = {"m": replace(told, scaling=replace(AUTO, min_instances=2))}
    bench.change("boot-a", models={**bench.nodes["boot-a"].models, **fewer})
    bench.looks.clear()
    assert orders(bench.changed()) == [2]
    assert {model for model, _ in bench.looks} == {"m"}


def test_who_lacks_devices_takes_whatever_gets_free():
    terms = {"m": replace(AUTO, min_instances=3), "n": ScaleTerms()}
    bench = Looks(terms, devices=2)
    for where, model in (("a/g0", "m"), ("a/g1", "n")):
        bench.put(where, model=model, prefill_tokens_per_s=1000.0)
    bench.settle()
    assert not orders(bench.run(2.0))
    bench.change("boot-a", devices={name: device(name) for name in ("g0", "g1", "g5")})
    assert orders(bench.changed()) == [2]
