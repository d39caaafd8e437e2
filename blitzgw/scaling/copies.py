"""Who keeps the host copies of a model's weights: so many in the whole cluster, whatever happens.

Each node decides for itself, from its view, and they come to agree:

    who gets one:  holders stay; what is missing goes to the next by rendezvous hashing, weighted by
                   free memory (score = −w / ln h, the highest first: a node is chosen in proportion
                   to w, and one that joins or leaves moves only its own share). One without an
                   instance comes first: beside an instance a copy is no further source, and dies
                   with it. What an instance leaves behind for a while (caching.py) is no copy, but
                   comes first to become one once that instance has gone
    who drops one: only a node that sees enough complete copies at living nodes which stand above
                   it in an order that depends on nothing but names. Of two that see each other's
                   copy one stands above, so views that differ never empty both.

Too many for a while (a partition, a start) is fine, none is not: getting waits for a few seconds,
dropping for many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from blitzgw.core.instance import InstanceState
from blitzgw.core.view import ClusterView, CopyFacts, NodeView
from blitzgw.scaling.effects import DropWeights, KeeperEffect, ObtainCopy
from blitzgw.scaling.events import CopyTried, KeeperEvent
from blitzgw.scaling.keepers import CopyNeed, complete_copy, copy_needs, has_all, keepers, order
from blitzgw.scaling.ownership import draining
from blitzgw.scaling.possession import on_disk
from blitzgw.scaling.survey import ModelDefinition, speaks

CHECK_S = 0.5
"""Between two looks at the view: small beside what is waited for."""

OBTAIN_SETTLE_S = 3.0
"""How long a copy must be missing: nodes that start together see each other by then."""

DROP_SETTLE_S = 30.0
"""How long a copy must be superfluous: longer than any death takes to be noticed, so that it is not
dropped in favour of one that is no more."""

RETRY_MIN_S, RETRY_MAX_S = 5.0, 300.0
"""After a failure, doubled from one to the next: a full disk is not filled again at once."""

TRY_S = 3600.0
"""After which an attempt of which nothing was heard is taken for failed: a large model over a slow
link is there by then."""

MAX_WEIGHTS = 1024
"""Models that one node looks after: more than clusters define."""


@dataclass(frozen=True, slots=True)
class KeeperStatistics:
    """Copies that this node obtains now, and how often it has begun to, failed, and dropped one."""

    trying: int
    obtained: int
    failed: int
    dropped: int


@dataclass(slots=True)
class _Attempt:
    """What has been tried for some weights. `since_s` is -1 while nothing is under way."""

    since_s: float = -1.0
    failures: int = 0
    not_before_s: float = 0.0


class CopyKeeper:
    """The decider of this node's own copies.

    `define` returns a model's definition where it is known here. `busy` says whether an operation
    sends from, or fills, a device's store of some weights: it is left alone then.
    """

    def __init__(
        self,
        view: Callable[[], ClusterView],
        define: Callable[[str], ModelDefinition | None],
        busy: Callable[[str, str], bool],
    ) -> None:
        self._view, self._define, self._busy = view, define, busy
        self._next_s: float | None = None
        self._attempts: dict[str, _Attempt] = {}
        self._missing: dict[str, float] = {}
        """Since when this node should have got a copy."""
        self._surplus: dict[tuple[str, str], float] = {}
        """Since when a copy is superfluous: by (weights, device)."""
        self._n_obtained = self._n_failed = self._n_dropped = 0

    def handle(self, event: KeeperEvent, now: float) -> list[KeeperEffect]:
        """Take an event at time `now` in seconds; return what to do, in order."""
        if isinstance(event, CopyTried):
            self._on_tried(event, now)
            return []
        self._next_s = now + CHECK_S
        return self._check(now)

    def deadline(self) -> float:
        """Return when `TimePassed` is due; 0 before the first."""
        return self._next_s if self._next_s is not None else 0.0

    def statistics(self) -> KeeperStatistics:
        """Return the present figures."""
        trying = sum(attempt.since_s >= 0 for attempt in self._attempts.values())
        return KeeperStatistics(trying, self._n_obtained, self._n_failed, self._n_dropped)

    def check_integrity(self) -> None:
        """Raise AssertionError if the books contradict themselves."""
        assert len(self._attempts) <= MAX_WEIGHTS
        for attempt in self._attempts.values():
            assert attempt.failures >= 0

    def _on_tried(self, event: CopyTried, now: float) -> None:
        attempt = self._attempts.get(event.weights)
        if attempt is None or attempt.since_s < 0:
            return
        attempt.since_s = -1.0
        if not event.reason:
            del self._attempts[event.weights]
            return
        self._n_failed += 1
        pause = min(RETRY_MIN_S * 2 ** min(attempt.failures, 16), RETRY_MAX_S)
        attempt.failures, attempt.not_before_s = attempt.failures + 1, now + pause

    def _check(self, now: float) -> list[KeeperEffect]:
        view = self._view()
        local = view.nodes.get(view.local)
        if local is None:
            return []
        needs = copy_needs(view)
        for weights, attempt in list(self._attempts.items()):
            if attempt.since_s >= 0 and now > attempt.since_s + TRY_S:
                self._on_tried(CopyTried(weights, "nothing was heard of it"), now)
            if weights not in needs and attempt.since_s < 0:
                del self._attempts[weights]
        effects: list[KeeperEffect] = []
        for need in list(needs.values())[:MAX_WEIGHTS]:
            effects += self._obtain(need, view, local, now)
        self._missing = {w: since for w, since in self._missing.items() if w in needs}
        return effects + self._drop(needs, view, local, now)

    # Getting.

    def _obtain(
        self, need: CopyNeed, view: ClusterView, local: NodeView, now: float
    ) -> list[KeeperEffect]:
        definition = self._define(need.model)
        device = _device_for(local, need.weights)
        if definition is None or device is None or not self._is_missing(need, view, definition):
            self._missing.pop(need.weights, None)
            return []
        since = self._missing.setdefault(need.weights, now)
        attempt = self._attempts.get(need.weights)
        if attempt is not None and (attempt.since_s >= 0 or now < attempt.not_before_s):
            return []
        if now < since + OBTAIN_SETTLE_S or self._busy(device, need.weights):
            return []
        self._attempts.setdefault(need.weights, _Attempt()).since_s = now
        self._n_obtained += 1
        disk = any(m.weights == need.weights and m.disk for m in local.models.values())
        return [ObtainCopy(device, need.model, need.digest, need.weights, disk)]

    def _is_missing(self, need: CopyNeed, view: ClusterView, definition: ModelDefinition) -> bool:
        """Whether this node should have a copy, has none, and somebody could give one."""
        local = view.nodes[view.local]
        if draining(local) or complete_copy(local, need.weights) is not None:
            return False
        if not any(has_all(node, need.weights, definition, view) for node in view.living()):
            return False
        return view.local in keepers(need, view, definition.size_bytes)

    # Dropping.

    def _drop(
        self, needs: dict[str, CopyNeed], view: ClusterView, local: NodeView, now: float
    ) -> list[KeeperEffect]:
        surplus = {
            (copy.weights, copy.device)
            for copy in local.copies.values()
            if not copy.cached
            and not self._busy(copy.device, copy.weights)
            and self._is_surplus(copy, needs.get(copy.weights), view)
        }
        self._surplus = {copy: self._surplus.get(copy, now) for copy in sorted(surplus)}
        due = [copy for copy, since in self._surplus.items() if now >= since + DROP_SETTLE_S]
        for copy in due:
            del self._surplus[copy]
        self._n_dropped += len(due)
        return [DropWeights(device, weights) for weights, device in due]

    def _is_surplus(self, copy: CopyFacts, need: CopyNeed | None, view: ClusterView) -> bool:
        if need is None:
            return True
        attempt = self._attempts.get(copy.weights)
        if attempt is not None and attempt.since_s >= 0:
            return False
        local = view.nodes[view.local]
        best = complete_copy(local, copy.weights)
        if best is not None and best.device != copy.device:
            return True
        if not copy.complete:
            return False
        above = [
            node
            for node in view.living()
            if not draining(node)
            and complete_copy(node, copy.weights) is not None
            and order(node, copy.weights) > order(local, copy.weights)
        ]
        if need.count:
            return len(above) >= need.count
        return bool(above) or any(on_disk(node, copy.weights, view) for node in view.living())


def _device_for(node: NodeView, weights: str) -> str | None:
    """Return whose worker makes a copy: who has begun one, or has the weights, or the first."""
    copying = {copy.device for copy in node.copies.values() if copy.weights == weights}
    having = {
        facts.device
        for facts in node.instances.values()
        if facts.weights == weights and facts.state is not InstanceState.GONE
    }
    able = [device.id for device in node.devices.values() if speaks(device)]
    ranks = {device: (device not in copying, device not in having, device) for device in able}
    return min(ranks, key=ranks.__getitem__, default=None)
