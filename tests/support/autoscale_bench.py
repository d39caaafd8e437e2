"""Nodes that scale by themselves under arrivals from a trace, beside others that do not.

Each system is the same product with other words in its configuration; they get the same requests.

    attainment      those within both objectives / those offered, failed and refused ones included
    instance time   ∫ devices that hold or receive weights dt, until the last answer
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.arrivals import Objective, read_trace, scaled
from tests.support.benchmodel import bench_model, size_bytes
from tests.support.gateways import Gateways, Roles, Terms
from tests.support.live_setting import FIXED_US, LAYERS, TOKENS_PER_S, Pace
from tests.support.replay import Replay, Reply
from tests.support.testbed import Spec, testbed

CONTEXT = 9216
"""Tokens: the longest prompt of the traces and the longest answer."""

BUDGET_TOKENS, MAX_SEQUENCES = 448, 64
"""Of a step: one with a full chunk of a prompt stays within what a token may take."""
MAX_TOKENS = 1024
"""That every request asks for."""

VOCABULARY = 256
STEP_S = FIXED_US * 1e-6 * LAYERS
"""A decode step of one sequence."""

POLL_S = 0.25
"""Between two looks at which instances there are, undilated."""

MAX_LAG_S = 0.010
"""Of the generator, at the 99th percentile: with more the run is void."""

NETWORK_OVER_DISK = 10.0
"""How much faster a link is than a disk."""

COUNTED = frozenset({"loading", "serving", "draining", "kept"})
"""States of instances whose device holds or receives weights."""

SETTLED_LOOKS = 20
"""With one instance and nothing else: what follows in an empty window is more of that."""

AUTO = """scaling = "auto"
strategy = "{strategy}"
ttft_target_s = {ttft_s:.3f}
tpot_target_s = {tpot_s:.3f}
min_instances = 1
max_instances = {nodes}
scale_down_after_s = {patience_s:g}
keep_s = {keep_s:g}
live = "{live}"
"""

SYSTEMS: dict[str, tuple[str, str]] = {
    "static-full": ("", ""),
    "live": ("auto", "auto"),
    "stop": ("stop", "auto"),
    "stop+disk": ("stop", "disk"),
}
"""By name, the live policy and the strategy of those that scale; empty: all instances are there
from the start."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for. `factor`: how many times the trace's arrivals."""

    trace: Path
    window: tuple[float, float]
    systems: tuple[str, ...]
    factor: float
    nodes: int = 8
    seed: int = 1
    size_mb: float = 270.0
    load_over_compute: float = 6.0
    dilation: float = 4.0
    ttft_target_s: float = 0.5
    patience_s: float = 6.0
    keep_s: float = 1.0


@dataclass(slots=True)
class Watch:
    """Who held weights when: (undilated s, instances by state)."""

    seen: list[tuple[float, dict[str, int]]] = field(default_factory=list)

    def look(self, made: Gateways, now_s: float) -> None:
        """Ask a node for the instances of all."""
        status, told = made.get("/cluster/instances")
        if status == 200:
            counts: dict[str, int] = {}
            for one in told["instances"]:
                counts[one["state"]] = counts.get(one["state"], 0) + 1
            self.seen.append((now_s, counts))

    @property
    def settled(self) -> bool:
        """Whether there has been one instance for a while."""
        last = [counts for _, counts in self.seen[-SETTLED_LOOKS:]]
        return all(counts == {"serving": 1} for counts in last)

    def instance_seconds(self, stop_s: float) -> float:
        """Return the integral from 0 to `stop_s`: each look holds until the next."""
        total = 0.0
        for (at, counts), (until, _) in zip(self.seen, [*self.seen[1:], (stop_s, {})], strict=True):
            held = sum(n for state, n in counts.items() if state in COUNTED)
            total += held * max(0.0, min(until, stop_s) - max(0.0, at))
        return total


