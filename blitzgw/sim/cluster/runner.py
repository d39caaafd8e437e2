"""One device of a simulated node: the production scheduler, a worker in virtual time, one instance.

It stands where `device.py`'s DeviceRunner stands on a node: pairings and what wants them
(pairings.py, helping.py) take it for that.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from blitzgw.core.instance import InstanceState
from blitzgw.core.parcels import DropParcels
from blitzgw.core.request import TokenEvent
from blitzgw.core.span import Span
from blitzgw.core.transfer import CloseEdge, OpenReceive, OpenSend
from blitzgw.core.view import LoadFacts
from blitzgw.device import OPENING, STEP_BITS
from blitzgw.scheduler.events import (
    Event,
    InstanceOpened,
    InstanceReady,
    LayersResident,
    PairingClosed,
    PairingOpened,
    StageAssigned,
    StageResident,
)
from blitzgw.scheduler.lane import InstanceStatistics
from blitzgw.scheduler.scheduler import Scheduler
from blitzgw.scheduler.shell import LocalInstance
from blitzgw.sim.cluster.costs import StepCost
from blitzgw.sim.cluster.instances import SimInstance
from blitzgw.sim.cluster.outbox import Outbox
from blitzgw.sim.cluster.roads import RoadEnd
from blitzgw.sim.cluster.shell import VirtualShell
from blitzgw.sim.cluster.steps import StepWorker

if TYPE_CHECKING:
    from blitzgw.sim.cluster.serving import Serving

MAX_QUEUE = 512
"""Requests that wait at an instance: the default of [http] max_queue."""

TICK_S = 1.0
"""Between two ticks of a scheduler that expects them, as on nodes."""

JOINED_S = 5.0
"""For so long after the last word of a pairing ticks go on: something may be owed by then."""

HISTORY_S = 2.5
"""How far back the figures of an instance are kept: routers see them up to so late."""


class Runner:
    """What is on a device, from an instance's coming to its going."""

    def __init__(self, serving: Serving, there: SimInstance, generation: int) -> None:
        world = serving.node.world
        profile = there.model.profile
        # next to each other in memory: routers of other nodes look at them all the time
        self.up, self.users = True, serving.gate.users
        self.history: deque[tuple[float, int, float | None]] = deque(((-1.0, 0, None),))
        """When figures changed that routers see: queued tokens, prefill rate."""
        self.serving, self.there, self.claim = serving, there, there.claim
        self.instances: dict[str, SimInstance] = {there.id: there}
        self.opened = self.staged = False
        self.port: LocalInstance | None = None
        self.supervisor = self
        self._heap = world.heap
        self._ticking, self._joined_s = False, -JOINED_S
        layers = profile.layers
        per_layer = profile.kv_token_bytes / layers
        self._end = RoadEnd(serving.node.index, self._road_told, profile.hidden_bytes, per_layer)
        took = world.latencies
        cost = StepCost(
            profile.cost,
            took.step_overhead_s,
            took.step_beside_s,
            took.prefill_step_s,
            took.prefill_beside_s,
        )
        self.worker = StepWorker(
            world.heap, cost, layers, world.roads.send, self._drop, world.company
        )
        scheduler = Scheduler(
            profile.kv_bytes, max_queue=MAX_QUEUE, last_step=generation << STEP_BITS
        )
        pairs = serving.pairings.port(there.device)
        self.shell = VirtualShell(scheduler, serving.clock, self.worker, serving.gate, pairs)
        self.shell.worker, self.shell.runner = self.worker, self
        self.scheduler = scheduler
        self.worker.join(self.shell)
        self.outbox = Outbox(serving)

    # What pairings and what wants them ask of a DeviceRunner.

    def lanes(self) -> dict[str, InstanceStatistics]:
        """Return the figures of the instance, by its id; of one that is not known here, nothing."""
        return self.scheduler.statistics().instances

    def helps(self, _name: str, other: str) -> None:
        """Note whom the instance helps while it loads; empty: nobody."""
        if self.there.helps != other:
            self.there.helps = other
            self.serving.node.changed()

    def stage(self, name: str, span: Span | None) -> None:
        """Have the instance be a stage of a pipeline while it loads, or none any more."""
        there = self.instances.get(name)
        if there is None or there.stage == span:
            return
        there.stage, there.open, self.staged = span, False, False
        if span and there.state is InstanceState.LOADING:
            self._open()
            self.shell.tell(StageAssigned(name, span))
            self.tell_stage()
            if span.start == 0 and self.port is None:
                self.port = self.shell.port(there.served)
                self.serving.local_up(self)
        self.serving.node.changed()

    def live(self, event: Event) -> None:
        """Tell the scheduler of a pairing: that it is there, or gone, or what is said in it."""
        if isinstance(event, PairingOpened):
            self._open()
        self.shell.tell(event)
        if isinstance(event, OPENING):
            self.mind_lead(gone=isinstance(event, PairingClosed))
        self._joined_s = self._heap.now
        self._arm_ticks()

    def send(self, command: Any) -> None:
        """Carry out what a worker is told of roads."""
        roads = self.serving.node.world.roads
        if isinstance(command, OpenSend):
            roads.open(command.edge.id, self._end, sends=True)
        elif isinstance(command, OpenReceive):
            roads.open(command.edge.id, self._end, sends=False)
        elif isinstance(command, CloseEdge):
            roads.close(command.edge)
        elif isinstance(command, DropParcels):
            self._drop(command)

    # The instance.

    def blob_resident(self) -> None:
        """Tell the scheduler, where it knows the instance, that a blob more is there."""
        if self.opened:
            self.shell.tell(LayersResident(self.there.id, self.there.layers_usable))
            self.tell_stage()

    def tell_stage(self) -> None:
        """Have the scheduler know, once, that the instance has what its stage needs."""
        if not self.staged and self.there.stage_resident:
            self.staged = True
            self.shell.tell(StageResident(self.there.id))
            self.mind_lead()

    def mind_lead(self, *, gone: bool = False) -> None:
        """Tell of a lead that takes requests by now; `gone`: or none any more."""
        there, port = self.there, self.port if self.there.leads else None
        is_open = port is not None and self.shell.outlook(there.id).open
        if is_open == there.open or not (is_open or gone or port is None):
            return
        there.open = is_open
        if port is not None and is_open:
            self.serving.local_up(self)
        self.serving.node.changed()

    def ready(self) -> None:
        """Put the instance into service: it is complete."""
        self.tell_stage()
        self.opened = self.there.open = False
        self.into_service()

    def into_service(self) -> None:
        """Let the instance take requests."""
        if self.port is None:
            self.port = self.shell.add_instance(self.there.served)
        else:  # it has led a pipeline, or drained: it goes on by the same way
            known = self.there.id in self.lanes()
            if known and self.scheduler.outlook(self.there.id).reluctant:
                self.shell.tell(InstanceReady(self.there.served))
            elif not known:
                self.port = self.shell.add_instance(self.there.served)
        self.port.open = True
        self.serving.local_up(self)

    @property
    def busy(self) -> bool:
        """Whether anything runs, waits or is being sent."""
        lane = self.lanes().get(self.there.id)
        return lane is not None and lane.running + lane.waiting + lane.live.sending > 0

    def out_of_service(self) -> None:
        """Have the scheduler forget the instance: what it still had is lost."""
        self.port = None
        if self.there.id in self.lanes():
            self.shell.remove_instance(self.there.id)

    def tell_all(self) -> None:
        """Hand over all that has been sampled by now: who asked may have to go elsewhere."""
        self.worker.settle()
        self.outbox.flush()

    def stop(self) -> None:
        """Compute nothing more."""
        self.tell_all()
        self.up = False
        self.worker.stop()

    # Figures.

    def load(self, number: int) -> LoadFacts | None:
        """Return how busy the instance is; None while its scheduler does not know it."""
        load = self.scheduler.load(self.there.id)
        if load is None:
            return None
        return LoadFacts(  # `replace` takes five times as long
            load.instance,
            load.running,
            load.waiting,
            load.queued_tokens,
            round(load.kv_usage, 3),
            _rounded(load.prefill_tokens_per_s),
            _rounded(load.decode_step_s),
            number=number,
            kv_tokens=load.kv_tokens,
            kv_committed_tokens=load.kv_committed_tokens,
        )

    def note(self) -> None:
        """Keep what routers see, and tell of a change that scaling wants to know."""
        if self.there.state is InstanceState.LOADING and not self.there.leads:
            return  # no router sees it
        queued, rate = self.scheduler.ahead(self.there.id)
        history = self.history
        told_s, before, former_rate = history[-1]
        if queued != before or rate != former_rate:
            now = self._heap.now
            if told_s == now:
                history.pop()
            history.append((now, queued, rate))
            while len(history) > 1 and history[1][0] <= now - HISTORY_S:
                history.popleft()
            self.touch(urgent=queued > before)

    def touch(self, *, urgent: bool) -> None:
        """Tell of a change that scaling wants to know: of more to do at once, of progress soon."""
        self.serving.node.touched(self.there.model.name, urgent=urgent)

    def seen_at(self, moment_s: float) -> tuple[float, int, float | None]:
        """Return the figures as they were, and since when."""
        for known in reversed(self.history):
            if known[0] <= moment_s:
                return known
        return self.history[0]

    # What the worker and roads tell.

    def emit(self, events: list[TokenEvent], at_s: float) -> None:
        """Hand tokens over that have just been sampled."""
        self.outbox.put(events, at_s)
        for event in events:
            if event.finish is not None:
                self.touch(urgent=False)
                break

    def _arm_ticks(self) -> None:
        if not self._ticking:
            self._ticking = True
            self._heap.after(TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticking = False
        if self.up:
            self.shell.tick()
            if self.scheduler.expects_ticks or self._heap.now - self._joined_s < JOINED_S:
                self._arm_ticks()

    def _open(self) -> None:
        """Have the scheduler know the instance while it loads."""
        if not self.opened and self.there.state is InstanceState.LOADING:
            self.opened = True
            self.shell.tell(InstanceOpened(self.there.served))
            self.shell.tell(LayersResident(self.there.id, self.there.layers_usable))

    def _drop(self, command: DropParcels) -> None:
        self.serving.node.world.roads.drop(command.edge, command.tickets)

    def _road_told(self, message: Any) -> None:
        if self.up:
            self.serving.pairings.told(self.there.device, message)


def _rounded(rate: float | None) -> float | None:
    """Keep two digits, as nodes do (reporting.py): policies see no more."""
    return None if rate is None else float(f"{rate:.2g}")
