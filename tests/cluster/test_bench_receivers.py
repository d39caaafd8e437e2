"""The bench's question after receivers that serve: what counts, what is read, what is shown."""

import json

import pytest

from tests.support import live_receivers as receivers
from tests.support.live_client import Answer
from tests.support.live_receivers import CASES, Served, counts, nodes, read, row, used
from tests.support.live_setting import LAYERS, Pace
from tests.support.live_virtual import expected_s, first_handed_over
from tests.support.multicast import OperationFailed

KWAY = next(one for one in CASES if one.by_receivers_alone)
HOME = next(one for one in CASES if not one.by_receivers_alone)
PACE = Pace(8.0, 7_940_000, 270_000_000)
ALONE, WITH_HOME = "bench@n4/p0:0-8,bench@n5/p0:8-32", "bench@n4/p0:0-8,bench@s0/p0:8-32"


def test_a_split_names_nodes_in_either_form():
    assert nodes(ALONE) == {"n4", "n5"}
    body = [{"instance": "bench@n4/p0", "layers": [0, 8]}, {"instance": "bench@s0/p0"}]
    assert nodes(json.dumps(body)) == {"n4", "s0"}
    assert nodes("") == set()


def test_receivers_alone_and_splits_with_a_home_are_told_apart():
    assert counts(KWAY, ALONE)
    assert not counts(KWAY, WITH_HOME)
    assert not counts(KWAY, "")
    assert counts(HOME, WITH_HOME)
    assert not counts(HOME, "bench@s0/p0:0-32")


def answer(name, first_s, split=""):
    return Answer(name, 100.0, 110.0, 200, "", [1, 2], split, "", [first_s, 109.0])


def test_the_first_token_is_told_in_parts_of_the_time_to_a_complete_receiver():
    targets = [{"state": "ready", "ready_s": s} for s in (1.9, 2.4)]
    answers = [answer("a", 100.4), answer("b", 103.0, ALONE), answer("c", 102.0, WITH_HOME)]
    wanted = dict.fromkeys("abc", (1, 2))
    facts = {"targets": targets, "pipelines": [[]]}
    found = read(KWAY, answers, facts, (100.0, 0.1, 2.0), 0.001, wanted, 0.5)
    assert (found.first_s, found.complete_s) == (1.5, 2.0)
    assert found.first_any_s == pytest.approx(0.2)
    assert found.ratio == pytest.approx(0.75)
    assert (found.counted, found.requests, found.tokens_ok) == (1, 3, True)
    other = read(KWAY, answers[:1], facts, (100.0, 0.1, 2.0), 0.0, {"a": (1, 3)}, 0.5)
    assert other.ratio == float("inf")
    assert not other.tokens_ok
    with pytest.raises(OperationFailed, match="no target"):
        read(KWAY, answers, {"targets": []}, (100.0, 0.1, 2.0), 0.0, wanted, 0.5)


def test_a_row_is_that_of_the_median_round_and_has_a_line():
    rounds = [
        Served(first, 1.0, 0.1, 3, 9, ALONE, 2, 0.4, 0.001, tokens_ok=True)
        for first in (0.5, 0.3, 0.4)
    ]
    made = row(KWAY, rounds)
    assert made["ratio"] == pytest.approx(0.4)
    assert "0.400" in receivers.receivers_table([made])
    assert receivers.receivers_table([made | {"tokens_ok": False}]).endswith("WRONG")


def test_processors_are_counted(tmp_path):
    file = tmp_path / "stat"
    file.write_text("cpu  10 5 10 55 20 0 0 0 0 0\n")  # the five are niced
    assert receivers.processors(file) == (20, 100)
    assert used((20, 100), (70, 200)) == pytest.approx(0.5)


def test_virtual_time_begins_with_the_first_layer_or_after_what_was_posted():
    setup = LAYERS, 6, 4
    early = expected_s("zigzag", PACE, *setup, 0.0)
    assert expected_s("zigzag", PACE, *setup, PACE.prompt_s) == early
    assert expected_s("zigzag", PACE, *setup, 1.0) == pytest.approx(early + 1.0 - PACE.prompt_s)
    assert early > 2 * PACE.prompt_s
    assert expected_s("stop", PACE, *setup, 0.0) == 0.0


def test_the_first_request_that_is_handed_over_is_found():
    from blitzgw.sim.live import LiveSetup, simulate_live

    outcome = simulate_live(LiveSetup(8, 4, 8.0, in_flight=4))
    assert first_handed_over(outcome) == sorted(outcome.completion)[1]
    assert first_handed_over(simulate_live(LiveSetup(8, 1, 8.0))) == -1.0
