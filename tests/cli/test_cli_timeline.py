"""`blitzgw inspect events` of all models: decisions and operations by time, also as they come."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.api.operations import summary
from blitzgw.api.why import decision as told_decision
from blitzgw.cli import happenings, timeline
from blitzgw.cli.ask import Asker
from blitzgw.cli.main import main
from blitzgw.cli.timeline import Follower, decided
from blitzgw.errors import BlitzError
from tests.api.why_kit import ExplainingScaling, decision, why
from tests.cli.inspect_kit import serving
from tests.support.scalenode import scale_node_beside
from tests.support.scaling import STARTED_S, chain

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "blitzgw.cli.main", "inspect", "events"]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("BLITZGW_URL", "BLITZGW_API_KEY", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    for module in (happenings, timeline):
        monkeypatch.setattr(module, "POLL_S", 0.01)


@pytest.fixture
def scaling():
    return ExplainingScaling()


@pytest.fixture
def url(scaling, monkeypatch):
    with scale_node_beside(scaling) as url:
        monkeypatch.setenv("BLITZGW_URL", url)
        yield url


def json_of(value):
    return orjson.loads(orjson.dumps(value))


def said(capsys, *command, code=0):
    assert main(["inspect", "events", *command]) == code
    return capsys.readouterr()


def words(text):
    """The lines without their dates and times of day."""
    return [line.split(maxsplit=2)[2] for line in text.splitlines()]


def decide(scaling, model="m", *decisions):
    scaling.told[model] = why(model, past=decisions)


# -- the timeline ----------------------------------------------------------------------------------


def test_decisions_and_operations_of_all_models_stand_in_order(url, scaling, capsys):
    scaling.known["op-1"] = chain(at_s=99.0, number=1)
    scaling.known["op-5"] = replace(chain("b", number=5), state="failed", reason="no\x1b device")
    decide(scaling, "m", decision(at_s=0.5, operation="op-1"))
    decide(scaling, "b", decision("b", 9.0, "shrink", 2, 1, acted=False, reason=""))
    out = said(capsys, "--all").out
    assert words(out) == [
        "decision   m: grow 1 → 3: 18400 prompt tokens are queued, 8.1 s of one instance  (op-1)",
        "operation  m: op-1 begins, 1 → 4 instances, by chain",
        "operation  b: op-5 begins, 1 → 4 instances, by chain",
        "operation  b: op-5 failed after 0.00 s: no? device",
        "operation  m: op-1 done after 5.43 s",
        "decision   b: advice to shrink 2 → 1",
    ]
    told = json.loads(said(capsys, "--all", "--format", "json").out)["timeline"]
    assert [(each["entry"], each["at"] - STARTED_S) for each in told] == [
        ("decision", 0.5), ("operation", 1.0), ("operation", 5.0), ("operation", 5.0),
        ("operation", pytest.approx(6.43, abs=0.01)), ("decision", 9.0),
    ]  # fmt: skip
    assert (told[0]["inputs"]["held_requests"], told[1]["what"]) == (1.0, "begun")


def test_of_one_moment_the_cause_comes_first(url, scaling, capsys):
    scaling.known["op-1"] = chain(number=1)
    decide(scaling, "m", decision(at_s=1.0))
    assert [line.split()[0] for line in words(said(capsys, "--all").out)] == [
        "decision", "operation",
    ]  # fmt: skip


def test_no_operation_begins_before_it_was_decided(url, scaling, capsys):
    """Also where nodes tell its start in whole seconds."""
    scaling.known["op-1"] = chain(wanted=2, at_s=99.0)
    decide(scaling, "m", decision(at_s=1.7, operation="op-1"))
    out = said(capsys, "--all").out
    assert [line.split()[0] for line in words(out)] == ["decision", "operation", "operation"]
    follower = Follower(Asker(url))
    follower.begin()
    follower.over.clear()
    assert all(entry.at_s - STARTED_S >= 1.7 for entry in follower.more())
    decide(scaling, "m", decision(at_s=40.0, operation="op-1"))  # of another time altogether
    assert words(said(capsys, "--all").out)[-1].startswith("decision")


def test_nothing_is_said_to_be_nothing(url, capsys):
    out, err = said(capsys, "--all")
    assert (out, err) == ("", "nothing has been decided yet, and no operation is known\n")
    assert json.loads(said(capsys, "--all", "--format", "json").out) == {"timeline": []}


def test_copies_are_told_as_such(url, scaling, capsys):
    scaling.known["op-1"] = replace(chain(number=1), instances_before=0, instances_wanted=0)
    assert words(said(capsys, "--all").out) == ["operation  m: op-1 begins, a host copy, by chain"]


def test_the_last_operation_stands_below_the_decision_that_led_to_it(url, scaling, capsys):
    scaling.known["op-1"] = chain(wanted=2, at_s=99.0)
    decide(scaling, "m", decision(at_s=2.0), decision(at_s=0.9, operation="op-1", wanted=2))
    for command in ([], ["--last"], ["op-1"]):
        lines = said(capsys, *command).out.splitlines()
        assert lines[0].startswith("m: grow 1 → 2: 18400 prompt tokens")
        assert lines[1].startswith("m: 1 → 2 instances, by chain, done")
    scaling.silent = True  # which is no reason not to show the operation
    assert said(capsys).out.startswith("m: 1 → 2 instances")


def test_decisions_without_operations_are_shown(url, scaling, capsys):
    _, err = said(capsys, code=1)
    assert "no operation is known: begin one with" in err
    decide(scaling, "m", decision(acted=False))
    assert words(said(capsys).out)[0].startswith("decision   m: advice to grow 1 → 3")
    told = json.loads(said(capsys, "--format", "json").out)
    assert told["timeline"][0]["acted"] is False


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["op-1", "--all"], "leave out the ID and --last"),
        (["--last", "--all"], "leave out the ID and --last"),
        (["op-1", "--last"], "leave out the ID"),
    ],
)
def test_what_cannot_be_meant_is_a_mistake_of_usage(url, capsys, command, says):
    assert says in said(capsys, *command, code=2).err


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 9), st.booleans()), max_size=8))
def test_every_line_is_in_its_place_and_stands_once(facts):
    decisions = [
        json_of(told_decision(decision(f"m{i}", at))) for i, (at, _, _) in enumerate(facts)
    ]
    operations = [
        json_of(summary(chain(at_s=9.0 if ended else 0.0, number=i)))
        | {"started": STARTED_S + at + late}
        for i, (at, late, ended) in enumerate(facts)
    ]
    told = timeline.timeline(decisions, operations)
    assert [entry.at_s for entry in told] == sorted(entry.at_s for entry in told)
    assert len({entry.key for entry in told}) == len(told)
    assert len(told) == 2 * len(facts) + sum(ended for _, _, ended in facts)


@pytest.mark.parametrize("answer", [{}, {"decisions": 3}, {"decisions": [{}]}, {"decisions": [1]}])
def test_an_answer_of_another_form_is_told(capsys, answer):
    with serving(lambda *_: (200, answer)) as url:
        assert "as new as this command" in said(capsys, "--all", "--url", url, code=1).err
    with pytest.raises(BlitzError, match="as new"):
        decided({})


# -- following it ----------------------------------------------------------------------------------


def test_what_is_new_comes_once_with_the_events_of_operations(url, scaling):
    decide(scaling, "m", *(decision(at_s=-i) for i in range(20)))
    scaling.known["op-1"] = chain(at_s=99.0, number=1)
    follower = Follower(Asker(url))
    begun = follower.begin()
    assert len(begun) == timeline.TAIL
    assert [entry.what for entry in begun][-2:] == ["operation", "operation"]
    assert follower.more() == []
    decide(scaling, "m", decision(at_s=30.0, operation="op-40"), decision(at_s=0.0))
    scaling.known["op-40"] = chain(wanted=2, at_s=0.4, number=40)
    first = [entry.text for entry in follower.more()]
    assert first[0].startswith("m: grow 1 → 3")
    assert first[1:] == [
        "m: op-40 begins, 1 → 2 instances, by chain",
        "m: op-40  planned",
        "m: op-40  claimed  node-2/cpu0",
        "m: op-40  connected  node-2/cpu0",
    ]
    scaling.known["op-40"] = chain(wanted=2, at_s=99.0, number=40)
    last = [entry.text for entry in follower.more()]
    assert last[0] == "m: op-40  first_byte  node-2/cpu0"
    assert sum("  blobs  " in text for text in last) == 1
    assert "m: op-40 done after 5.39 s" in last
    assert follower.more() == []
    assert follower.told == {}


def test_an_operation_that_is_over_between_two_looks_is_told_whole(url, scaling):
    follower = Follower(Asker(url), each=True)
    assert follower.begin() == []
    scaling.known["op-1"] = chain(wanted=2, at_s=99.0)
    told = [entry.text for entry in follower.more()]
    assert sum("  blob  " in text for text in told) == 4
    assert sum("begins" in text or "done after" in text for text in told) == 2


def test_the_events_of_an_operation_whose_owner_has_died_are_not_waited_for(
    url, scaling, monkeypatch
):
    follower = Follower(Asker(url))
    follower.begin()
    scaling.known["op-1"] = chain()

    async def nobody(_id):
        return None

    monkeypatch.setattr(scaling, "operation", nobody)
    assert [entry.what for entry in follower.more()] == ["operation"]
    assert follower.more() == []


def test_what_has_been_shown_is_forgotten_at_last(monkeypatch, url, scaling):
    monkeypatch.setattr(timeline, "MAX_SEEN", 8)
    follower = Follower(Asker(url))
    decide(scaling, "m", *(decision(at_s=i) for i in range(20)))
    follower.begin()
    assert len(follower.seen) == 8


@pytest.mark.parametrize("layout", ["table", "json"])
def test_it_is_followed_until_interrupted_whatever_becomes_of_the_node(layout):
    looks = 0
    later = threading.Event()

    def answer(path, headers):
        nonlocal looks
        looks += path == "/cluster/operations"
        if 2 <= looks <= 3:
            return 503, {}
        if path == "/cluster/operations":
            return 200, {"operations": [], "truncated": False}
        past = [decision(at_s=1.0)] + [decision(at_s=2.0, wanted=4)] * later.is_set()
        return 200, {"decisions": [json_of(told_decision(each)) for each in past]}

    with serving(answer) as url:
        command = [*COMMAND, "--follow", "--url", url, "--format", layout]
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            first = process.stdout.readline().decode()
            later.set()
            second = process.stdout.readline().decode()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 130
    assert err.decode().count("answered 503") == 1, "silence is told once"
    assert "Traceback" not in err.decode()
    if layout == "json":
        told = [json.loads(line) for line in (first, second)]
        assert [each["wanted"] for each in told] == [3, 4]
        assert {each["entry"] for each in told} == {"decision"}
    else:
        assert "decision   m: grow 1 → 3" in first
        assert "decision   m: grow 1 → 4" in second
