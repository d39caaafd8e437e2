"""What follows at a node from what all nodes are and define by now.

view ──► definitions settle ──► the router learns which hold
    ├──► routes: who serves, what nobody can serve
    ├──► scaling
    └──► names that nodes share
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from blitzgw.core.scale import ScaleMode
from blitzgw.core.view import ClusterView
from blitzgw.definitions import Definitions
from blitzgw.router.router import Router
from blitzgw.routes import Routes

log = logging.getLogger(__name__)


class Following:
    """Draws the consequences for a router, its routes and what scales.

    `reasons` is why models could not be loaded here. `hear` tells scaling that the view has
    changed; `on_change` is told that there is something to publish, `again` that something has been
    left for the next time.
    """

    def __init__(
        self,
        router: Router,
        routes: Routes,
        definitions: Definitions,
        reasons: Mapping[str, str],
        hear: Callable[[ClusterView], None],
        on_change: Callable[[], None],
        again: Callable[[], None],
    ) -> None:
        self._router, self._routes, self._definitions = router, routes, definitions
        self._reasons, self._hear = reasons, hear
        self._on_change, self._again = on_change, again
        self._hopeless: set[str] = set()
        self._namesakes: dict[str, tuple[str, ...]] = {}

    def follow(self, view: ClusterView) -> None:
        """Follow a view, which may be the last one still."""
        before = _digests(self._definitions)
        if self._definitions.settle(view):
            self._on_change()
        after = _digests(self._definitions)
        for name in before.keys() | after.keys():
            if before.get(name) != after.get(name):
                self._router.redefined(name, after.get(name, ""))
        if self._routes.follow(view):
            self._again()
        hopeless = self._routes.hopeless(view)
        self._judge({model for model in hopeless if not _scales(model, view)})
        self._hear(view)
        self._compare_names(view)

    def eldest(self, name: str) -> str:
        """Return the oldest of the nodes that share a name; empty: no two share it."""
        return next(iter(self._namesakes.get(name, ())), "")

    def _judge(self, hopeless: set[str]) -> None:
        """Answer who waits for what has failed everywhere.

        The router takes new hope when an instance is up.
        """
        for model in hopeless - self._hopeless:
            reason = self._reasons.get(model, f"model {model} could not be loaded by any node")
            log.warning("model_given_up name=%s", model)
            self._router.give_up(model, reason)
        self._hopeless = hopeless

    def _compare_names(self, view: ClusterView) -> None:
        """Tell of nodes that share a name, and with it the ids of their instances."""
        found = {
            name: tuple(node.boot for node in nodes) for name, nodes in view.namesakes().items()
        }
        for name, boots in found.items():
            if self._namesakes.get(name) != boots:
                log.warning("node_name_conflict name=%s boots=%s", name, ",".join(boots))
        self._namesakes = found


def _digests(definitions: Definitions) -> dict[str, str]:
    return {name: definition.digest for name, definition in definitions.settled.items()}


def _scales(model: str, view: ClusterView) -> bool:
    """Tell whether a model's owner brings instances up by itself."""
    return any(
        node.scaling[model].mode == ScaleMode.AUTO
        for node in view.living()
        if model in node.scaling
    )
