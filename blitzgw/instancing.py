"""Instances that come and go by scale operations: brings them up, lets them drain, drops them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from blitzgw.core.clock import Clock
from blitzgw.definitions import Definitions
from blitzgw.device import DeviceRunner
from blitzgw.errors import BlitzError
from blitzgw.helping import Helping
from blitzgw.network import Network
from blitzgw.scaling import effects as eff
from blitzgw.scaling import events as ev

POLL_S = 0.05
"""How often a draining instance is looked at."""

EVERYTHING = 1 << 20
"""Sequences that move from an instance that drains: more than there are anywhere."""


class Instancing:
    """Carries out what the steward decides about this node's devices."""

    def __init__(
        self,
        devices: Mapping[str, DeviceRunner],
        definitions: Definitions,
        network: Network,
        steward: Callable[[ev.StewardEvent], None],
        clock: Clock,
        drain_timeout_s: float,
        helping: Helping,
    ) -> None:
        self._devices, self._definitions, self._network = devices, definitions, network
        self._steward, self._clock = steward, clock
        self._drain_timeout_s, self._helping = drain_timeout_s, helping
        self._drains: dict[str, asyncio.Task[None]] = {}
        """By instance."""

    def bring_up(self, effect: eff.BringUp) -> None:
        """Set an instance's memory aside on a device, at a new claim."""
        runner, known = self._devices[effect.device], self._definitions.known(effect.digest)
        claim = runner.take()
        assert claim == effect.claim, "the steward counts claims as the device does"
        assert known is not None, "the premises objected to unknown definitions"
        config = self._definitions.config_of(effect.model, effect.digest)
        try:
            runner.bring_up(known.spec, config, known.card.blobs, effect.digest)
        except BlitzError as error:
            failed = ev.InstanceEnded(effect.device, effect.instance, str(error))
            asyncio.get_running_loop().call_soon(self._steward, failed)

    def drop(self, effect: eff.DropInstance) -> None:
        """End an instance at once, and with it the claim."""
        runner = self._devices[effect.device]
        runner.drop(effect.instance, effect.reason, planned=effect.planned)
        runner.take()

    def retire(self, effect: eff.RetireInstance) -> None:
        """Let an instance drain; the steward is told."""
        task = asyncio.get_running_loop().create_task(self._drain(effect))
        self._drains[effect.instance] = task
        task.add_done_callback(lambda over: self._drained(effect.instance, over))

    def keep(self, effect: eff.KeepInstance) -> None:
        """Let an instance that has drained stay loaded, and end the claim."""
        runner = self._devices[effect.device]
        runner.keep(effect.instance, effect.reason)
        runner.take()

    def revive(self, effect: eff.ReviveInstance) -> None:
        """Let an instance serve again that drains, or is kept; the steward is told."""
        runner = self._devices[effect.device]
        drain = self._drains.pop(effect.instance, None)
        if drain is not None:
            drain.cancel()
        self._helping.stay(effect.instance)
        if runner.claim != effect.claim:
            runner.take()
        assert runner.claim == effect.claim, "the steward counts claims as the device does"
        if not runner.revive(effect.instance):
            gone = ev.InstanceEnded(effect.device, effect.instance, "it is not there any more")
            asyncio.get_running_loop().call_soon(self._steward, gone)

    def failed(self, device: str, instance: str, reason: str) -> bool:
        """Drop an instance that will not come; return whether that was ours to do.

        One whose weights came from peers cannot be loaded again by itself: its device is free.
        """
        runner = self._devices[device]
        known = runner.instances.get(instance)
        if known is None or known.load.reads is None:
            return False
        runner.drop(instance, reason)
        runner.take()
        self._steward(ev.InstanceEnded(device, instance, reason))
        return True

    async def close(self) -> None:
        """Wait for nothing more."""
        drains = [*self._drains.values()]
        for task in drains:
            task.cancel()
        if drains:
            await asyncio.wait(drains)  # at once

    async def _drain(self, effect: eff.RetireInstance) -> None:
        """Move what an instance has to another one; what stays may finish, as long as a node may.

        What is left then is computed anew elsewhere.
        """
        runner = self._devices[effect.device]
        deadline = self._clock.now() + self._drain_timeout_s
        if runner.retire(effect.instance):
            self._helping.move_out(effect.device, effect.instance, EVERYTHING, queued=True)
        while runner.retire(effect.instance) and self._clock.now() < deadline:
            await self._clock.sleep(POLL_S)
        if effect.instance in runner.instances:  # else it has gone with its worker
            self._network.serving.give_away(effect.reason, effect.instance)
            self._steward(ev.InstanceDrained(effect.device, effect.instance))

    def _drained(self, instance: str, task: asyncio.Task[None]) -> None:
        if self._drains.get(instance) is task:
            del self._drains[instance]
