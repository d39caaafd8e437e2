"""When single blobs arrive, from the way that flows of whole groups took.

A group's blobs arrive one after another, and a flow's *track* says at which times it had sent how
many bytes, with a constant rate between two of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

from blitzgw.core.plan import Prediction
from blitzgw.scaling.planner.check import resident_blobs
from blitzgw.scaling.planner.coarse import Grouping
from blitzgw.scaling.planner.flows import NEAR_BYTES, Flow


def unfolded(prediction: Prediction, flows: Sequence[Flow], grouping: Grouping) -> Prediction:
    """Return what is predicted of groups as a prediction of their blobs.

    Times of completion and coverage stay: at whichever target a group is complete first, all its
    blobs are there by then and its last one is not there before.
    """
    arrivals = Arrivals(flows, grouping)
    firsts = [arrivals.first_s(flow) for flow in flows if flow.sink in arrivals and flow.blobs]
    return replace(
        prediction,
        arrivals=arrivals,
        first_blob_s=min(firsts, default=0.0),
        coverage_s=_coverage_s(prediction, grouping),
    )


def _coverage_s(prediction: Prediction, grouping: Grouping) -> float:
    """Return when the targets together have the model: what they had together counts from 0 on."""
    if grouping.exact:
        return prediction.coverage_s
    resident = resident_blobs(grouping.blobs)
    there = set[int]().union(*(resident.get(target, ()) for target in grouping.blobs.targets))
    complete_s = map(min, zip(*prediction.arrivals.values(), strict=True))
    pairs = zip(complete_s, grouping.groups, strict=True)
    return max((at_s for at_s, group in pairs if not there.issuperset(group)), default=0.0)


class Arrivals(Mapping[str, tuple[float, ...]]):
    """Arrivals by target and then by blob, worked out for those targets that are asked for."""

    def __init__(self, flows: Sequence[Flow], grouping: Grouping) -> None:
        """Take in flows that have run to their end."""
        self._grouping = grouping
        self._resident = resident_blobs(grouping.blobs)
        self._flows: dict[str, list[Flow]] = {t: [] for t in grouping.blobs.targets}
        for flow in flows:
            if flow.sink in self._flows:
                self._flows[flow.sink].append(flow)
        self._ends: dict[tuple[int, ...], list[float]] = {}
        self._known: dict[str, tuple[float, ...]] = {}

    def __len__(self) -> int:
        """Return how many targets there are."""
        return len(self._flows)

    def __iter__(self) -> Iterator[str]:
        """Go through the targets."""
        return iter(self._flows)

    def __contains__(self, target: object) -> bool:
        """Tell targets without working anything out."""
        return target in self._flows

    def __getitem__(self, target: str) -> tuple[float, ...]:
        """Return the seconds at which each blob arrives; 0 where the target had it before."""
        if target not in self._known:
            self._known[target] = self._of(target, self._flows[target])
        return self._known[target]

    def first_s(self, flow: Flow) -> float:
        """Return when a flow's first blob that its sink lacks is there."""
        blobs = self._grouping.members(flow.blobs)
        has = self._resident.get(flow.sink, ())
        place = next(place for place, blob in enumerate(blobs) if blob not in has)
        return reached_s(flow.track, self._ends_of(blobs)[place : place + 1])[0]

    def _of(self, target: str, flows: Sequence[Flow]) -> tuple[float, ...]:
        times = [0.0] * len(self._grouping.blobs.blob_bytes)
        has = self._resident.get(target, ())
        for flow in flows:
            blobs = self._grouping.members(flow.blobs)
            reached = reached_s(flow.track, self._ends_of(blobs))
            for blob, at_s in zip(blobs, reached, strict=True):
                times[blob] = at_s
        for blob in has:
            times[blob] = 0.0
        return tuple(times)

    def _ends_of(self, blobs: tuple[int, ...]) -> list[float]:
        """Return where each blob ends, in bytes of its flow; flows that agree share one answer."""
        if blobs not in self._ends:
            sizes = self._grouping.blobs.blob_bytes
            self._ends[blobs] = list(accumulate(float(max(1, sizes[blob])) for blob in blobs))
        return self._ends[blobs]


def reached_s(track: Sequence[tuple[float, float]], ends: Sequence[float]) -> list[float]:
    """Return when a flow has sent as much as each of these, which rise."""
    times: list[float] = []
    for (begin_s, begun), (stop_s, stopped) in pairwise(track):
        if stopped > begun:
            at = len(times)
            slope = (stop_s - begin_s) / (stopped - begun)
            inside = ends[at : bisect_right(ends, stopped + NEAR_BYTES, at)]
            times += [begin_s + (end - begun) * slope for end in inside]
    return times + [track[-1][0]] * (len(ends) - len(times))
