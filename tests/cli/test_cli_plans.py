"""How plans, progress and events look at 80 columns, and that they fit any."""

from dataclasses import replace

import orjson
import pytest
from rich.console import Console

from blitzgw.api.operations import whole
from blitzgw.cli.plans import headline, plan
from blitzgw.cli.progress import bars
from blitzgw.cli.waterfall import event_lines, track, waterfall
from blitzgw.core.live import Pair, StagePlan
from blitzgw.core.operation import EdgeFacts, OperationEvent, TargetFacts
from blitzgw.core.span import Span
from blitzgw.errors import BlitzError
from tests.support.scaling import SIZE_BYTES, chain, from_disk


def told(facts):
    """An operation as the node's API tells it."""
    return orjson.loads(orjson.dumps(whole(facts)))


def drawn(show, facts, width=80):
    console = Console(width=width, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(show(told(facts), width))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def star(n, worker="node-{}/cpu0"):
    """One source feeds all."""
    targets = tuple(TargetFacts(worker.format(i), "", "claiming") for i in range(n))
    edges = tuple(EdgeFacts("source/cpu0", t.worker, "", 4, SIZE_BYTES) for t in targets)
    return replace(chain(), targets=targets, edges=edges, alternatives={})


PLANNED = """\
m: 1 → 4 instances, by chain, planned only
predicted: first blob 1.35 s, each blob somewhere 5.39 s, complete 5.43 s

FROM → TO             OVER  BLOBS     SIZE  PREDICTED
node-1/cpu0
└→ node-2/cpu0        fast      4  257 MiB     5.39 s
   └→ node-3/cpu0     fast      4  257 MiB     5.41 s
      └→ node-4/cpu0  fast      4  257 MiB     5.43 s

instead: binomial 10.78 s, star 16.17 s"""

FLOWING = """\
m: 1 → 4 instances, by chain, transferring for 2.50 s
predicted: first blob 1.35 s, each blob somewhere 5.39 s, complete 5.43 s

FROM → TO             OVER     SIZE  CAME         RATE  PREDICTED  STATE
disk of node-2
└→ node-2/cpu0                                             5.39 s  loading
   └→ node-3/cpu0     fast  257 MiB   46%  47.68 MiB/s     5.41 s  flowing
      └→ node-4/cpu0  fast  257 MiB   45%  47.68 MiB/s     5.43 s  flowing

instead: binomial 10.78 s, star 16.17 s"""

BARS = """\
transferring, 2.5 s of about 5.4 s
INSTANCE ON                                   HAS         RATE  LEFT  STATE
node-2/cpu0  █████████░░░░░░░░░░░  46%  119.2 MiB  47.68 MiB/s    3s  loading
node-3/cpu0  █████████░░░░░░░░░░░  46%  118.3 MiB  47.68 MiB/s    3s  loading
node-4/cpu0  █████████░░░░░░░░░░░  45%  117.3 MiB  47.68 MiB/s    3s  loading"""

WATERFALL = """\
             0 s                                   5.43 s
node-2/cpu0  --==░░░░░░░░░░░░░░░░░▒▒▒▒▒▒▒▒▒▒▒▓▓▓▓▓▓▓▓▓▓▓◆    5.39 s  ready
node-3/cpu0  --==░░░░░░░░░░░░░░░░░▒▒▒▒▒▒▒▒▒▒▒▓▓▓▓▓▓▓▓▓▓▓◆    5.41 s  ready
node-4/cpu0  --==░░░░░░░░░░░░░░░░░░▒▒▒▒▒▒▒▒▒▒▒▓▓▓▓▓▓▓▓▓▓◆    5.43 s  ready

· decided - claimed = connected ░▒▓ receiving █ complete ◆ ready × failed"""


@pytest.mark.parametrize(
    ("show", "facts", "picture"),
    [
        (plan, replace(chain(), state="planned", id=""), PLANNED),
        (plan, from_disk(chain(at_s=2.5)), FLOWING),
        (bars, chain(at_s=2.5), BARS),
        (waterfall, chain(at_s=9.0), WATERFALL),
    ],
)
def test_pictures_at_80_columns(show, facts, picture):
    assert drawn(show, facts) == picture


def test_who_helps_whom_is_shown_with_what_it_brings():
    facts = chain(wanted=3, at_s=1.0)
    pairs = tuple(Pair(target.worker, "m@node-1/cpu0") for target in facts.targets)
    means = {"policy zigzag": 1.4, "policy stop": 1.9}
    facts = replace(facts, policy="zigzag", pairs=pairs, alternatives=means)
    lines = drawn(plan, facts, 120).splitlines()
    assert lines[2] == "while loading: zigzag; mean time of what waits: zigzag 1.40 s, stop 1.90 s"
    assert sum("m@node-1/cpu0" in line for line in lines) == 2
    assert "instead" not in lines[-1], "policies are no strategies"
    lines = drawn(plan, replace(facts, policy="stop", pairs=(), alternatives={})).splitlines()
    assert lines[2] == "while loading: stop"


def test_pipelines_are_shown_with_their_stages():
    facts = chain(wanted=3, at_s=1.0)
    first, second = (target.worker for target in facts.targets)
    stages = (StagePlan(first, Span(0, 14)), StagePlan(second, Span(14, 30)))
    pairs = (Pair(first, "m@node-1/cpu0"),)
    facts = replace(facts, policy="pipeline", pairs=pairs, pipelines=(stages,))
    lines = drawn(plan, facts, 120).splitlines()
    assert lines[2:4] == [
        "while loading: pipeline",
        f"pipeline: {first} [0, 14) → {second} [14, 30)",
    ]
    assert sum("m@node-1/cpu0 stage [0, 14)" in line for line in lines) == 1
    assert sum(" stage [14, 30)" in line for line in lines) == 1
    many = replace(facts, pipelines=(stages,) * 20)
    assert "and 12 more pipelines" in drawn(plan, many, 120).splitlines()


@pytest.mark.parametrize("width", [50, 80, 120, 300])
@pytest.mark.parametrize(
    "facts",
    [
        chain(wanted=1),
        chain(wanted=40, at_s=3.0),
        star(30, "a-host-with-a-rather-long-name-{}.example.com/cuda0"),
        star(3, "日本語" * 10 + "{}"),
        replace(chain(at_s=2.0), targets=(), events=()),
        replace(chain(wanted=0), state="draining", targets=(TargetFacts("n/c", "i", "released"),)),
    ],
)
def test_everything_fits(facts, width):
    console = Console()
    for show in (plan, bars, waterfall):
        for line in drawn(show, facts, width).splitlines():
            assert console.measure(line).maximum <= width


def test_a_long_chain_goes_on_at_the_left_and_a_star_branches():
    lines = drawn(plan, chain(wanted=20)).splitlines()
    assert sum(line.startswith("node-") for line in lines) == 4
    assert all(any(f"→ node-{i}/cpu0 " in line for line in lines) for i in range(2, 21))
    branches = drawn(plan, star(3)).splitlines()[4:]
    assert [line.split()[0] for line in branches] == ["source/cpu0", "├→", "├→", "└→"]


def test_a_target_of_two_sources_is_drawn_below_both_and_its_own_targets_once():
    edges = [("a/0", "c/0"), ("b/0", "c/0"), ("c/0", "d/0"), ("d/0", "c/0")]
    facts = replace(chain(), edges=tuple(EdgeFacts(s, t, "", 1, 1) for s, t in edges), targets=())
    text = drawn(plan, facts)
    assert text.count("→ d/0") == 1
    assert text.count("→ c/0") == 3


def test_a_circle_is_no_plan_and_is_drawn_all_the_same():
    edges = tuple(EdgeFacts(s, t, "", 1, 1) for s, t in (("a/0", "b/0"), ("b/0", "a/0")))
    text = drawn(plan, replace(chain(), edges=edges, targets=()))
    assert "→ b/0" in text
    assert "→ a/0" in text


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        (chain(wanted=2), "m: 1 → 2 instances, by chain, transferring for 0.00 s"),
        (chain(wanted=1), "m: 1 instance, as before"),
        (replace(chain(), instances_before=0, instances_wanted=0),
         "m: a host copy, by chain, transferring for 0.00 s"),
        (replace(chain(before=3, wanted=1), state="draining", elapsed_s=1.0),
         "m: 3 → 1 instance, draining for 1.00 s"),
        (replace(chain(at_s=9.0), state="failed", reason="node-2 has died"),
         "m: 1 → 4 instances, by chain, failed after 5.43 s: node-2 has died"),
    ],
)  # fmt: skip
def test_an_operation_is_told_in_a_line(facts, line):
    assert headline(told(facts)) == line


