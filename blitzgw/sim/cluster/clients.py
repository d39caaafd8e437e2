"""Clients of a simulated cluster: each request comes when the trace says, to one of the nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from blitzgw.sim.cluster.setup import ModelSetup
from blitzgw.sim.evaluation.arrivals import Arrival
from blitzgw.sim.evaluation.record import Answer

if TYPE_CHECKING:
    from blitzgw.sim.cluster.ingress import Ingress
    from blitzgw.sim.cluster.world import ClusterWorld


class Clients:
    """Open-loop clients of all models, from `start_s` of the world's time on."""

    def __init__(self, world: ClusterWorld, start_s: float) -> None:
        self._world, self._start_s = world, start_s

    def come(self) -> None:
        """Let them come."""
        for model in self._world.setup.models:
            self._next(model, iter(enumerate(model.arrivals)))

    def _next(self, model: ModelSetup, requests: Iterator[tuple[int, Arrival]]) -> None:
        number, arrival = next(requests, (0, None))
        if arrival is not None:
            at_s = self._start_s + arrival.at_s
            self._world.heap.at(at_s, self._ask, model, number, arrival, requests)

    def _ask(
        self,
        model: ModelSetup,
        number: int,
        arrival: Arrival,
        requests: Iterator[tuple[int, Arrival]],
    ) -> None:
        ingress = self._ingress(number)
        if ingress is not None:
            ingress.arrive(model, number, arrival)
        else:
            gone = Answer(arrival.at_s, arrival.prompt_tokens, arrival.output_tokens)
            gone.error = "no node can be reached"
            self._world.request_done(model, number, gone)
        self._next(model, requests)

    def _ingress(self, number: int) -> Ingress | None:
        """Return where a client goes: round and round, to the next one where that is down."""
        count = self._world.setup.ingresses
        for further in range(count):
            node = self._world.at[(number + further) % count]
            if node is not None and node.ingress is not None:
                return node.ingress
        return None
