"""`blitzgw inspect why`: one screen that says who decides, what, by which figures."""

import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from blitzgw.api.why import why as told_of
from blitzgw.cli.main import main
from blitzgw.cli.units import duration, figure, moment
from blitzgw.cli.why import MAX_PAST, headline, screen
from blitzgw.core.view import ScaleTerms
from blitzgw.errors import BlitzError
from tests.api.why_kit import ExplainingScaling, decision, why
from tests.support.scalenode import scale_node_beside
from tests.support.scaling import STARTED_S


def told(**more):
    return orjson.loads(orjson.dumps(told_of(why(**more))))


def drawn(width=80, **more):
    console = Console(width=width, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(screen(told(**more), width, STARTED_S + 40))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


SCREEN = """\
m: 1 instance, 3 wanted

mode      auto: node-2, its owner, decides and acts
wish      auto: as many as the figures ask for
bounds    1 to 8 instances; fewer after 2 s in which they suffice; none after 10
          min without requests
priority  3; what ends can be revived for 30 s

MEASURED     P50     P90    P99  TARGET OF P90
TTFT      120 ms  1.64 s  2.5 s            1 s  missed
TPOT       21 ms   30 ms  41 ms         100 ms  met
queue          -       -      -

now: grow 1 → 3: 18400 prompt tokens are queued, 8.1 s of one instance
  backlog_tokens / (rate × 0.5 s)
  backlog_tokens        18,400 tokens     predicted_ttft_s      4.02 s
  held_requests         1 request         ttft_target_s         1 s
  prefill_tokens_per_s  2,267 tokens/s    worth_instances       2.5 instances

AGO  DECIDED         INSTANCES  REASON
39s  grow                1 → 3  18400 prompt tokens are queued, 8.1 s of one
                                instance
70s  shrink, advice      2 → 1  1 would do"""


def test_the_screen_at_80_columns():
    past = [
        decision(at_s=1.0, operation="op-1"),
        decision(
            at_s=-30.0, action="shrink", present=2, wanted=1, acted=False, reason="1 would do"
        ),
    ]
    assert drawn(now=decision(), past=past) == SCREEN


def test_a_wide_screen_has_the_operations():
    lines = drawn(140, past=[decision(at_s=1.0, operation="op-1")]).splitlines()
    assert "op-1" in lines[-1]
    assert lines[-1].endswith("8.1 s of one instance")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"mode": "advise"}, "says what it would do, and does nothing"),
        ({"mode": "manual"}, "only operators change the number, with `blitzgw scale m N`"),
        ({"mode": "manual", "wish": None}, "wish      none: the configuration holds\n"),
        ({"mode": "dreamt"}, "mode      dreamt\n"),
        ({"wish": 4}, "4 instances, until `blitzgw scale m auto`"),
        ({"wish": 1}, "1 instance, until"),
        ({"terms": ScaleTerms("auto", max_instances=0)}, "1 instance or more; fewer"),
        ({"terms": ScaleTerms("auto", min_instances=0, max_instances=1)}, "0 to 1 instances"),
        ({"now": decision(action="hold", present=2, wanted=2, reason="")}, "now: stays at 2\n"),
        (
            {"now": decision(action="hold", present=2, wanted=2, reason="1 would do; one goes")},
            "now: stays at 2: 1 would do; one goes\n",
        ),
        ({"now": decision(acted=False)}, "now, as advice: grow 1 → 3: 18400"),
        ({"now": decision(formula="a / b; c / d")}, "\n  a / b\n  c / d\n"),
        ({"now": decision(formula="", inputs={})}, "of one instance\n\n"),
        ({"now": decision(inputs={"x_s": float("nan")})}, "x_s  not known"),
        ({"quantiles": {}}, "TTFT        -    -    -            1 s\n"),
        ({}, "nothing has been decided yet"),
    ],
)
def test_what_is_special_is_said(more, says):
    assert says in drawn(**more)


