"""Nodes for a bench of live scaling, and its main question: what a policy makes of a burst."""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import live, live_trace, live_virtual, multicast
from tests.support.benchmodel import bench_model, size_bytes
from tests.support.gateways import PATIENCE_S, ClusterFailed, Gateways, Roles
from tests.support.live import ALONE, Round, Timing
from tests.support.live_client import prompts
from tests.support.live_picture import plot
from tests.support.live_report import verdicts
from tests.support.live_setting import LAYERS, Pace
from tests.support.live_trace import Trace
from tests.support.multicast import OperationFailed, Setting
from tests.support.multicast_bench import Findings
from tests.support.multicast_report import Verdict
from tests.support.testbed import Spec, testbed

VOCABULARY = 256
"""Ids that prompts are of: every bench model has more."""

IN_FLIGHT = 4
"""Requests that a helper has at once."""

SIMULATION_S = 60.0

FIRST_HELPED = 1.15
"""Most of what virtual time says of the first token of a helped request (live_virtual.py)."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for."""

    policies: tuple[str, ...]
    burst: int
    targets: int
    size_mb: float
    load_over_compute: float
    rounds: int
    dilation: float = 0.0
    cores: float = 0.0
    mtu: int = 1500


class LiveBench:
    """A model, a pace, and nodes: the first has the model loaded, the others an empty device."""

    compute = "paced"
    outputs = 1
    """Tokens that each request asks for."""

    def __init__(self, wish: Wish, progress: Callable[[str], None]) -> None:
        self.wish, self._progress = wish, progress
        self.found = Findings()
        self.layers = LAYERS
        self.prepare()

    def prepare(self) -> None:
        """Make the model, and settle the pace."""
        wish = self.wish
        self.model: Path = bench_model(wish.size_mb, LAYERS + 2)
        sizes = size_bytes(self.model)
        layer = round(statistics.fmean(sizes[1:-1]))
        self.repace(Pace(wish.load_over_compute, layer, sum(sizes), wish.mtu, wish.dilation))
        self.prompts = prompts(wish.burst, self.pace.prompt_tokens, VOCABULARY)

    def repace(self, pace: Timing) -> None:
        """Go at another pace from now on."""
        self.pace = pace
        mtu, rounds = self.wish.mtu, self.wish.rounds
        self.setting = Setting(pace.rate_mbit, mtu, rounds, self._progress)

    def describe(self) -> str:
        """Say in one paragraph what is measured and what is played."""
        wish, pace = self.wish, self.pace
        return (
            f"paced: an 8B model ({pace.prompt_s * 1e3:.0f} ms for a prompt of"
            f" {pace.prompt_tokens} tokens), its weights played by {pace.model_bytes / 1e6:.0f} MB"
            f" over links of {pace.rate_mbit:.0f} Mbit/s; a layer loads in"
            f" {pace.load_over_compute:g} × the time that it computes for a prompt. Burst of"
            f" {wish.burst} onto one instance, {wish.targets} more loading; medians of"
            f" {wish.rounds}. Seconds are undilated (dilation {pace.slowed:g}), from the send."
        )

    @contextlib.contextmanager
    def cluster(
        self,
        nodes: int,
        *,
        traced: bool = False,
        sources: int = 1,
        start_s: float = PATIENCE_S,
    ) -> Iterator[Gateways]:
        """Nodes that are up. All define the model: batches and lengths are each node's own."""
        spec = Spec(nodes, self.pace.rate_mbit, self.wish.mtu, (), self.wish.cores)
        with testbed(spec) as bed:
            terms = self.pace.terms(traced=traced)
            made = Gateways(bed, Roles(self.model, sources, definers=nodes, terms=terms))
            made.start_all(start_s)
            yield made

    def policies(self) -> Findings:
        """Every policy on the same burst, in turns: what drifts hits all of them."""
        rounds: dict[str, list[Round]] = {}
        with self.cluster(1 + self.wish.targets) as made:
            alone = self.alone(made)
            for _ in range(self.wish.rounds):
                for policy in self.wish.policies:
                    if one := self.round(made, policy):
                        rounds.setdefault(policy, []).append(one)
        for policy in self.wish.policies:
            if policy in rounds:
                row = live.row(rounds[policy], alone.tokens, self.pace, self.wish.targets)
                self.found.rows.append(row)
        self.found.verdicts += verdicts(self.found.rows, paced=self.compute == "paced")
        self._note(alone)
        return self.found

    def alone(self, made: Gateways) -> Round:
        """Measure one instance without any scaling. Raises OperationFailed."""
        one = self.round(made, ALONE)
        if one is None:
            raise OperationFailed(self.found.failures[-1])
        return one

    def picture(self, policy: str) -> str:
        """Trace one burst, and return the picture of it. Raises OperationFailed."""
        with self.cluster(1 + self.wish.targets, traced=True) as made:
            one = self.burst(made, policy)
            trace = self.trace(made, one)
        self.found.notes += about_trace(trace, self.pace)
        title = f"{policy}: mean {one.mean_s:.2f} s, load/compute {self.pace.load_over_compute:g}"
        return plot(trace, self.layers, f"{title} ({self.compute}; undilated seconds)")

    def trace(self, made: Gateways, one: Round) -> Trace:
        """What traced nodes have computed since a round began."""
        files = [made.trace(node) for node in made.nodes]
        return live_trace.read_files(files, one.began_s / self.pace.slowed)

    def burst(self, made: Gateways, policy: str) -> Round:
        """Run one round. Raises OperationFailed."""
        asked = tuple(map(tuple, self.prompts))
        one = live.Burst(policy, self.wish.targets, asked, self.outputs)
        return live.burst(made, self.setting, self.pace, one)

    def round(self, made: Gateways, policy: str) -> Round | None:
        """Measure one burst; None: it failed, which is noted, and the nodes have begun anew."""
        try:
            found = self.burst(made, policy)
            if policy != ALONE:
                multicast.scale_down(made, self.setting, 1)
        except (OperationFailed, ClusterFailed) as failure:
            self.found.failures.append(f"{policy}: {failure}")
            self._progress(f"FAILED {policy}: {failure}\n{made.tails()}")
            made.restart()
            return None
        if made.holders() != made.sources():
            self._progress("another node has the model now: beginning anew")
            made.restart()
        text = f"{policy}: mean {found.mean_s:.3f} s, p95 {found.p95_s:.3f} s"
        if policy != ALONE:
            text += f", loaded after {found.load_s:.3f} s, {found.helped} helped"
        self._progress(text)
        return found

    def _note(self, alone: Round) -> None:
        self.found.notes.append(
            f"one instance alone: mean {alone.mean_s:.3f} s, p95 {alone.p95_s:.3f} s (one prompt"
            f" after another: {self.pace.prompt_s * (self.wish.burst + 1) / 2:.3f} s)"
        )
        for row in self.found.rows if self.wish.targets == 1 and self.compute == "paced" else ():
            predicted_s = virtual_mean_s(row["policy"], self.pace, self.wish.burst)
            if predicted_s:
                self.found.notes.append(
                    f"{row['policy']}: mean / that in virtual time, which begins with the first"
                    f" layer ({predicted_s:.3f} s): {row['mean_s'] / predicted_s:.3f}"
                )
            self._check_first_helped(row)
        lag_s = max([row["lag_s"] for row in self.found.rows], default=0.0)
        if lag_s > live.MAX_LAG_S:
            self.found.failures.append(f"void: a request was sent {1e3 * lag_s:.1f} ms late")

    def _check_first_helped(self, row: Mapping[str, Any]) -> None:
        """Compare the first completion that a helper has had a part in with virtual time."""
        policy, layer_s = str(row["policy"]), float(row["first_layer_s"])
        expected_s = live_virtual.expected_s(
            policy, self.pace, LAYERS, self.wish.burst, IN_FLIGHT, layer_s
        )
        if expected_s:
            first_s = row["first_helped_s"] if row["first_helped_s"] >= 0 else math.inf
            name = f"{policy}: first token of a helped request / virtual ({expected_s:.3f} s)"
            self.found.verdicts.append(Verdict(name, first_s / expected_s, FIRST_HELPED))


