"""What is measured of one model: demands of nodes, loads of instances, latencies of clients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from blitzgw.core.scale import Demand
from blitzgw.core.view import LoadFacts, ScaleTerms
from blitzgw.scaling.arrivals import Arrivals
from blitzgw.scaling.autoevents import Coming
from blitzgw.scaling.decodesteps import DecodeSteps
from blitzgw.scaling.figures import Figures, prompt_s
from blitzgw.scaling.forecast import foresee, joins_s
from blitzgw.scaling.loads import (
    kv_tokens,
    more_to_do,
    pace_figures,
    prefill_rate,
    robust_mean,
    together,
)
from blitzgw.scaling.quantiles import SlidingQuantiles
from blitzgw.scaling.tellings import Tellings, Told

STEADY_S = 10.0
"""Over which the steady rate of arrivals is measured: some hundred requests of a busy model, and
short enough that what was there before a change of load is soon forgotten."""

RECENT_S = 2.0
"""Over which the latest rate is measured that keeps instances from going: as long as patience is by
default, for what arrives in one step down's time has to be served after it."""

WINDOW_S = 10.0
"""Over which quantiles of latencies are taken."""

LOAD_S = 1.0
"""What a loading takes, while nobody says: the order of magnitude of weights over a network."""

KINDS = 64
"""Kinds of devices whose rates are remembered, the latest ones: a cluster has a handful."""

QUANTILES = (0.5, 0.9, 0.99)
"""That are told."""

NAMES = {
    (kind, q): f"{kind}_p{round(100 * q)}_s"
    for kind in ("ttft", "tpot", "queue")
    for q in QUANTILES
}
"""What they are called."""


@dataclass(slots=True)
class Pace:
    """What an instance does on one kind of device; None and 0: never measured.

    `measured` is what that has been worked out of, the last time.
    """

    prefill_tokens_per_s: float | None = None
    kv_tokens: int = 0
    measured: Sequence[tuple[float | None, int]] = ()