class AutoscaleBench:
    """One model, one trace, several systems in turns."""

    def __init__(self, wish: Wish, progress: Callable[[str], None]) -> None:
        self.wish, self._progress = wish, progress
        self.model = bench_model(wish.size_mb, LAYERS + 2, context=CONTEXT)
        sizes = size_bytes(self.model)
        layer = round(statistics.fmean(sizes[1:-1]))
        self.pace = Pace(wish.load_over_compute, layer, sum(sizes), dilation=wish.dilation)
        window_s = wish.window[1] - wish.window[0]
        self.arrivals = scaled(
            read_trace(wish.trace, wish.window), wish.factor, wish.seed, window_s
        )
        self.objective = Objective(TOKENS_PER_S, STEP_S)

    def describe(self) -> str:
        """Say in one paragraph what is measured and what is played."""
        wish, pace = self.wish, self.pace
        start, stop = wish.window
        return (
            f"paced: an 8B model on up to {wish.nodes} devices ({TOKENS_PER_S:g} prompt tokens/s"
            f" each, {STEP_S * 1e3:g} ms a step), its weights played by"
            f" {pace.model_bytes / 1e6:.0f} MB over links of {pace.rate_mbit:.0f} Mbit/s (loaded in"
            f" {pace.load_s:.2f} s). {wish.trace.stem}, {start:g} to {stop:g} s,"
            f" × {wish.factor:g}, seed {wish.seed}: {len(self.arrivals)} requests. Due:"
            f" {self.objective.times:g} × what each takes alone. Seconds are undilated (dilation"
            f" {pace.slowed:g})."
        )

    def run(self, system: str) -> dict[str, Any]:
        """Replay the window against a system; return its row."""
        wish, watch = self.wish, Watch()
        window_s = wish.window[1] - wish.window[0]
        policy, strategy = SYSTEMS[system]
        spec = Spec(wish.nodes, self.pace.rate_mbit, 1500, (), 0.0)
        sources = 1 if policy else wish.nodes
        roles = Roles(self.model, sources, definers=wish.nodes, terms=self._terms(policy, strategy))
        with testbed(spec) as bed:
            made = Gateways(bed, roles)
            made.start_all(180.0)
            replay = Replay(
                made,
                self.arrivals,
                dilation=self.pace.slowed,
                max_tokens=MAX_TOKENS,
                vocabulary=VOCABULARY,
                seed=wish.seed,
            )

            def look(now_s: float) -> None:
                made.check()
                watch.look(made, now_s)
                if len(watch.seen) % 40 == 0:
                    states = watch.seen[-1][1] if watch.seen else {}
                    done = f"{replay.done}/{len(self.arrivals)}"
                    self._progress(f"{system}: {now_s:6.1f} s, {done} answered, {states}")

            replies = replay.run(look, POLL_S)
            while policy and not watch.settled and replay.now_s < window_s:
                time.sleep(POLL_S * self.pace.slowed)
                look(replay.now_s)
            decisions = self._decisions(made)
            operations = self._operations(made)
        return self._row(system, replies, watch, decisions, operations)

    def _row(
        self,
        system: str,
        replies: Sequence[Reply],
        watch: Watch,
        decisions: list[Any],
        operations: list[Any],
    ) -> dict[str, Any]:
        met = [self._met(reply) for reply in replies]
        first = sorted(r.first_s for r in replies if r.first_s >= 0)
        tpot = sorted(r.tpot_s for r in replies if r.answered and len(r.tokens) > 1)
        late = sorted(r.late_s for r in replies)
        window_s = self.wish.window[1] - self.wish.window[0]
        end_s = max([window_s, *(r.arrival.at_s + r.last_s for r in replies)])
        return {
            "system": system,
            "seed": self.wish.seed,
            "requests": len(replies),
            "attainment": sum(met) / max(1, len(met)),
            "ttft_p50": quantile(first, 0.5),
            "ttft_p90": quantile(first, 0.9),
            "ttft_p99": quantile(first, 0.99),
            "tpot_p50": quantile(tpot, 0.5),
            "tpot_p99": quantile(tpot, 0.99),
            "instance_seconds": watch.instance_seconds(end_s),
            "seconds": end_s,
            "failed": sum(not r.answered for r in replies),
            "split": sum(bool(r.split) for r in replies),
            "wrong": self._wrong(replies),
            "lag_p99": quantile(late, 0.99),
            "void": quantile(late, 0.99) > MAX_LAG_S,
            "errors": sorted({r.error for r in replies if r.error})[:5],
            "decisions": decisions,
            "operations": operations,
            "timeline": watch.seen,
            "replies": [
                (r.arrival.at_s, r.arrival.prompt_tokens, len(r.tokens), r.first_s, r.last_s)
                for r in replies
            ],
        }

    def _met(self, reply: Reply) -> bool:
        due_s = self.objective.ttft_s(reply.arrival.prompt_tokens)
        return (
            reply.answered
            and 0 <= reply.first_s <= due_s
            and (reply.tpot_s <= self.objective.tpot_s)
        )

    def _wrong(self, replies: Sequence[Reply]) -> int:
        """Count answers that have not the trace's length."""
        return sum(
            reply.answered
            and reply.finish == "stop"
            and abs(len(reply.tokens) - reply.arrival.output_tokens) > 1
            for reply in replies
        )

    def _terms(self, policy: str, strategy: str) -> Terms:
        settings = (
            f"max_model_len = {CONTEXT}\nmax_num_seqs = {MAX_SEQUENCES}\n"
            f"max_batched_tokens = {BUDGET_TOKENS}\nprefix_caching = false\n"
        )
        wish = self.wish
        if policy:
            settings += AUTO.format(
                ttft_s=wish.ttft_target_s,
                tpot_s=self.objective.tpot_s,
                nodes=wish.nodes,
                patience_s=wish.patience_s,
                keep_s=wish.keep_s,
                strategy=strategy,
                live=policy,
            )
        base = self.pace.terms()
        device = base.device.replace("hidden_bytes", "seed_ends = true, hidden_bytes")
        disk = self.pace.rate_mbit * 1e6 / 8 * self.pace.slowed / NETWORK_OVER_DISK
        return Terms(device, settings, base.dilation, disk_bytes_per_s=disk)

    @staticmethod
    def _decisions(made: Gateways) -> list[Any]:
        status, told = made.get("/cluster/decisions")
        return told.get("decisions", []) if status == 200 else []

    @staticmethod
    def _operations(made: Gateways) -> list[Any]:
        status, told = made.get("/cluster/operations")
        found = []
        for one in told.get("operations", []) if status == 200 else []:
            status, whole = made.get(f"/cluster/operations/{one['id']}")
            if status == 200:
                found.append(whole)
        return found


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return a quantile of ordered values, the nearest one; -1 where there are none."""
    if not ordered:
        return -1.0
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def table(rows: Sequence[dict[str, Any]], nodes: int) -> str:
    """Return rows as text that fits a terminal."""
    head = (
        f"{'system':<12}{'attained':>9}{'p50':>8}{'p90':>8}{'p99 TTFT':>10}{'p99 TPOT':>10}"
        f"{'inst·s':>8}{'of full':>9}{'failed':>8}{'split':>7}{'lag p99':>9}"
    )
    lines = [head]
    for row in rows:
        full = nodes * row["seconds"]
        lines.append(
            f"{row['system']:<12}{row['attainment']:>9.1%}{row['ttft_p50']:>8.3f}"
            f"{row['ttft_p90']:>8.3f}{row['ttft_p99']:>10.3f}{row['tpot_p99']:>10.4f}"
            f"{row['instance_seconds']:>8.0f}{row['instance_seconds'] / full:>9.1%}"
            f"{row['failed']:>8}{row['split']:>7}{row['lag_p99'] * 1e3:>7.1f}ms"
            + ("  void" if row["void"] else "")
        )
    return "\n".join(lines)
