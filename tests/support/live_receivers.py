"""How soon receivers serve: by themselves, as stages of a pipeline, or with a home that they help.

    (a) 4 → 8    k-way by the number of sources, policy `pipeline`; the first token of a request
                 that only receivers have computed, over the time until one of them is complete
    (b) 1 → 8    a chain, by `zigzag` and by `pipeline` with the home as the last stage; the first
                 token of a request that was split, over the same

Both times are undilated and count from the send. All nodes share the machine's processors: how busy
those were is told, and time has to be slow enough for that not to matter.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tests.support import live, multicast
from tests.support.gateways import ClusterFailed, Gateways
from tests.support.live_bench import VOCABULARY, LiveBench, Wish
from tests.support.live_client import Answer, Client, Volley, completion, prompts
from tests.support.live_setting import TOKENS_PER_S
from tests.support.multicast import OperationFailed
from tests.support.multicast_bench import Findings
from tests.support.multicast_report import Verdict

SOURCES, TARGETS = 4, 8
ALONE_TOGETHER, SPLIT = 0.45, 0.35
"""Most of the time until a receiver is complete: of receivers alone, and together with a home."""

SIZE_MB, DILATION, RECKONING_DILATION = 60.0, 32.0, 4.0
"""Twelve nodes on two processors, and one alone whose tokens the others' are compared with."""

PROMPT_TOKENS, OUTPUTS = 512, 4
OVERLOAD = 2.0
"""What arrives steadily at each source, in parts of what it computes."""

START_S = 240.0
"""Until so many nodes are up that begin at one moment."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured: by which plan and policy, from how many, and the most that is wanted."""

    name: str
    policy: str
    sources: int
    strategy: str
    bound: float
    steady: bool = False

    @property
    def by_receivers_alone(self) -> bool:
        """Whether requests count only in which no source had a part."""
        return self.sources > 1


CASES = (
    Case("k-way, burst", "pipeline", SOURCES, "binomial", ALONE_TOGETHER),
    Case("k-way, steady", "pipeline", SOURCES, "binomial", ALONE_TOGETHER, steady=True),
    Case("home, steady", "zigzag", 1, live.STRATEGY, SPLIT, steady=True),
    Case("home last, steady", "pipeline", 1, live.STRATEGY, SPLIT, steady=True),
    Case("home, burst", "zigzag", 1, live.STRATEGY, SPLIT),
    Case("home last, burst", "pipeline", 1, live.STRATEGY, SPLIT),
)


@dataclass(frozen=True, slots=True)
class Served:
    """One round: -1 is never. `busy` is the part of the machine's processors that was in use."""

    first_s: float
    complete_s: float
    first_any_s: float
    counted: int
    requests: int
    split: str
    pipelines: int
    busy: float
    lag_s: float
    tokens_ok: bool
    spread_s: tuple[float, ...] = ()
    """When each request had its first token."""

    @property
    def ratio(self) -> float:
        """The first token in parts of the time until a receiver is complete; inf: there is none."""
        return self.first_s / self.complete_s if self.first_s >= 0 else float("inf")


def receivers_bench(wish: Wish, progress: Any) -> LiveBench:
    """A bench of many nodes: a small model, and slow time."""
    size_mb, dilation = min(wish.size_mb, SIZE_MB), wish.dilation or DILATION
    return LiveBench(replace(wish, size_mb=size_mb, dilation=dilation, targets=TARGETS), progress)


def receivers(bench: LiveBench) -> Findings:
    """Measure every case, those with equally many sources on the same nodes."""
    wanted = reference(bench)
    for sources in dict.fromkeys(case.sources for case in CASES):
        cases = [one for one in CASES if one.sources == sources]
        cases = [one for one in cases if one.policy in bench.wish.policies]
        if cases:
            _measure(bench, cases, wanted)
    for row in bench.found.rows:
        name = f"receivers: {row['case']} by {row['policy']}: first token / first complete"
        bench.found.verdicts.append(Verdict(name, row["ratio"], row["bound"]))
    wrong = sum(not row["tokens_ok"] for row in bench.found.rows)
    name = "cases with other tokens than one instance alone"
    bench.found.verdicts.append(Verdict(name, float(wrong), 0.0))
    return bench.found


