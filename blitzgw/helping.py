"""Which pairings a node wants while its instances load, and to move sequences somewhere.

An instance that is loading may help a home, and be a stage of a pipeline besides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from blitzgw.core.instance import InstanceState
from blitzgw.core.live import LivePolicy, Purpose
from blitzgw.core.span import Span
from blitzgw.core.view import ClusterView, InstanceFacts, NodeView
from blitzgw.core.whereabouts import nodes_with
from blitzgw.device import DeviceRunner
from blitzgw.hosting import HOSTS
from blitzgw.pairings import Pairings
from blitzgw.scaling import duties
from blitzgw.scaling.residents import residents
from blitzgw.scheduler.events import MoveOut, PairingOpened

RETRY_S = 0.5
"""Until one that has lost its home, or the next stage, or could not reach it, asks again, at most:
a node that does not answer is not asked too often."""

FIRST_RETRY_S = 0.05
"""The first time, and twice as long each time after: who begins at the same moment is not in the
view yet, but soon will be."""


EVEN_S = 0.5
"""From the end of a helper's work until its home looks whether to give it running sequences: by
then gossip has told that it serves, and what it runs."""

MIN_EVEN = 2
"""Sequences that are worth a pairing and a road."""


@dataclass(frozen=True, slots=True)
class _Wish:
    """Whom a steward wants an instance joined to while it loads."""

    device: str
    host: str
    policy: LivePolicy = LivePolicy.STOP


_Part = tuple[str, Purpose]
"""An instance of this node, and what it is a guest for."""


class Helping:
    """Has this node's instances joined as stewards and drains want. For the event loop only.

    `join` comes before anything else.
    """

    def __init__(
        self, view: Callable[[], ClusterView], devices: Mapping[str, DeviceRunner]
    ) -> None:
        self._view, self._devices = view, devices
        self._wishes: dict[_Part, _Wish] = {}
        self._timers: dict[_Part, asyncio.TimerHandle] = {}
        self._evenings: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._pauses: dict[_Part, float] = {}

    def join(self, pairings: Pairings) -> None:
        """Make pairings with this."""
        self._pairings = pairings

    def performers(self) -> dict[type, Callable[[Any], None]]:
        """Return what carries out each of a steward's effects that are its affair."""
        return {
            duties.PairInstance: lambda e: self.pair(e.device, e.instance, e.home, e.policy),
            duties.UnpairInstance: lambda e: self.unpair(e.instance),
            duties.StageInstance: lambda e: self.stage(e.device, e.instance, e.span, e.next),
            duties.UnstageInstance: lambda e: self.unstage(e.device, e.instance),
        }

    def pair(self, device: str, instance: str, home: str, policy: LivePolicy) -> None:
        """Have an instance that is loading help another one, for as long as it loads."""
        self._want((instance, Purpose.HELP), _Wish(device, home, policy))

    def unpair(self, instance: str) -> None:
        """Have an instance help nobody (any more)."""
        self._give_up((instance, Purpose.HELP), "it is to help no more")

    def stage(self, device: str, instance: str, span: Span, behind: str) -> None:
        """Have an instance that is loading be a stage, joined to the one behind it, if any."""
        self._devices[device].stage(instance, span)
        if behind:
            self._want((instance, Purpose.STAGE), _Wish(device, behind))

    def unstage(self, device: str, instance: str) -> None:
        """Have an instance be no stage (any more)."""
        self._give_up((instance, Purpose.STAGE), "it is to be no stage any more")
        self._devices[device].stage(instance, None)

    def _want(self, part: _Part, wish: _Wish) -> None:
        if self._wishes.get(part) != wish:
            self._give_up(part, "it is to go elsewhere")
            self._wishes[part] = wish
            self._try(part)

    def _give_up(self, part: _Part, reason: str) -> None:
        self._wishes.pop(part, None)
        self._pauses.pop(part, None)
        timer = self._timers.pop(part, None)
        if timer is not None:
            timer.cancel()
        for name, end in self._pairings.of(*part):
            if end.opened.guest:
                self._pairings.dissolve(name, end, reason)

    def move_out(self, device: str, instance: str, count: int, *, queued: bool = False) -> bool:
        """Begin to move sequences of an instance to the least busy other one of its model.

        Returns whether there is one. What cannot be moved stays.
        """
        if self._pairings.of(instance, Purpose.MOVE):
            return True
        known = self._devices[device].instances.get(instance)
        target = None if known is None else self._relief(instance, known.served.model)
        if target is None:
            return False
        then = partial(MoveOut, count=count, queued=queued)
        return self._pairings.attach(device, instance, target, Purpose.MOVE, then=then)

    def stay(self, instance: str) -> None:
        """Move nothing more out of an instance: it serves again. What has moved stays moved."""
        for name, end in self._pairings.of(instance, Purpose.MOVE):
            if end.opened.guest:
                self._pairings.dissolve(name, end, "it serves again")

    def ended(self, opened: PairingOpened) -> None:
        """Take the news that a pairing has ended: a guest looks for another.

        A home looks, a little later, whether its helper is complete and has less to do.
        """
        part = (opened.here, opened.purpose)
        if opened.guest and part in self._wishes:
            self._later(part)
        elif not opened.guest and opened.purpose is Purpose.HELP:
            ends = (opened.here, opened.there)
            if ends not in self._evenings:
                loop = asyncio.get_running_loop()
                self._evenings[ends] = loop.call_later(EVEN_S, self._even_out, *ends)

    def _even_out(self, instance: str, other: str) -> None:
        """Begin to move half of what one of two instances has more to run."""
        self._evenings.pop((instance, other), None)
        found = self._find(other, Purpose.MOVE)
        for name, runner in self._devices.items():
            lane = runner.lanes().get(instance)
            if found is None or lane is None or self._pairings.of(instance, Purpose.MOVE):
                continue
            load = found[0].loads.get(other)
            count = (lane.running - (0 if load is None else load.running)) // 2
            if count >= MIN_EVEN:
                then = partial(MoveOut, count=count)
                self._pairings.attach(name, instance, found, Purpose.MOVE, then=then)

    def completed(self, instance: str) -> None:
        """Take the news that an instance is complete: it is a stage as long as one is before it.

        One that leads is joined to the next stage until its scheduler has what it takes over.
        """
        self.settled(instance)
        ends = self._pairings.of(instance, Purpose.STAGE)
        if all(end.opened.guest for _, end in ends):
            for name, end in ends:
                if not (end.open and self._leads(instance)):
                    self._pairings.dissolve(name, end, "the pipeline is over")

    def _leads(self, instance: str) -> bool:
        known = [runner.instances.get(instance) for runner in self._devices.values()]
        stages = [one.stage for one in known if one is not None]
        return any(stage is not None and stage.start == 0 for stage in stages)

    def settled(self, instance: str) -> None:
        """Take the news that an instance is complete, or gone: it asks nobody from now on."""
        for purpose in Purpose:
            self._wishes.pop((instance, purpose), None)
            self._pauses.pop((instance, purpose), None)

    def close(self) -> None:
        """Want nothing more."""
        for timer in (*self._timers.values(), *self._evenings.values()):
            timer.cancel()
        self._timers.clear()
        self._evenings.clear()
        self._wishes.clear()

    def _try(self, part: _Part) -> None:
        """Ask a wish's host, or try again later."""
        self._timers.pop(part, None)
        wish = self._wishes.get(part)
        instance, purpose = part
        if wish is None or any(end.opened.guest for _, end in self._pairings.of(*part)):
            return
        known = self._devices[wish.device].instances.get(instance)
        if known is None or known.state is not InstanceState.LOADING:
            del self._wishes[part]
            self._pauses.pop(part, None)
            return
        host = self._find(wish.host, purpose)
        if host is None or not self._pairings.attach(
            wish.device, instance, host, purpose, wish.policy
        ):
            self._later(part)

    def _later(self, part: _Part) -> None:
        if part not in self._timers:
            pause_s = self._pauses.get(part, FIRST_RETRY_S)
            self._pauses[part] = min(2 * pause_s, RETRY_S)
            loop = asyncio.get_running_loop()
            self._timers[part] = loop.call_later(pause_s, self._try, part)

    def _find(self, instance: str, purpose: Purpose) -> tuple[NodeView, InstanceFacts] | None:
        """Return an instance that can be a host, and its node, as the view knows them."""
        for node in nodes_with(instance, self._view()):
            facts = node.instances[instance]
            if facts.state in HOSTS[purpose]:
                return node, facts
        return None

    def _relief(self, instance: str, model: str) -> tuple[NodeView, InstanceFacts] | None:
        """Return the least busy other serving instance of a model, where no node drains.

        Another definition of the model would read its KV wrongly.
        """
        view = self._view()
        digest = ""
        for node in nodes_with(instance, view):
            digest = node.instances[instance].digest
        found = []
        for node in (view.nodes[boot] for boot in residents(model, view)):
            if not node.living or node.facts is None or node.facts.draining:
                continue
            for facts in node.instances.values():
                same = facts.model == model and facts.digest == digest
                serving = facts.state is InstanceState.SERVING and same
                if serving and facts.id != instance:
                    load = node.loads.get(facts.id)
                    busy = (0.0, 0) if load is None else (load.kv_usage, load.running)
                    found.append((busy, facts.id, node, facts))
        return min(found, key=lambda one: one[:2])[2:] if found else None