def test_only_the_last_decisions_are_shown():
    past = [decision(at_s=-i, reason=f"reason {i}") for i in range(30)]
    text = drawn(past=past)
    assert f"reason {MAX_PAST - 1}" in text
    assert f"reason {MAX_PAST}\n" not in text


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_it_fits(width):
    long = "a reason of many words " * 10
    console = Console()
    for model in ("m", "日本語" * 20, "Some-Organisation/A-Model-With-A-Long-Name" * 3):
        past = [decision(model, reason=long, operation="0123456789abcdef")]
        text = drawn(width, model=model, past=past, now=decision(reason=long, formula=long))
        assert all(console.measure(line).maximum <= max(width, 60) for line in text.splitlines())


def test_it_cannot_command_the_terminal():
    bad = "\x1b[31m\x07\r"
    sly = decision(
        bad,
        action=bad,
        reason=bad,
        formula=bad,
        inputs={bad: 1.0, f"x_per_{bad}": 2.0},
        operation=bad,
    )
    text = drawn(140, model=bad, owner=bad, mode=bad, now=sly, past=[sly])
    assert "\x1b" not in text
    assert "\x07" not in text


@pytest.mark.parametrize("answer", [{}, {"now": 3}, {"model": "m", "now": {}}, {"past": [1]}])
def test_an_answer_of_another_form_is_told(answer):
    for show in (headline, lambda each: screen(each, 80, 0.0)):
        with pytest.raises(BlitzError, match="as new as this command"):
            show(answer)


def test_the_command_asks_the_owner_and_prints(capsys, monkeypatch):
    scaling = ExplainingScaling(told={"org/Model-1B": why("org/Model-1B", past=[decision()])})
    with scale_node_beside(scaling) as url:
        monkeypatch.setenv("BLITZGW_URL", url)
        assert main(["inspect", "why", "org/Model-1B"]) == 0
        out = capsys.readouterr().out
        assert out.startswith("org/Model-1B: 3 instances, as wanted\n")
        assert main(["inspect", "why", "org/Model-1B", "--format", "json"]) == 0
        assert json.loads(capsys.readouterr().out)["owner"] == "node-2"
        assert main(["inspect", "why", "nope"]) == 1
        assert "answered 404" in capsys.readouterr().err
        assert main(["inspect", "why", "m"]) == 1
        assert "does not answer: ask again in a moment" in capsys.readouterr().err
        assert main(["inspect", "why"]) == 2


# -- units -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("idle_s", 0.0, "0 s"),
        ("idle_s", 0.00004, "40 µs"),
        ("idle_s", 0.64, "640 ms"),
        ("idle_s", 0.9999, "1 s"),
        ("idle_s", 12.34, "12.3 s"),
        ("idle_s", 599.0, "599 s"),
        ("idle_s", 900.0, "15 min"),
        ("idle_s", 9000.0, "2 h"),
        ("idle_s", 300_000.0, "3 d"),
        ("step_ms", 12.0, "12 ms"),
        ("backlog_tokens", 12_345.0, "12,345 tokens"),
        ("held_requests", 1.0, "1 request"),
        ("worth_instances", 2.25, "2.25 instances"),
        ("prefill_tokens_per_s", 2267.4, "2,267 tokens/s"),
        ("requests_per_s", 0.5, "0.5 requests/s"),
        ("link_bytes_per_s", 1 << 20, "1 MiB/s"),
        ("weights_bytes", 1 << 30, "1 GiB"),
        ("kv_usage", 0.425, "42.5 %"),
        ("pressure", 1.25, "1.25"),
        ("priority", 3.0, "3"),
        ("x_s", None, "not known"),
        ("x_s", float("inf"), "not known"),
    ],
)
def test_figures_have_peoples_units(name, value, text):
    assert figure(name, value) == text


@settings(max_examples=100)
@given(st.floats(-1e9, 1e12))
def test_durations_are_short_and_never_exponents(seconds):
    text = duration(seconds)
    assert text.split()[1] in ("µs", "ms", "s", "min", "h", "d")
    assert len(text) <= 14
    assert "e" not in text


def test_moments_have_dates_where_they_are_not_of_late():
    assert len(moment(STARTED_S, STARTED_S + 60)) == len("12:00:00.000")
    assert len(moment(STARTED_S, STARTED_S + 60, precise=False)) == len("12:00:00")
    assert moment(STARTED_S, STARTED_S + 1e6).startswith("2023-11-1")
    assert moment(1e300, STARTED_S) == "?"
