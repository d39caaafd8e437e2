"""The monitor: what nodes tell, the newest counts; rates are remembered; arrivals are measured."""

import pytest

from blitzgw.core.scale import Demand, bucket_of, upper_s
from blitzgw.core.view import LoadFacts, ScaleTerms
from blitzgw.scaling.arrivals import Arrivals
from blitzgw.scaling.autoevents import Coming
from blitzgw.scaling.decodesteps import DecodeSteps
from blitzgw.scaling.monitor import KINDS, Monitor
from blitzgw.scaling.tellings import STALE_S

TERMS = ScaleTerms(ttft_s=1.0, tpot_s=0.1)


def demand(number, *loads, **more):
    return Demand("m", "d", number, loads=loads, **more)


def load(name="i", number=1, **more):
    return LoadFacts(name, number=number, **more)


def test_backlog_is_queued_and_held_over_all_nodes():
    monitor = Monitor("m", 0.0)
    monitor.take("a", demand(1, load("i", queued_tokens=100), held=2, held_tokens=50), 0.0)
    monitor.take("b", demand(1, load("j", queued_tokens=7, running=3, waiting=2)), 0.0)
    figures = monitor.figures(TERMS, 2, (), 0.0)
    assert (figures.backlog_tokens, figures.held, figures.held_tokens) == (157, 2, 50)
    assert (figures.running, figures.waiting) == (3, 2)


def test_a_demand_replaces_the_former_one_and_an_older_one_is_dropped():
    monitor = Monitor("m", 0.0)
    assert monitor.take("a", demand(5, held=2, held_tokens=50), 0.0)
    assert not monitor.take("a", demand(5, held=9, held_tokens=90), 0.0)
    assert not monitor.take("a", demand(4, held=9, held_tokens=90), 0.0)
    assert monitor.figures(TERMS, 0, (), 0.0).held == 2
    assert monitor.take("a", demand(6), 0.0)
    assert monitor.figures(TERMS, 0, (), 0.0).held == 0


def test_a_dead_node_is_forgotten():
    monitor = Monitor("m", 0.0)
    monitor.take("a", demand(1, load(queued_tokens=9), held=2, held_tokens=50), 0.0)
    monitor.forget("a", 0.1)
    monitor.forget("a", 0.1)
    figures = monitor.figures(TERMS, 0, (), 0.1)
    assert (figures.backlog_tokens, figures.held) == (0, 0)


def test_a_demand_that_is_not_repeated_does_not_count_for_ever():
    monitor = Monitor("m", 0.0)
    monitor.take("a", demand(1, held=2, held_tokens=50), 0.0)
    assert monitor.figures(TERMS, 0, (), STALE_S).held == 2
    assert monitor.figures(TERMS, 0, (), STALE_S + 0.1).held == 0


def test_of_two_loads_the_newer_counts_and_the_view_is_the_backup():
    monitor = Monitor("m", 0.0)
    monitor.look({}, [load("i", 3, queued_tokens=30), load("j", 1, queued_tokens=1)], 0.0)
    monitor.take("a", demand(1, load("i", 4, queued_tokens=40)), 0.0)
    assert monitor.figures(TERMS, 2, (), 0.0).backlog_tokens == 41
    monitor.look({}, [load("i", 5, queued_tokens=50), load("j", 1, queued_tokens=1)], 0.0)
    assert monitor.figures(TERMS, 2, (), 0.0).backlog_tokens == 51


def test_committed_kv_counts_held_requests_as_the_others_are():
    monitor = Monitor("m", 0.0)
    one = load(running=3, waiting=1, kv_tokens=10_000, kv_committed_tokens=4000)
    monitor.look({"i": "gpu"}, [], 0.0)
    monitor.take("a", demand(1, one, held=2, held_tokens=500), 0.0)
    figures = monitor.figures(TERMS, 1, (), 0.0)
    assert figures.committed_tokens == 6000
    assert figures.kv_tokens == 10_000


def test_an_instance_that_does_not_tell_what_it_promised_tells_what_it_uses():
    monitor = Monitor("m", 0.0)
    monitor.take("a", demand(1, load(running=1, kv_tokens=1000, kv_usage=0.5)), 0.0)
    assert monitor.figures(TERMS, 1, (), 0.0).committed_tokens == 500