def test_instances_that_are_let_go_have_no_bars():
    gone = tuple(TargetFacts(f"node-{i}/cpu0", f"i{i}", "draining") for i in range(2))
    facts = replace(chain(before=3, wanted=1), state="draining", targets=gone)
    lines = drawn(bars, facts).splitlines()
    assert lines[1:] == ["INSTANCE ON  STATE", "node-0/cpu0  draining", "node-1/cpu0  draining"]


def test_what_went_wrong_stands_below_the_picture_and_marks_the_target():
    facts = chain(wanted=3, at_s=3.0)
    lost = OperationEvent(2.0, "lost", "node-2/cpu0→node-3/cpu0", "connection reset")
    failed = OperationEvent(2.5, "failed", "node-3/cpu0", "no route")
    first, second = facts.targets
    facts = replace(
        facts,
        events=(*facts.events, lost, failed),
        targets=(first, replace(second, state="failed")),
    )
    lines = drawn(waterfall, facts).splitlines()
    assert "×" in lines[2]
    assert lines[2].endswith("2.50 s  failed")
    assert lines[-2:] == [
        "    2.000 s  lost  node-2/cpu0→node-3/cpu0  connection reset",
        "    2.500 s  failed  node-3/cpu0  no route",
    ]


def test_events_of_an_edge_are_those_of_its_target_and_of_no_namesake():
    facts = chain(wanted=2, at_s=0.2)
    events = [
        {"at_s": 1.0, "what": "connected", "about": "node-2/cpu0→xnode-2/cpu0"},
        {"at_s": 2.0, "what": "connected", "about": "node-1/cpu0→node-2/cpu0"},
    ]
    phases = track(told(facts)["targets"][0], events)
    assert phases.connected == 2.0
    assert phases.claimed == float("inf")


def test_without_targets_there_are_lines():
    facts = replace(chain(at_s=1.0), targets=())
    assert drawn(waterfall, facts).splitlines() == event_lines(told(facts))


@pytest.mark.parametrize("show", [plan, waterfall])
@pytest.mark.parametrize("answer", [{}, {"targets": 3}, {"targets": [], "events": [1]}])
def test_an_answer_of_another_form_is_told(show, answer):
    with pytest.raises(BlitzError, match="as new as this command"):
        show(answer, 80)
