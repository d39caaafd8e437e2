"""How requests are served at a simulated node: queued, computed, decoded, or given back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blitzgw.core.instance import InstanceState
from blitzgw.sim.scalingdevice import SimInstance
from blitzgw.sim.scalingrequests import Bounced, FirstToken, Submit

if TYPE_CHECKING:
    from blitzgw.sim.scalingnode import SimNode


class Serving:
    """Serves requests at the instances of a node."""

    def __init__(self, node: SimNode) -> None:
        self._node, self._world = node, node.world

    def submitted(self, there: SimInstance | None, submit: Submit) -> None:
        """Take a request for an instance, or give it back."""
        if there is None or there.state is not InstanceState.SERVING:
            self.bounce(submit)
            return
        there.queue.append((submit, self._world.heap.now))
        self._next(there)
        self._node.touched(there.model.name)

    def bounce(self, submit: Submit) -> None:
        """Give a request back to its client's node."""
        self._world.links.send(self._node, submit.boot, Bounced(submit.request, submit.attempt))

    def _next(self, there: SimInstance) -> None:
        begun = there.next(self._world.heap.now)
        if begun is not None:
            submit, queue_s = begun
            self._world.heap.after(there.model.prefill_s, self._computed, there, submit, queue_s)

    def _computed(self, there: SimInstance, submit: Submit, queue_s: float) -> None:
        if not self._node.running or there.computing is None or there.computing[0] is not submit:
            return
        there.computing, there.measured = None, True
        there.decoding += 1
        self._world.heap.after(
            there.model.output_tokens * self._world.decode_step_s, self._finished, there
        )
        told = FirstToken(submit.request, submit.attempt, queue_s)
        self._world.links.send(self._node, submit.boot, told)
        self._next(there)
        self._node.touched(there.model.name)

    def _finished(self, there: SimInstance) -> None:
        there.decoding -= 1
        if self._node.running:
            self._next(there)
            self._node.touched(there.model.name)
