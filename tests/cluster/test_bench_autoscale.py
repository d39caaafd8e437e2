"""What the bench of self-scaling reads, plays and adds up."""

from pathlib import Path

import pytest

from tests.support.arrivals import Arrival, Objective, read_trace, scaled
from tests.support.autoscale_bench import Watch, quantile, table

TRACES = Path(__file__).parents[2] / "scripts/traces"
ROW = {
    "system": "live", "attainment": 0.9, "ttft_p50": 0.1, "ttft_p90": 0.2, "ttft_p99": 0.3,
    "tpot_p99": 0.03, "instance_seconds": 40.0, "seconds": 20.0, "failed": 0, "split": 3,
    "lag_p99": 0.002, "void": True,
}  # fmt: skip


def test_a_window_of_a_trace_begins_at_its_start():
    code = TRACES / "azure2023_code_first_800s.csv"
    arrivals = read_trace(code, (540, 800))
    assert len(read_trace(code, (0, 800))) == 1966
    assert len(arrivals) == 960
    assert 0 <= arrivals[0].at_s < arrivals[-1].at_s < 260
    assert all(one.prompt_tokens > 0 and one.output_tokens > 0 for one in arrivals)
    assert len(read_trace(TRACES / "azure2023_conv_first_1200s.csv", (0, 1200))) == 5985


@pytest.mark.parametrize("factor", [0.25, 1.0, 2.5])
def test_arrivals_are_thinned_or_replicated_alike_for_a_seed(factor):
    base = [Arrival(n / 10, 100 + n, 5) for n in range(1000)]
    made = scaled(base, factor, 7, 100.0)
    assert made == scaled(base, factor, 7, 100.0) != scaled(base, factor, 8, 100.0) or factor == 1
    assert len(made) == pytest.approx(factor * 1000, rel=0.1)
    assert made == sorted(made, key=lambda one: one.at_s)
    assert {one.prompt_tokens for one in made} <= {one.prompt_tokens for one in base}
    assert all(0 <= one.at_s <= 100 for one in made)


def test_what_is_due_follows_from_what_a_request_takes_alone():
    objective = Objective(tokens_per_s=10_000, step_s=0.01)
    assert objective.ttft_s(2000) == pytest.approx(5 * 0.21)
    assert objective.tpot_s == pytest.approx(0.05)


def test_instance_time_counts_whoever_holds_weights_until_the_end():
    watch = Watch([(-1.0, {"serving": 1}), (4.0, {"serving": 1, "loading": 2}), (6.0, {"kept": 1})])
    assert watch.instance_seconds(10.0) == pytest.approx(4 * 1 + 2 * 3 + 4 * 1)
    watch.seen.append((8.0, {"gone": 3}))
    assert watch.instance_seconds(10.0) == pytest.approx(4 + 6 + 2)
    assert not watch.settled
    watch.seen += [(9.0, {"serving": 1})] * 20
    assert watch.settled


def test_the_table_tells_shares_and_what_is_void():
    head, row = table([ROW], nodes=8).splitlines()
    assert "attained" in head
    assert "25.0%" in row
    assert row.endswith("void")
    assert max(map(len, (head, row))) <= 110
    assert quantile([], 0.5) == -1
    assert quantile([1.0, 2.0, 3.0], 0.99) == 3.0