def virtual_mean_s(policy: str, pace: Timing, requests: int) -> float:
    """Return what the production deciders make of it in virtual time; 0: that cannot be told."""
    words = [str(Path(sys.executable).with_name("blitzgw")), "simulate", "live"]
    words += ["--layers", str(LAYERS), "--requests", str(requests), "--policy", policy]
    words += ["--load-over-compute", f"{pace.load_over_compute:g}", "--in-flight", str(IN_FLIGHT)]
    done = subprocess.run(
        [*words, "--format", "json"], capture_output=True, text=True, timeout=SIMULATION_S
    )
    return json.loads(done.stdout)["mean"] * pace.layer_s if done.returncode == 0 else 0.0


def about_trace(trace: Trace, pace: Timing) -> list[str]:
    """Say how soon helpers began, and how busy who was while they were loading."""
    notes = []
    for instance, after_s in live_trace.first_steps_s(trace).items():
        notes.append(
            f"{instance}: first step {after_s / pace.layer_s:.2f} layer times after its first"
            " layer was announced"
        )
    loaded_s = max(trace.ready.values(), default=0.0)
    for instance in trace.instances:
        since_s = min((at for at, n in trace.layers.get(instance, ()) if n), default=0.0)
        share = live_trace.idle_share(trace, instance, since_s, loaded_s)
        notes.append(f"{instance}: idle for {share:.1%} of the time until all were complete")
    return notes
