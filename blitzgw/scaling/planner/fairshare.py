"""Max-min fair rates: nobody can have more without somebody having less who has no more.

Progressive filling: all flows rise together; where a resource is full, or a flow reaches its own
ceiling, those flows stay where they are and the others rise on. A *follower* can be no quicker than
the flow that it follows, so it stays where that one stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

UNBOUND = float("inf")
"""The ceiling of a flow that has none."""

SAME_LEVEL = 1 + 1e-9
"""Resources that are full within this factor of the same level are taken as full at once: the
rounding of a sum must not cost another round."""


def fair_rates(
    uses: Mapping[int, Sequence[int]],
    capacities: Sequence[float],
    ceilings: Mapping[int, float] | None = None,
    followers: Mapping[int, Sequence[int]] | None = None,
) -> dict[int, float]:
    """Return the rate of each flow, given the resources that each one uses.

    `capacities` by resource; `ceilings` and `followers` by flow, where there are any. A flow that
    uses no resource and has no ceiling gets `UNBOUND`.
    """
    filling = _Filling(uses, capacities, followers or {})
    low = [(ceiling, flow) for flow, ceiling in (ceilings or {}).items() if flow in uses]
    low.sort(reverse=True)
    while filling.rising:
        level = filling.level()
        if low and low[-1][0] <= level:
            level, flow = low.pop()
            filling.stop([flow], level)
        else:
            filling.stop(filling.full(level), level)
    for flow in uses:
        filling.rates.setdefault(flow, (ceilings or {}).get(flow, UNBOUND))
    return filling.rates


class _Filling:
    """How much of each resource is left, and how many flows still rise there."""

    def __init__(
        self,
        uses: Mapping[int, Sequence[int]],
        capacities: Sequence[float],
        followers: Mapping[int, Sequence[int]],
    ) -> None:
        self._uses = uses
        self._followers = followers
        users: dict[int, list[int]] = {}
        for flow, resources in uses.items():
            for resource in resources:
                if resource in users:
                    users[resource].append(flow)
                else:
                    users[resource] = [flow]
        self._users = users
        self._left = {resource: capacities[resource] for resource in self._users}
        self.rising = {resource: len(flows) for resource, flows in self._users.items()}
        self.rates: dict[int, float] = {}

    def level(self) -> float:
        """Return the level at which the next resource is full."""
        left = self._left
        return min([left[resource] / count for resource, count in self.rising.items()])

    def full(self, level: float) -> list[int]:
        """Return the flows of the resources that are full at a level."""
        left, edge = self._left, level * SAME_LEVEL
        return [
            flow
            for resource, count in self.rising.items()
            if left[resource] <= edge * count
            for flow in self._users[resource]
        ]

    def stop(self, flows: list[int], level: float) -> None:
        """Keep flows, and what follows them, at a level for good."""
        rates, left, rising, followers = self.rates, self._left, self.rising, self._followers
        uses = self._uses
        while flows:
            flow = flows.pop()
            if flow in rates:
                continue
            rates[flow] = level
            for resource in uses[flow]:
                rest = left[resource] - level
                left[resource] = rest if rest > 0.0 else 0.0
                count = rising[resource]
                if count == 1:
                    del rising[resource]
                else:
                    rising[resource] = count - 1
            if flow in followers:
                flows.extend(followers[flow])