def test_rates_are_means_without_outliers_and_are_remembered_by_device():
    monitor = Monitor("m", 0.0)
    monitor.look({"i": "gpu", "j": "gpu", "k": "gpu", "c": "cpu"}, [], 0.0)
    loads = [
        load("i", prefill_tokens_per_s=900.0),
        load("j", prefill_tokens_per_s=1100.0),
        load("k", prefill_tokens_per_s=10.0),
        load("c"),
        load("not-whole", prefill_tokens_per_s=5.0),
    ]
    monitor.take("a", demand(1, *loads), 0.0)
    assert monitor.figures(TERMS, 4, (), 0.0).prefill_tokens_per_s == pytest.approx(1000)
    monitor.look({}, [], 1.0)
    monitor.forget("a", 1.0)
    assert monitor.figures(TERMS, 0, (), 1.0, "gpu").prefill_tokens_per_s == pytest.approx(1000)
    assert monitor.figures(TERMS, 0, (), 1.0, "new").prefill_tokens_per_s == pytest.approx(1000)
    assert Monitor("m", 0.0).figures(TERMS, 0, (), 0.0).prefill_tokens_per_s is None


def test_no_more_kinds_are_remembered_than_there_is_room_for():
    monitor = Monitor("m", 0.0)
    for i in range(KINDS + 10):
        monitor.look({"i": f"kind {i}"}, [], float(i))
        monitor.take("a", demand(i + 1, load(prefill_tokens_per_s=10.0)), float(i))
        monitor.figures(TERMS, 1, (), float(i))
        monitor.check_integrity()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0, -3.0])
def test_a_rate_that_is_none_is_not_taken(bad):
    monitor = Monitor("m", 0.0)
    monitor.look({"i": "gpu"}, [], 0.0)
    told = load(prefill_tokens_per_s=bad, decode_step_s=bad, running=1, kv_usage=bad)
    monitor.take("a", demand(1, told), 0.0)
    figures = monitor.figures(TERMS, 1, (), 0.0)
    assert figures.prefill_tokens_per_s is None
    assert figures.committed_tokens == 0


def test_idle_is_since_the_last_request_arrived_or_was_under_way():
    monitor = Monitor("m", 0.0)
    assert monitor.figures(TERMS, 1, (), 2.0).idle_s == 2.0
    monitor.take("a", demand(1, load(running=1), arrived=1), 3.0)
    assert monitor.figures(TERMS, 1, (), 4.0).idle_s == 0.0
    monitor.take("a", demand(2, load(), arrived=1), 5.0)
    assert monitor.figures(TERMS, 1, (), 9.0).idle_s == 4.0
    monitor.take("a", demand(3, load(), arrived=2), 10.0)  # it came and went in between
    assert monitor.figures(TERMS, 1, (), 11.0).idle_s == 1.0


def test_arrivals_are_differences_and_those_of_long_ago_do_not_count():
    monitor = Monitor("m", 0.0)
    first = demand(70, load(running=2), arrived=1000, arrived_tokens=100_000)
    monitor.take("a", first, 20.0)
    figures = monitor.figures(TERMS, 1, (), 20.0)
    assert figures.steady_requests == 2
    assert figures.steady_tokens_per_s == pytest.approx(20.0)
    monitor.take("a", demand(71, load(running=2), arrived=1008, arrived_tokens=100_800), 21.0)
    assert monitor.figures(TERMS, 1, (), 21.0).steady_tokens_per_s == pytest.approx(100.0)
    assert monitor.figures(TERMS, 1, (), 22.5).recent_tokens_per_s == pytest.approx(400.0)
    assert monitor.figures(TERMS, 1, (), 23.5).recent_tokens_per_s == 0.0
    monitor.take("a", demand(72, load(running=2), arrived=1008, arrived_tokens=100_500), 24.0)
    assert monitor.figures(TERMS, 1, (), 24.0).steady_tokens_per_s == pytest.approx(70.0)


