"""Weights that this node keeps in shared memory: what workers hold, and files that nobody holds.

Carries out what the steward and the deciders of host copies decide; `CopyShelf.held` is the one
book of what is where.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from blitzgw.core.transfer import (
    BlobChecked,
    BlobDamaged,
    CopyFailed,
    CopyHeld,
    DropCopy,
    HoldCopy,
    ReadBlobs,
)
from blitzgw.core.view import CopyFacts, mask_of
from blitzgw.definitions import Definitions
from blitzgw.device import DeviceRunner
from blitzgw.errors import BlitzError
from blitzgw.scaling import effects as eff
from blitzgw.scaling import events as ev
from blitzgw.weights.hostcache import NO_ROOM, HostCopies

log = logging.getLogger(__name__)


@dataclass(slots=True)
class HeldWeights:
    """A store without an engine, in shared memory, on a device's worker."""

    device: str
    model: str
    size_bytes: int
    blobs: set[int] = field(default_factory=set)
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Deciders:
    """Who is told what comes of it: the steward, and the keeper of copies."""

    steward: Callable[[ev.StewardEvent], None]
    keeper: Callable[[ev.KeeperEvent], None]


class CopyShelf:
    """The host copies of one node, and what it holds only to send. Call it from the event loop."""

    def __init__(
        self,
        devices: Mapping[str, DeviceRunner],
        definitions: Definitions,
        deciders: Deciders,
        on_change: Callable[[], None],
    ) -> None:
        self._devices, self._definitions = devices, definitions
        self._deciders, self.changed = deciders, on_change
        self._files: HostCopies | None = None
        self.held: dict[str, HeldWeights] = {}
        """By the root of the weights."""
        self.is_cached: Callable[[str], bool] = lambda _: False
        """Whether a copy is there for a while only."""
        self.is_going: Callable[[str], bool] = lambda _: False
        """Whether that while is over: nobody is to be told of it any more."""

    @property
    def keeps(self) -> bool:
        """Whether this node keeps copies at all."""
        return self._files is not None

    def open(self, files: HostCopies | None) -> None:
        """Keep copies in that folder, which is this node's alone; None: keep none."""
        self._files = files

    def sweep(self, wanted: Collection[str]) -> None:
        """Keep only the wanted ones of the copies that a killed node has left, without workers."""
        if self._files is None:
            return
        try:
            for weights in self._files.sweep(wanted):
                log.info("copy_removed weights=%.12s", weights)
        except BlitzError as error:
            log.warning("copies_not_removed error=%s", error)

    def close(self) -> None:
        """Leave no copies behind; after the workers' end."""
        self.sweep(())
        if self._files is not None:
            self._files.disown()

    def facts(self) -> Sequence[CopyFacts]:
        """Return what other nodes are told of the copies here."""
        return [
            CopyFacts(
                weights=weights,
                model=held.model,
                device=held.device,
                size_bytes=held.size_bytes,
                blobs=mask_of(held.blobs),
                complete=held.complete,
                cached=self.is_cached(weights),
            )
            for weights, held in self.held.items()
            if not self.is_going(weights)
        ]

    # What workers tell.

    def worker_up(self, device: str) -> None:
        """Have a worker take up the host copies that a former worker, or node, has left behind."""
        if self._files is None or not self._devices[device].up:
            return
        try:
            there = {file.weights for file in self._files.list() if file.complete}
        except BlitzError as error:
            log.warning("copies_not_found error=%s", error)
            return
        for name, definition in self._definitions.settled.items():
            known = self._definitions.known(definition.digest)
            if known is not None and known.card.weights in there - self.held.keys():
                weights = known.card.weights
                self.hold(eff.HoldWeights(device, name, definition.digest, weights, ()))

    def worker_lost(self, device: str, reason: str) -> None:
        """Forget what a worker has held; the files stay for the next one."""
        for weights in [w for w, each in self.held.items() if each.device == device]:
            del self.held[weights]
            self._deciders.keeper(ev.CopyTried(weights, reason))

    def told(self, device: str, message: Any) -> None:
        """Keep the book by what a worker says of weights."""
        weights = getattr(message, "weights", "")
        held = self.held.get(weights)
        if held is None or held.device != device:
            return
        match message:
            case BlobChecked(index=index):
                held.blobs.add(index)
            case BlobDamaged(index=index):
                held.blobs.discard(index)
            case CopyHeld():
                held.complete = True
                log.info("copy_held model=%s weights=%.12s", held.model, weights)
                self._deciders.keeper(ev.CopyTried(weights))
            case CopyFailed(message=text):
                del self.held[weights]
                log.warning("copy_failed weights=%.12s reason=%s", weights, text)
                self._deciders.keeper(ev.CopyTried(weights, text, no_room=NO_ROOM in text))
        self.changed()

    # Effects.

    def hold(self, effect: eff.HoldWeights) -> None:
        """Have a worker hold weights; what stands against it is told as a failure.

        One worker of a node does. Another is refused, which is news to the steward alone: there is
        the copy that the keeper and the cache know of.
        """
        former = self.held.get(effect.weights)
        if former is not None and former.device != effect.device:
            why = f"device {former.device} holds them"
            asyncio.get_running_loop().call_soon(self._refused, effect, why)
            return
        known, runner = self._definitions.known(effect.digest), self._devices[effect.device]
        if not runner.up or known is None or known.card.weights != effect.weights:
            why = "its definition is not known here" if runner.up else "the worker is not up"
            asyncio.get_running_loop().call_soon(self._not_held, effect, why)
            return
        blobs = known.card.blobs
        size = sum(blob.size_bytes for blob in blobs)
        there = set() if former is None else former.blobs
        self.held[effect.weights] = HeldWeights(effect.device, effect.model, size, there)
        runner.supervisor.send(HoldCopy(effect.weights, known.spec, blobs, effect.reads))

    def drop(self, effect: eff.DropWeights) -> None:
        """Have a worker let weights go; what a dead one has left is removed."""
        held = self.held.get(effect.weights)
        if held is None or held.device != effect.device:
            return
        del self.held[effect.weights]
        runner = self._devices[effect.device]
        if runner.up:
            runner.supervisor.send(DropCopy(effect.weights))
        elif self._files is not None:
            self._remove(self._files, effect.weights)
        self.changed()

    def read(self, effect: eff.ReadWeights) -> None:
        """Have a worker read blobs of a checkpoint that is here."""
        known = self._definitions.known(effect.digest)
        if known is not None:
            read = ReadBlobs(effect.weights, known.spec, effect.blobs)
            self._devices[effect.device].supervisor.send(read)

    def read_copy(self, effect: eff.ObtainCopy) -> None:
        """Have a worker make a host copy of a checkpoint that is here."""
        known = self._definitions.known(effect.digest)
        reads = () if known is None else tuple(range(len(known.card.blobs)))
        self.hold(
            eff.HoldWeights(effect.device, effect.model, effect.digest, effect.weights, reads)
        )

    def _remove(self, files: HostCopies, weights: str) -> None:
        try:
            files.remove(weights)
        except BlitzError as error:
            log.warning("copy_not_removed weights=%.12s error=%s", weights, error)

    def _refused(self, effect: eff.HoldWeights, why: str) -> None:
        self._deciders.steward(ev.WorkerSaid(effect.device, CopyFailed(effect.weights, why)))

    def _not_held(self, effect: eff.HoldWeights, why: str) -> None:
        self._refused(effect, why)
        self._deciders.keeper(ev.CopyTried(effect.weights, why))