def reference(bench: LiveBench) -> dict[str, tuple[int, ...]]:
    """Return what one instance alone says to every prompt that any case sends, by name."""
    pace = bench.pace
    bodies = {name: body for one in CASES for name, _, body in letters(bench, one)}
    bench.repace(replace(pace, dilation=RECKONING_DILATION))
    try:
        with bench.cluster(1) as made:
            volley = Client(made, 0, live.patience_s(bench.pace, len(bodies))).prepare(bodies)
            try:
                volley.send()
                return {one.name: tuple(one.tokens) for one in _good(volley.answers())}
            finally:
                volley.close()
    finally:
        bench.repace(pace)


def letters(bench: LiveBench, case: Case) -> list[tuple[str, int, dict[str, Any]]]:
    """Return requests by name, the source that each goes to, and their bodies; in order."""
    count = case.sources * bench.wish.burst
    made = enumerate(prompts(count, PROMPT_TOKENS, VOCABULARY))
    return [
        (live.name_of(i), i % case.sources, completion(ids, OUTPUTS, stream=True))
        for i, ids in made
    ]


def _measure(
    bench: LiveBench, cases: Sequence[Case], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    rounds: dict[Case, list[Served]] = {}
    sources = cases[0].sources
    with bench.cluster(sources + TARGETS, sources=sources, start_s=START_S) as made:
        for _ in range(bench.wish.rounds):
            for case in cases:
                try:
                    one = serve(bench, made, case, wanted)
                    rounds.setdefault(case, []).append(one)
                    bench.setting.progress(f"{case.name} by {case.policy}: {about(one)}")
                    multicast.scale_down(made, bench.setting, sources)
                    again = made.holders() != made.sources()
                except (OperationFailed, ClusterFailed) as failure:
                    bench.found.failures.append(f"{case.name} by {case.policy}: {failure}")
                    bench.setting.progress(f"FAILED {failure}\n{made.tails()}")
                    again = True
                if again:
                    made.restart(START_S)
    bench.found.rows += [row(case, found) for case, found in rounds.items()]


def serve(
    bench: LiveBench, made: Gateways, case: Case, wanted: Mapping[str, tuple[int, ...]]
) -> Served:
    """Run one round. Raises OperationFailed if a request or the operation fails."""
    pace, d = bench.pace, bench.pace.slowed
    sent = letters(bench, case)
    clients = [Client(made, n, live.patience_s(pace, len(sent))) for n in range(case.sources)]
    volleys = _volleys(clients, sent, case)
    gap_s = PROMPT_TOKENS / TOKENS_PER_S / OVERLOAD * d if case.steady else 0.0
    lags: list[float] = []
    before = processors()
    began_s = time.monotonic()
    sender = threading.Thread(target=_send, args=(volleys, case.sources, began_s, gap_s, lags))
    try:
        sender.start()
        if not case.steady:
            sender.join()
        asked_s = time.monotonic()
        begun = multicast.begin(made, case.sources + TARGETS, case.strategy, case.policy)
        facts = multicast.await_end(made, bench.setting, begun)
        after = processors()
        sender.join()
        answers = _good([answer for one in volleys for answer in one.answers()])
    finally:
        sender.join()
        for volley in volleys:
            volley.close()
    start_s = (asked_s - began_s) / d
    return read(case, answers, facts, (began_s, start_s, d), max(lags), wanted, used(before, after))


def _volleys(
    clients: Sequence[Client], sent: Sequence[tuple[str, int, dict[str, Any]]], case: Case
) -> list[Volley]:
    """Connect: for each moment of sending and each source one volley."""
    step = case.sources if case.steady else len(sent)
    made = []
    for start in range(0, len(sent), step):
        for number, client in enumerate(clients):
            bodies = {n: body for n, to, body in sent[start : start + step] if to == number}
            made.append(client.prepare(bodies))
    return made


def _send(
    volleys: Sequence[Volley], sources: int, began_s: float, gap_s: float, lags: list[float]
) -> None:
    """Send at all sources at once or, with a gap, so far apart at each."""
    for number, volley in enumerate(volleys):
        due_s = began_s + number // sources * gap_s
        time.sleep(max(0.0, due_s - time.monotonic()))
        volley.send()
        lags.append(time.monotonic() - due_s)


def read(
    case: Case,
    answers: Sequence[Answer],
    facts: Mapping[str, Any],
    clock: tuple[float, float, float],
    lag_s: float,
    wanted: Mapping[str, tuple[int, ...]],
    busy: float,
) -> Served:
    """Turn answers and an operation that is done into figures. Raises OperationFailed.

    `clock` is the moment of sending on the wall, the operation's after it, and the dilation.
    """
    began_s, start_s, d = clock
    ready = [start_s + one["ready_s"] for one in facts["targets"] if multicast.is_ready(one)]
    if not ready:
        raise OperationFailed(f"{case.name}: no target is ready: {facts['targets']}")
    firsts = {one.name: (one.token_times[0] - began_s) / d for one in answers}
    counted = [one for one in answers if counts(case, one.split)]
    counted.sort(key=lambda one: firsts[one.name])
    return Served(
        first_s=firsts[counted[0].name] if counted else -1.0,
        complete_s=min(ready),
        first_any_s=min(firsts.values()),
        counted=len(counted),
        requests=len(answers),
        split=counted[0].split if counted else "",
        pipelines=len(facts.get("pipelines") or ()),
        busy=busy,
        lag_s=lag_s,
        tokens_ok=all(tuple(one.tokens) == wanted[one.name] for one in answers),
        spread_s=tuple(sorted(firsts.values())),
    )


def nodes(split: str) -> set[str]:
    """Return the nodes that a split names: its instances are `….@node/device`."""
    return set(re.findall(r"@([^/\"\s]+)/", split))


def counts(case: Case, split: str) -> bool:
    """Tell whether a request is one of those whose first token is looked for."""
    named = nodes(split)
    if not case.by_receivers_alone:
        return len(named) > 1
    return bool(named) and all(not name.startswith("s") for name in named)


def row(case: Case, rounds: Sequence[Served]) -> dict[str, Any]:
    """Return the row of a case: that of its median round."""
    middle = sorted(rounds, key=lambda one: one.ratio)[(len(rounds) - 1) // 2]
    return {
        "case": case.name,
        "policy": case.policy,
        "sources": case.sources,
        "targets": TARGETS,
        "ratio": middle.ratio,
        "bound": case.bound,
        "first_token_s": middle.first_s,
        "complete_s": middle.complete_s,
        "served": middle.counted,
        "requests": middle.requests,
        "pipelines": middle.pipelines,
        "busy": max(one.busy for one in rounds),
        "lag_s": max(one.lag_s for one in rounds),
        "tokens_ok": all(one.tokens_ok for one in rounds),
        "rounds": [asdict(one) for one in rounds],
    }


def about(one: Served) -> str:
    """Say in a line what a round has shown."""
    return (
        f"first token after {one.first_s:.3f} s, a receiver complete after {one.complete_s:.3f} s"
        f" ({one.ratio:.3f}); {one.counted} of {one.requests} so, {one.pipelines} pipelines,"
        f" processors {one.busy:.0%} busy; first by {one.split}"
    )


def receivers_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as lines of text."""
    head = f"{'case':<20}{'policy':<10}{'nodes':>8}{'first':>9}{'complete':>10}{'ratio':>8}"
    head += f"{'wanted':>8}{'served':>10}{'busy':>7}{'lag ms':>8}  tokens"
    lines = [head, "-" * len(head)]
    for one in rows:
        served = f"{one['served']}/{one['requests']}"
        line = f"{one['case']:<20}{one['policy']:<10}{one['sources']:>4} → {one['targets']}"
        line += f"{one['first_token_s']:>9.3f}{one['complete_s']:>10.3f}{one['ratio']:>8.3f}"
        line += f"{one['bound']:>8g}{served:>10}{one['busy']:>7.0%}{1e3 * one['lag_s']:>8.1f}"
        lines.append(line + ("  ok" if one["tokens_ok"] else "  WRONG"))
    return "\n".join(lines)


def processors(file: Path = Path("/proc/stat")) -> tuple[int, int]:
    """Return the busy and all ticks of the machine's processors since it began.

    What is niced gives way to everything else, and so does not make them busy.
    """
    ticks = [int(word) for word in file.read_text().splitlines()[0].split()[1:9]]
    _user, nice, _system, idle, iowait, *_ = ticks
    return sum(ticks) - nice - idle - iowait, sum(ticks)


def used(before: tuple[int, int], after: tuple[int, int]) -> float:
    """Return the part of the processors' time between two moments that they were busy."""
    return (after[0] - before[0]) / max(1, after[1] - before[1])


def _good(answers: Sequence[Answer]) -> list[Answer]:
    bad = [one for one in answers if not (one.good and one.token_times)]
    if bad:
        text = f"{bad[0].name}: {bad[0].status} {bad[0].error}"
        raise OperationFailed(f"{len(bad)} of {len(answers)} requests failed; {text}")
    return list(answers)
