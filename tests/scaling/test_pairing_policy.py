"""Who helps whom while it loads, and by which policy."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.core.instance import InstanceState, Role
from blitzgw.core.live import LivePolicy, Pair
from blitzgw.core.plan import Links, Plan, Port, Prediction
from blitzgw.core.view import HostFacts, LoadFacts, ModelFacts, NetworkFacts
from blitzgw.scaling.homes import homes_of
from blitzgw.scaling.livechoice import configured_policy, objection
from blitzgw.scaling.pairing import Pairing
from tests.scaling.view_kit import MODEL, W, instance, node, view

N_LAYERS = 8
BIG = replace(MODEL, blob_bytes=(10,) * (N_LAYERS + 2), hidden_bytes=1000, kv_layer_bytes=100)
ZIGZAG, STOP = LivePolicy.ZIGZAG, LivePolicy.STOP


def home(name, queued=0, waiting=0, rate=None, **more):
    """A node with a complete instance on g0."""
    there = replace(instance("g0"), id=f"m@{name}/g0", **more.pop("facts", {}))
    load = LoadFacts(there.id, 0, waiting, queued, prefill_tokens_per_s=rate)
    return node(name, devices=2, instances=[there], loads={there.id: load}, **more)


def links(*names, rate=1e9):
    return Links({(name, "net"): Port(rate, rate) for name in names})


def foreseen(targets, per_layer_s=0.1):
    arrivals = tuple(per_layer_s * blob for blob in range(N_LAYERS + 2))
    return Prediction(dict.fromkeys(targets, arrivals), arrivals[-1], arrivals[1], arrivals[-1])


def paired(pairing, seen, *targets, rate=1e9, per_layer_s=0.1):
    names = [each.name for each in seen.nodes.values()]
    prediction = foreseen(targets, per_layer_s)
    return pairing.pair(Plan("x", targets), prediction, links(*names, rate=rate), seen, targets)


def homes(plan):
    return {pair.worker: pair.home for pair in plan.pairs}


# -- homes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "facts",
    [
        {"state": InstanceState.LOADING},
        {"state": InstanceState.DRAINING},
        {"role": Role.DECODE},
        {"weights": "other"},
        {"model": "other"},
    ],
)
def test_a_home_is_complete_and_takes_prompts(facts):
    assert homes_of(BIG, view(home("a", facts=facts)), ()) == {}
    assert list(homes_of(BIG, view(home("a")), ())) == ["m@a/g0"]
    assert homes_of(BIG, view(home("a")), ["a/g0"]) == {}, "a target is none"


def test_without_a_home_nobody_helps():
    plan = paired(Pairing(BIG, ""), view(node("a"), node("b")), "b/g0")
    assert (plan.policy, plan.pairs) == (STOP, ())


def test_more_work_for_each_helper_first_then_evenly():
    seen = view(home("a", queued=100), home("b", queued=10_000), node("c", devices=4))
    plan = paired(Pairing(BIG, ""), seen, *(f"c/g{i}" for i in range(4)))
    assert list(homes(plan).values()) == ["m@b/g0"] * 4
    seen = view(home("a", queued=6000), home("b", queued=10_000), node("c", devices=4))
    plan = paired(Pairing(BIG, ""), seen, *(f"c/g{i}" for i in range(4)))
    assert list(homes(plan).values()) == ["m@b/g0", "m@a/g0", "m@b/g0", "m@b/g0"]
    idle = view(home("a"), home("b"), node("c", devices=4))
    assert sorted(homes(paired(Pairing(BIG, ""), idle, "c/g0", "c/g1")).values()) == [
        "m@a/g0",
        "m@b/g0",
    ]


def test_an_idle_home_counts_as_one_batch():
    seen = view(home("a"), home("b", queued=500), node("c", devices=3))
    targets = ("c/g0", "c/g1", "c/g2")
    evenly = {"c/g0": "m@b/g0", "c/g1": "m@a/g0", "c/g2": "m@b/g0"}
    assert homes(paired(Pairing(BIG, ""), seen, *targets)) == evenly
    told = ModelFacts("m", BIG.digest, N_LAYERS, 0, max_batched_tokens=100)
    small = view(*(replace(each, models={"m": told}) for each in seen.nodes.values()))
    assert {each.batch_tokens for each in homes_of(BIG, small, ()).values()} == {100}
    assert set(homes(paired(Pairing(BIG, ""), small, *targets)).values()) == {"m@b/g0"}


def test_those_who_help_for_another_operation_count():
    busy = replace(instance("g3", state=InstanceState.LOADING), helps="m@a/g0")
    seen = view(home("a"), home("b"), node("c", devices=4, instances=[busy]))
    assert homes(paired(Pairing(BIG, ""), seen, "c/g0")) == {"c/g0": "m@b/g0"}


def test_near_ones_first():
    host = HostFacts(1, zone="r1", networks=(NetworkFacts("net", "h", 1.0),))
    seen = view(home("a"), replace(home("b"), host_facts=host), node("c", zone="r1"))
    assert homes(paired(Pairing(BIG, ""), seen, "c/g0")) == {"c/g0": "m@b/g0"}
    seen = view(home("a"), replace(home("b"), host_facts=host))
    assert homes(paired(Pairing(BIG, ""), seen, "a/g1")) == {"a/g1": "m@a/g0"}


def test_who_shares_no_network_cannot_help():
    apart = node("c", net=NetworkFacts("other", "h", 1.0))
    plan = paired(Pairing(BIG, ""), view(home("a"), apart), "c/g0")
    assert (plan.policy, plan.pairs) == (STOP, ())


def test_a_target_keeps_its_home_until_that_is_gone():
    pairing = Pairing(BIG, "")
    both = view(home("a", queued=10), home("b"), node("c", devices=2))
    assert homes(paired(pairing, both, "c/g0")) == {"c/g0": "m@a/g0"}
    turned = view(home("a"), home("b", queued=10**6), node("c", devices=2))
    assert not pairing.outlived(turned)
    plan = paired(pairing, turned, "c/g0", "c/g1")
    assert homes(plan) == {"c/g0": "m@a/g0", "c/g1": "m@b/g0"}
    gone = view(home("b"), node("c", devices=2))
    assert pairing.outlived(gone)
    assert set(homes(paired(pairing, gone, "c/g0", "c/g1")).values()) == {"m@b/g0"}
    none = view(node("c", devices=2))
    plan = paired(pairing, none, "c/g0", "c/g1")
    assert (plan.policy, plan.pairs) == (STOP, ())
    assert not pairing.outlived(none), "nothing more can be lost"


def test_a_death_that_the_view_does_not_show_yet_counts():
    pairing = Pairing(BIG, "")
    both = view(home("a", queued=10), home("b"), node("c"))
    paired(pairing, both, "c/g0")
    assert not pairing.died("boot-b")
    pairing = Pairing(BIG, "")
    paired(pairing, both, "c/g0")
    assert pairing.died("boot-a")
    assert homes(paired(pairing, both, "c/g0")) == {"c/g0": "m@b/g0"}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_pairs_are_stable_and_every_home_is_in_the_view(data):
    names = ["a", "b", "c", "d"]
    workers = [f"t/g{i}" for i in range(5)]
    pairing, former = Pairing(BIG, data.draw(st.sampled_from(["", "auto", "zigzag"]))), {}
    for _ in range(data.draw(st.integers(1, 5))):
        there = data.draw(st.sets(st.sampled_from(names)))
        queued = {name: data.draw(st.integers(-1, 10**9)) for name in sorted(there)}
        rate = data.draw(
            st.sampled_from([None, 1e3, 5e-324, 1e308, 0.0, -1.0, float("nan"), float("inf")])
        )
        made = [home(name, queued[name], 3, rate) for name in sorted(there)]
        seen = view(node("t", devices=5), *made)
        targets = data.draw(st.sets(st.sampled_from(workers)))
        plan = paired(pairing, seen, *sorted(targets))
        found = homes(plan)
        assert set(found.values()) <= set(homes_of(BIG, seen, targets))
        assert (plan.policy is STOP) == (not found)
        if plan.policy is not STOP:
            assert set(found) == targets
        for worker, kept in former.items():
            if worker in found and kept.removeprefix("m@").partition("/")[0] in there:
                assert found[worker] == kept
        former |= found


# -- the policy ------------------------------------------------------------------------------------


def test_zigzag_where_it_pays_and_the_event_says_what_it_brings():
    pairing = Pairing(BIG, "")
    seen = view(home("a", queued=24_000, waiting=24, rate=8_000.0), node("b"))
    plan = paired(pairing, seen, "b/g0")
    assert plan.policy is ZIGZAG
    assert plan.pairs == (Pair("b/g0", "m@a/g0"),)
    means = pairing.decision.means
    assert means["zigzag"] < means["stop"]
    told = f"predicted mean {means['zigzag']:.3g} s, stop {means['stop']:.3g} s"
    assert pairing.decision.text() == f"live policy zigzag: {told}"


def test_stop_where_handing_over_costs_more_than_it_saves():
    pairing = Pairing(BIG, "")
    seen = view(home("a", queued=24_000, waiting=24, rate=8_000.0), node("b"))
    plan = paired(pairing, seen, "b/g0", rate=1e4)
    assert plan.policy is STOP
    assert plan.pairs == (Pair("b/g0", "m@a/g0"),), "whose queue is dealt out at the end"
    assert pairing.decision.means["stop"] < pairing.decision.means["zigzag"]


def test_without_measurements_zigzag():
    pairing = Pairing(BIG, "")
    seen = view(home("a", queued=24_000, waiting=24), node("b"))
    assert paired(pairing, seen, "b/g0").policy is ZIGZAG
    assert "is not known yet" in pairing.decision.text()


@pytest.mark.parametrize(("rate", "policy"), [(1e9, ZIGZAG), (1e4, STOP)])
def test_where_nothing_waits_a_full_queue_is_supposed(rate, policy):
    pairing = Pairing(BIG, "")
    seen = view(home("a", rate=8_000.0), node("b"))
    assert paired(pairing, seen, "b/g0", rate=rate, per_layer_s=1.0).policy is policy
    assert "now none waits" in pairing.decision.text()


@pytest.mark.parametrize("policy", list(LivePolicy))
def test_what_is_ordered_or_configured_is_done(policy):
    seen = view(home("a", queued=24_000, waiting=24, rate=8_000.0), node("b"))
    pairing = Pairing(BIG, policy)
    assert paired(pairing, seen, "b/g0", rate=1e4).policy is policy
    assert pairing.decision.text() == f"live policy {policy}: as ordered"
    facts = ModelFacts("m", MODEL.digest, 2, 0, live=policy)
    seen = view(*(replace(n, models={"m": facts}) for n in seen.nodes.values()))
    pairing = Pairing(BIG, "")
    assert paired(pairing, seen, "b/g0", rate=1e4).policy is policy
    assert pairing.decision.text() == f"live policy {policy}: as configured"
    ordered = Pairing(BIG, "auto")
    paired(ordered, seen, "b/g0")
    assert ordered.decision.means, "an order for auto prevails"


def test_the_oldest_definition_says_and_what_nobody_understands_is_auto():
    def defining(name, since_s, live, digest=MODEL.digest):
        models = {"m": ModelFacts("m", digest, 2, since_s, live=live)}
        return replace(node(name), models=models)

    old, new = defining("a", 5, "stop"), defining("b", 9, "zigzag")
    assert configured_policy(BIG, view(new, old)) == "stop"
    assert configured_policy(BIG, view(new, defining("c", 1, "stop", "other"))) == "zigzag"
    assert configured_policy(BIG, view(defining("a", 1, "teleport"))) == "auto"
    assert configured_policy(BIG, view()) == "auto"


def test_a_policy_stays_once_instances_help_by_it():
    pairing = Pairing(BIG, "")
    assert paired(pairing, view(home("a"), node("b")), "b/g0").policy is ZIGZAG
    seen = view(home("a", queued=24_000, waiting=24, rate=8_000.0), node("b"))
    assert paired(pairing, seen, "b/g0", rate=1e4).policy is ZIGZAG


def test_what_cannot_be_ordered_is_told():
    there, nowhere = view(home("a")), view(node("a"))
    for policy in ("", "auto", "stop"):
        assert objection(policy, BIG, nowhere) == ("", "")
    for policy in ("zigzag", "best-effort", "pipeline"):
        assert objection(policy, BIG, there) == ("", "")
        if policy == "pipeline":
            assert objection(policy, BIG, nowhere) == ("", ""), "targets have each other"
            continue
        code, text = objection(policy, BIG, nowhere)
        assert code == "no_capacity"
        assert "none serves" in text
    code, text = objection("zagzig", BIG, there)
    assert code == "bad_request"
    assert "auto, stop, best-effort, zigzag, pipeline" in text
    code, text = objection("pipeline", replace(BIG, blob_bytes=(1, 1, 1)), there)
    assert (code, "two layers" in text) == ("bad_request", True)


def test_many_homes_helpers_layers_and_requests_take_little_time():
    model = replace(BIG, blob_bytes=(10,) * 130)
    targets = [f"t/g{i}" for i in range(64)]
    made = [home(f"h{i}", 10**6 + i, 1000, 8_000.0) for i in range(32)]
    seen = view(node("t", devices=64), *made)
    arrivals = tuple(0.1 * blob for blob in range(130))
    prediction = Prediction(dict.fromkeys(targets, arrivals), 13.0, 0.1, 13.0)
    pairing, begun = Pairing(model, ""), time.process_time()
    names = [each.name for each in seen.nodes.values()]
    plan = pairing.pair(Plan("x", tuple(targets)), prediction, links(*names), seen, targets)
    assert time.process_time() - begun < 1.0
    assert plan.policy is ZIGZAG
    assert len({pair.home for pair in plan.pairs}) == 32, "evenly"


def test_one_layer_is_enough_to_walk():
    model = replace(BIG, blob_bytes=(1, 1, 1), weights=W)
    seen = view(home("a", queued=100, waiting=2, rate=10.0), node("b"))
    prediction = Prediction({"b/g0": (0.0, 1.0, 2.0)}, 2.0, 0.0, 2.0)
    pairing = Pairing(model, "")
    plan = pairing.pair(Plan("x", ("b/g0",)), prediction, links("a", "b"), seen, ["b/g0"])
    assert plan.policy is ZIGZAG
