"""A plan's flows in time: each has a constant rate between two events.

An event is a run that ends, a flow that has caught up with what its source gets, or a source that
has its first piece. At an event only those rates are worked out anew that can have changed: those
of flows that share a resource with one whose state changed, or that send on what it brings.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence

from blitzgw.scaling.planner.fairshare import fair_rates
from blitzgw.scaling.planner.flows import NEAR_BYTES, Flow, Resources, Run, State

MERGE_PER_RUN = 1e-6
MERGE = 1e-3
"""Events within this part of the least possible duration are one: equal transfers that rounding
pulls apart must not cost an event each. It grows with the runs that there are (flows.py), up to
`MERGE`, which has been seen to change what 64 targets take by less than half a per cent."""

WORK = 20_000
"""Rates worked out, over all events, before events further apart count as one, so that no plan
holds an event loop up for long. Four times what eight targets with 34 blobs have been seen to
take, and more than 128 with links of all kinds do."""

TICK = 1e-3
"""An event is at least this part of the span of one merge away, so that time goes on."""

ROUNDING = 1e-12
"""And this part of the time so far, which a float still resolves."""

MOST_TURNS = 50
"""Events per run before a simulation gives up: a run takes a handful, and only rounding, at rates
and sizes that no machine has, could make it go on for ever."""

MOVING = (State.BOUND, State.FREE)

Watch = Callable[[float, Sequence[tuple[str, ...]], Sequence[float], Sequence[float]], None]
"""Told after each event: the time, and of every resource its name, its rate and what of it is used.
For tests."""


class Simulation:
    """Runs flows to their end; `arrived` gets the time of each blob at each sink."""

    def __init__(
        self,
        flows: list[Flow],
        resources: Resources,
        arrived: dict[tuple[str, int], float],
        watch: Watch | None,
    ) -> None:
        self._flows = flows
        self._resources = resources
        self._arrived = arrived
        self._watch = watch
        self._users: list[dict[int, None]] = [{} for _ in resources.rates]
        self._events: list[tuple[float, int, int]] = []
        self._now_s = 0.0
        self._work, self._allowed = 0, WORK
        runs = sum(len(flow.runs) for flow in flows)
        self._merge_s = min(MERGE, MERGE_PER_RUN * runs) * self._least_s()

    def _least_s(self) -> float:
        """Return a bound that no plan can beat: the most that a resource has to carry."""
        loads = [0.0] * len(self._resources.rates)
        for flow in self._flows:
            for resource in flow.resources:
                loads[resource] += flow.ends[-1] if flow.ends else 0.0
        pairs = zip(loads, self._resources.rates, strict=True)
        return max((load / rate for load, rate in pairs), default=0.0)

    def run(self) -> None:
        """Run until nothing more happens. Raises ValueError where flows are not done by then."""
        for flow in self._flows:
            if flow.runs:
                self._schedule(flow, flow.begin_s)
            else:
                flow.state = State.DONE
        most = MOST_TURNS * (1 + sum(len(flow.runs) for flow in self._flows))
        while due := self._pop():
            self._turn(due)
            most -= 1
            if most < 0:
                raise ValueError("rates and sizes are too far apart to predict anything")
        stuck = [flow for flow in self._flows if flow.state is not State.DONE]
        if stuck:
            blob = stuck[0].blobs[stuck[0].noted]
            raise ValueError(f"blob {blob} never gets from {stuck[0].source} to {stuck[0].sink}")

    def _pop(self) -> list[Flow]:
        """Return the flows whose events are next, and move the time on to the last of them."""
        due: list[Flow] = []
        until = float("inf")
        while self._events and self._events[0][0] <= until:
            at_s, index, stamp = heapq.heappop(self._events)
            flow = self._flows[index]
            if flow.stamp != stamp:
                continue
            if not due:
                until = at_s + self._merge_s
            self._now_s = max(self._now_s, at_s)
            due.append(flow)
        return due

    def _schedule(self, flow: Flow, at_s: float) -> None:
        flow.stamp += 1
        heapq.heappush(self._events, (at_s, flow.index, flow.stamp))

    # One event.

    def _turn(self, due: Sequence[Flow]) -> None:
        changed = dict.fromkeys(flow.index for flow in due)
        for flow in due:
            self._settle(flow)
        for flow in due:
            self._move_on(flow)
        rates = self._rates(self._affected(changed, ()))
        held_up = [f for index in rates for f in self._held_up(index, rates)]
        if held_up:
            rates = self._rates(self._affected(rates, held_up))
        self._give(rates, changed)
        self._work += len(rates)
        if self._work > self._allowed:
            self._allowed += WORK // 4
            self._merge_s *= 2
        if self._watch is not None:
            self._tell(self._watch)

    def _settle(self, flow: Flow) -> None:
        """Bring a flow up to the present and note what has arrived."""
        if flow.rate > 0.0:
            sent = min(flow.sent_at(self._now_s), flow.runs[flow.run].stop)
            while flow.noted < len(flow.ends) and flow.ends[flow.noted] <= sent + NEAR_BYTES:
                ahead = max(0.0, flow.ends[flow.noted] - flow.sent)
                at_s = min(self._now_s, flow.at_s + ahead / flow.rate)
                self._arrived[flow.sink, flow.blobs[flow.noted]] = at_s
                flow.noted += 1
            flow.track.append((flow.at_s, flow.sent))
            flow.track.append((flow.at_s + (sent - flow.sent) / flow.rate, sent))
            flow.sent = sent
        flow.at_s = self._now_s

    def _move_on(self, flow: Flow) -> None:
        """Find what a flow does from now on."""
        while flow.sent >= flow.runs[flow.run].stop - NEAR_BYTES:
            self._unfollow(flow)
            flow.sent = flow.runs[flow.run].stop
            flow.run += 1
            if flow.run == len(flow.runs):
                flow.run -= 1
                self._become(flow, State.DONE)
                return
        run = flow.runs[flow.run]
        if run.supplier < 0:
            self._become(flow, State.FREE)
            return
        self._become(flow, self._state_within(flow, run))

    def _state_within(self, flow: Flow, run: Run) -> State:
        supplier = self._flows[run.supplier]
        there = supplier.sent_at(self._now_s) - run.shift
        if there >= run.stop - NEAR_BYTES:
            supplier.followers.pop(flow.index, None)
            return State.FREE
        supplier.followers[flow.index] = None
        ahead = there - run.lag - flow.sent
        if ahead > NEAR_BYTES and ahead > 2 * supplier.rate * self._merge_s:
            return State.FREE
        under_way = flow.sent > run.start and there > flow.sent
        return State.BOUND if under_way or ahead >= -2 * NEAR_BYTES else State.WAITING

    def _unfollow(self, flow: Flow) -> None:
        run = flow.runs[flow.run]
        if run.supplier >= 0:
            self._flows[run.supplier].followers.pop(flow.index, None)

    def _become(self, flow: Flow, state: State) -> None:
        flow.state = state
        if state in MOVING:
            for resource in flow.resources:
                self._users[resource][flow.index] = None
        else:
            for resource in flow.resources:
                self._users[resource].pop(flow.index, None)

    # Rates.

    def _held_up(self, index: int, rates: Mapping[int, float]) -> list[int]:
        """Return what follows a flow whose rate is another now, where it is not among `rates`."""
        flow = self._flows[index]
        if not flow.followers or rates[index] == flow.rate:
            return []
        bound = (f for f in flow.followers if self._flows[f].state is State.BOUND)
        return [follower for follower in bound if follower not in rates]

    def _affected(self, changed: Iterable[int], followers: Sequence[int]) -> dict[int, None]:
        """Return the flows whose rates may have changed: what shares with them, transitively.

        And, if any `followers` are given, what follows, too, as long as a flow's rate may change.
        """
        flows, users = self._flows, self._users
        found = dict.fromkeys([*changed, *followers])
        seen: set[int] = set()
        stack = list(found)
        while stack:
            flow = flows[stack.pop()]
            for resource in flow.resources:
                if resource not in seen:
                    seen.add(resource)
                    new = [index for index in users[resource] if index not in found]
                    found.update(dict.fromkeys(new))
                    stack.extend(new)
            for index in flow.followers if followers else ():
                if index not in found and flows[index].state is State.BOUND:
                    found[index] = None
                    stack.append(index)
        return found

    def _rates(self, affected: Mapping[int, None]) -> dict[int, float]:
        """Return the rates of the affected flows."""
        flows = self._flows
        uses: dict[int, tuple[int, ...]] = {}
        ceilings: dict[int, float] = {}
        followers: dict[int, list[int]] = {}
        for index in affected:
            flow = flows[index]
            if flow.state is State.FREE:
                uses[index] = flow.resources
            elif flow.state is State.BOUND:
                uses[index] = flow.resources
                supplier = flow.runs[flow.run].supplier
                if supplier not in affected:
                    ceilings[index] = flows[supplier].rate
                elif flows[supplier].state in MOVING:
                    followers.setdefault(supplier, []).append(index)
                else:
                    ceilings[index] = 0.0
        rates = fair_rates(uses, self._resources.rates, ceilings, followers)
        return {index: rates.get(index, 0.0) for index in affected}

    def _give(self, rates: Mapping[int, float], changed: Mapping[int, None]) -> None:
        """Give flows their rates; set the events of all whose prospects changed."""
        flows = self._flows
        stirred = dict(changed)
        for index, rate in rates.items():
            flow = flows[index]
            if rate != flow.rate:
                self._settle(flow)
                flow.rate = rate
                stirred[index] = None
                stirred.update(flow.followers)
        for index in stirred:
            self._expect(flows[index])

    def _expect(self, flow: Flow) -> None:
        """Set the next event of a flow, if one can be told."""
        run = flow.runs[flow.run]
        in_s: float | None = None
        if flow.state is State.FREE:
            in_s = self._when_free(flow, run)
        elif flow.state is State.BOUND:
            in_s = self._when_bound(flow, run)
        elif flow.state is State.WAITING:
            need = min(flow.sent + run.lag, run.stop)
            in_s = self._when_at(run, need)
        if in_s is None:
            flow.stamp += 1
        else:
            tick_s = max(self._merge_s * TICK, self._now_s * ROUNDING)
            self._schedule(flow, self._now_s + max(in_s, tick_s))

    def _when_at(self, run: Run, offset: float) -> float | None:
        """Return in how many seconds the supplier of a run has come to an offset of it."""
        supplier = self._flows[run.supplier]
        gap = offset + run.shift - supplier.sent_at(self._now_s)
        if gap <= NEAR_BYTES:
            return 0.0
        return gap / supplier.rate if supplier.rate > 0.0 else None

    def _when_free(self, flow: Flow, run: Run) -> float | None:
        if flow.rate <= 0.0:
            return None
        sent = flow.sent_at(self._now_s)
        end_s = (run.stop - sent) / flow.rate
        if run.supplier < 0 or flow.index not in self._flows[run.supplier].followers:
            return end_s
        supplier = self._flows[run.supplier]
        closing = flow.rate - supplier.rate
        released_s = self._when_at(run, run.stop)
        if closing <= 0.0:
            return end_s
        ahead = supplier.sent_at(self._now_s) - run.shift - run.lag - sent
        caught_s = max(0.0, ahead) / closing
        if released_s is not None and released_s <= caught_s:
            return end_s
        return min(end_s, caught_s)

    def _when_bound(self, flow: Flow, run: Run) -> float | None:
        supplier = self._flows[run.supplier]
        released_s = self._when_at(run, run.stop)
        if flow.rate < supplier.rate * (1 - 1e-9):
            flow.state = State.FREE  # held back by something else: it falls behind its source
            return self._when_free(flow, run)
        return released_s

    def _tell(self, watch: Watch) -> None:
        used = [0.0] * len(self._resources.rates)
        for flow in self._flows:
            for resource in flow.resources:
                used[resource] += flow.rate
        watch(self._now_s, self._resources.names, self._resources.rates, used)