class Monitor:
    """Keeps what nodes have told of one model. Pure: the clock is an argument of everything.

    What it keeps is bounded by the nodes that live (`forget`), the instances that the view has, and
    by windows of time.
    """

    def __init__(self, model: str, now: float) -> None:
        self.model = model
        self._tellings = Tellings(now)
        self._devices: dict[str, str] = {}
        self._paces: dict[str, Pace] = {}
        self._means: dict[str, Pace] = {}
        self._steps = DecodeSteps()
        self._arrivals = Arrivals(now, 2 * STEADY_S)
        self._ttft, self._tpot, self._queue = (SlidingQuantiles() for _ in range(3))
        self._active_s = now
        self.rises = False
        """Whether the last demand told of more to do than that node's former one."""

    def take(self, boot: str, demand: Demand, now: float) -> bool:
        """Take a node's demand in place of its former one; False for one that is older."""
        former = self._tellings.last(boot)
        if former is not None and demand.number <= former.demand.number:
            return False
        told = self._tellings.take(boot, demand, now)
        self.rises = former is None or more_to_do(former.demand, demand)
        arrived = self._count_arrivals(former, demand, now)
        for sliding, counts in (
            (self._ttft, demand.ttft),
            (self._tpot, demand.tpot),
            (self._queue, demand.queue),
        ):
            if counts:
                sliding.add(counts, now)
        if arrived or told.busy or (former is not None and former.busy):
            self._active_s = max(self._active_s, now)
        for load in demand.loads:
            if load.decode_step_s is not None:
                self._steps.observe(load.running, load.decode_step_s)
        return True

    def forget(self, boot: str, now: float) -> None:
        """Forget what a node has told that has died: its held requests and the loads."""
        self._learn_paces(self._tellings.loads(now))
        gone = self._tellings.forget(boot)
        if gone is not None and gone.busy:
            self._active_s = max(self._active_s, now)

    def look(self, devices: Mapping[str, str], loads: Iterable[LoadFacts], now: float) -> None:
        """Take what the view tells: the kind of device of each instance, and loads.

        `devices`: of each instance of the model that serves or drains, by id, what its device is
        called (kind and name, any text): rates are remembered by it. `loads` are those of the
        model's instances; where a node's demand tells something newer, that counts.
        """
        self._learn_paces(self._tellings.loads(now))
        if self._devices != devices:
            self._devices = dict(devices)
            self._means.clear()
        if self._tellings.show(loads):
            self._active_s = max(self._active_s, now)

    def figures(
        self,
        terms: ScaleTerms,
        serving: int,
        coming: Sequence[Coming],
        now: float,
        device: str = "",
        load_s: float = LOAD_S,
    ) -> Figures:
        """Return what is known now.

        `device` is the kind of device that an instance would come on: its rate is used while no
        instance has one. `load_s` is what a loading takes, for those `coming` that do not say.
        """
        loads = self._tellings.loads(now)
        self._learn_paces(loads)
        held, held_tokens = self._tellings.held(now)
        sums = together(loads)
        if held or sums.busy:
            self._active_s = max(self._active_s, now)
        pace = self._pace(device)
        arrivals_per_s, steady_tokens_per_s = self._arrivals.rate(now, STEADY_S)
        each_s = prompt_s(steady_tokens_per_s, arrivals_per_s, pace.prefill_tokens_per_s)
        sustained_tokens_per_s, certain_tokens_per_s = self._arrivals.sustained(now, each_s)
        figures = Figures(
            model=self.model,
            backlog_tokens=held_tokens + sums.queued_tokens,
            committed_tokens=sums.committed_tokens(held, held_tokens),
            held=held,
            held_tokens=held_tokens,
            held_s=self._tellings.held_s(now),
            waiting=sums.waiting,
            running=sums.running,
            arrivals_per_s=arrivals_per_s,
            sustained_tokens_per_s=sustained_tokens_per_s,
            certain_tokens_per_s=certain_tokens_per_s,
            steady_tokens_per_s=steady_tokens_per_s,
            recent_tokens_per_s=self._arrivals.rate(now, RECENT_S)[1],
            steady_requests=self._arrivals.within(now - STEADY_S, now)[0],
            prefill_tokens_per_s=pace.prefill_tokens_per_s,
            kv_tokens=pace.kv_tokens,
            batch_within=self._steps.batch_within(terms.tpot_s),
            tpot_s=self._tpot.quantile(0.9, now, WINDOW_S) or 0.0 if sums.running else 0.0,
            idle_s=max(0.0, now - self._active_s),
        )
        return foresee(figures, terms, serving, joins_s(serving, coming, load_s))

    def quantiles(self, now: float) -> dict[str, float]:
        """Return the quantiles of the last window, as `core.scale.WhyFacts` names them."""
        found: dict[str, float] = {}
        kinds = (("ttft", self._ttft), ("tpot", self._tpot), ("queue", self._queue))
        for kind, sliding in kinds:
            for q, value in sliding.quantiles(QUANTILES, now, WINDOW_S).items():
                found[NAMES[kind, q]] = value
        return found

    def check_integrity(self) -> None:
        """Raise AssertionError if something is kept that should not be."""
        for sliding in (self._ttft, self._tpot, self._queue):
            sliding.check_integrity()
        assert len(self._paces) <= KINDS
        self._tellings.check_integrity()

    def _count_arrivals(self, former: Told | None, demand: Demand, now: float) -> bool:
        """Count what has arrived since a node's former demand.

        What a node tells first may be of long ago: of that only requests count that are in sight.
        """
        last = former.demand if former else None
        requests = demand.arrived - (last.arrived if last else 0)
        tokens = demand.arrived_tokens - (last.arrived_tokens if last else 0)
        if last is None and requests > 0:
            seen = demand.held + sum(load.running + load.waiting for load in demand.loads)
            tokens = tokens * min(requests, seen) // requests
            requests = min(requests, seen)
        self._arrivals.add(max(0, requests), tokens, now)
        return requests > 0

    def _learn_paces(self, loads: Iterable[LoadFacts]) -> None:
        """Remember what instances that are known to be whole do, by the kind of their device."""
        if self._tellings.paces_known:
            return
        self._tellings.paces_known = True
        kinds: dict[str, list[LoadFacts]] = {}
        for load in loads:
            kind = self._devices.get(load.instance)
            if kind is not None:
                kinds.setdefault(kind, []).append(load)
        for kind, own in kinds.items():
            known = self._paces.pop(kind, None) or Pace()
            measured = [pace_figures(load) for load in own]
            if measured != known.measured:
                rate, tokens = prefill_rate(own), kv_tokens(own)
                rate = rate or known.prefill_tokens_per_s
                known = Pace(rate, tokens or known.kv_tokens, measured)
                self._means.clear()
            self._paces[kind] = known
        while len(self._paces) > KINDS:
            del self._paces[next(iter(self._paces))]
            self._means.clear()

    def _pace(self, device: str) -> Pace:
        """Return what one instance does: of those there are, else on `device`, else on any."""
        found = self._means.get(device)
        if found is None:
            if len(self._means) >= KINDS:
                self._means.clear()
            found = self._means[device] = self._mean(device)
        return found

    def _mean(self, device: str) -> Pace:
        there = [self._paces[kind] for kind in self._devices.values() if kind in self._paces]
        asked = [self._paces[device]] if device in self._paces else []
        pace = Pace()
        for known in (there, asked, list(self._paces.values())):
            rates = [p.prefill_tokens_per_s for p in known if p.prefill_tokens_per_s is not None]
            sizes = [float(p.kv_tokens) for p in known if p.kv_tokens > 0]
            if pace.prefill_tokens_per_s is None:
                pace.prefill_tokens_per_s = robust_mean(rates)
            pace.kv_tokens = pace.kv_tokens or int(robust_mean(sizes) or 0)
        return pace