def test_quantiles_and_pressure_come_from_what_clients_have_seen():
    monitor = Monitor("m", 0.0)
    told = demand(1, load(running=1), ttft={bucket_of(0.3): 10}, tpot={bucket_of(0.2): 10})
    monitor.take("a", told, 0.0)
    figures = monitor.figures(TERMS, 1, (), 0.0)
    quantiles = monitor.quantiles(0.0)
    assert quantiles["ttft_p50_s"] == upper_s(bucket_of(0.3))
    assert quantiles["tpot_p90_s"] == figures.tpot_s == upper_s(bucket_of(0.2))
    assert figures.pressure == pytest.approx(2.0, rel=0.06)
    assert "queue_p50_s" not in quantiles
    assert monitor.quantiles(60.0) == {}


def test_what_is_coming_shortens_the_prediction():
    monitor = Monitor("m", 0.0)
    monitor.look({"i": "gpu"}, [], 0.0)
    monitor.take("a", demand(1, load(queued_tokens=4000, prefill_tokens_per_s=1000.0)), 0.0)
    alone = monitor.figures(TERMS, 1, (), 0.0).predicted_ttft_s
    helped = monitor.figures(TERMS, 1, (Coming("c", 0.0, 1.0, False),), 0.0).predicted_ttft_s
    assert alone == pytest.approx(3.6)
    assert helped == pytest.approx(2.3)


def test_what_comes_at_once_is_not_taken_for_a_rate_and_what_lasts_is():
    arrivals = Arrivals(0.0, 20.0)
    arrivals.add(50, 50_000, 5.0)
    assert arrivals.sustained(5.0) == (0.0, 0.0)
    for i in range(40):
        arrivals.add(1, 100, 10.0 + i * 0.01)
    seen, certain = arrivals.sustained(10.4)
    assert seen == pytest.approx(10_000, rel=0.25)
    assert 0.6 * seen < certain < seen
    assert arrivals.sustained(10.4, prompt_s=100.0) == (0.0, 0.0)


def test_arrivals_take_bounded_memory():
    arrivals = Arrivals(0.0, 1.0)
    for i in range(20_000):
        arrivals.add(1, 10, i * 0.001)
    assert len(arrivals) <= 210
    assert arrivals.rate(19.999, 1.0)[0] == pytest.approx(1000, rel=0.02)


@pytest.mark.parametrize(
    ("points", "target", "batch"),
    [
        ([], 0.1, 0),
        ([(4, 0.02)], 0.1, 0),  # nothing is known above
        ([(4, 0.2)], 0.1, 2),
        ([(1, 0.2)], 0.1, 0),  # not even one: more instances are of no use
        ([(1, 0.02), (16, 0.05)], 0.1, 41),
        ([(1, 0.02), (16, 0.2)], 0.11, 8),
        ([(1, 0.05), (16, 0.05)], 0.1, 0),
        ([(1, 0.05), (8, 0.02)], 0.1, 0),
    ],
)
def test_what_batch_a_target_allows(points, target, batch):
    steps = DecodeSteps()
    for size, step_s in points:
        steps.observe(size, step_s)
    assert steps.batch_within(target) == batch


def test_of_who_has_been_silent_for_long_only_what_is_new_counts():
    monitor = Monitor("m", 0.0)
    for boot in "abc":
        monitor.take(boot, demand(7, arrived=100, arrived_tokens=9000), 0.0)
    monitor.figures(TERMS, 1, (), 60.0)
    monitor.check_integrity()
    assert not monitor._tellings._told, "a look goes through those who have told something of late"
    assert not monitor.take("a", demand(7, held=1), 60.0), "it is no news"
    assert monitor.take("a", demand(8, arrived=110, arrived_tokens=9500), 60.0)
    figures = monitor.figures(TERMS, 1, (), 60.0)
    assert (figures.steady_requests, figures.steady_tokens_per_s) == (10, 50.0)
    monitor.forget("b", 60.0)
    assert monitor.take("b", demand(1, arrived=110, arrived_tokens=9500), 60.0)
    monitor.check_integrity()
    assert monitor.figures(TERMS, 1, (), 60.0).steady_requests == 10, "of long ago, perhaps"
