"""What a node does with instances that have been told to go: they drain, are kept, are revived.

    Retire ──► draining ── drained ──► kept ── time over, or claimed for another ──► gone
                  │                      │
                  └──── claimed for the same definition ────► serving, at once

A kept instance stays loaded but does nothing; its device is as good as free. One that drains is not
kept where the model's terms say so. What others are being sent from a kept instance is waited for
when its time is over, but not when its device is claimed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from blitzgw.core.operation import Claim
from blitzgw.scaling.effects import DropInstance, KeepInstance, ReviveInstance, StewardEffect
from blitzgw.scaling.endings import Retirements
from blitzgw.scaling.events import InstanceDrained
from blitzgw.scaling.leases import Lease

MAX_KEEP_S = 86_400.0
"""The longest time that a configuration can name; terms are other nodes' words."""

LONGER_S = 1.0
"""For so long an instance is kept at a time of which others are being sent weights."""


class Terms(Protocol):
    """What is asked of the node."""

    def revivable(self, device: str, model: str, digest: str) -> str:
        """Return the instance of that definition that drains or is kept on a device, or ""."""

    def keep_s(self, instance: str) -> float:
        """Return for how long an instance that has drained is to be kept, in seconds."""


@dataclass(slots=True)
class _Kept:
    instance: str
    until_s: float


class Keeping:
    """The book of kept instances, by device. `sends` says whether others are sent from a device."""

    def __init__(self, terms: Terms, retiring: Retirements, sends: Callable[[str], bool]) -> None:
        self._terms, self._retiring, self._sends = terms, retiring, sends
        self._kept: dict[str, _Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def at(self, device: str) -> str:
        """Return the instance that is kept on a device, or ""."""
        kept = self._kept.get(device)
        return kept.instance if kept is not None else ""

    def forget(self, device: str, instance: str = "") -> None:
        """Note that what was kept on a device is gone: that instance, or whichever it was."""
        kept = self._kept.get(device)
        if kept is not None and instance in ("", kept.instance):
            del self._kept[device]

    # The end of a drain.

    def drained(self, event: InstanceDrained, now: float) -> list[StewardEffect]:
        """Keep an instance that has nothing to do any more, or drop it; tell who has asked."""
        if not self._retiring.drains(event.instance):
            return []  # revived, or lost, meanwhile
        keep_s = self._terms.keep_s(event.instance)
        effects: list[StewardEffect] = []
        if keep_s > 0:
            effects += self._drop(event.device, "another instance is kept instead")
            until_s = now + min(keep_s, MAX_KEEP_S)
            self._kept[event.device] = _Kept(event.instance, until_s)
            effects.append(KeepInstance(event.device, event.instance, "it has drained"))
        else:
            effects.append(DropInstance(event.device, event.instance, "retired", planned=True))
        return effects + self._retiring.ended(event.instance, "")

    # Claims.

    def revivable(self, claim: Claim) -> str:
        """Return the instance that a claim would revive, or ""."""
        known = (self.at(claim.device), *self._retiring.on(claim.device))
        if not any(known):
            return ""
        found = self._terms.revivable(claim.device, claim.model, claim.digest)
        return found if found in known else ""

    def revive(self, claim: Claim, instance: str) -> tuple[StewardEffect, Lease]:
        """Return what makes an instance serve again, and the lease of its device.

        The claim of a device is raised where it has been free. Where the instance still drains its
        requests go on, and so does the claim that they have come by.
        """
        kept = self.at(claim.device) == instance
        at = claim.claim + 1 if kept else claim.claim
        if kept:
            self.forget(claim.device)
        lease = Lease(claim.device, instance, claim.claim, at, revived=True)
        return ReviveInstance(claim.device, instance, at, claim.operation), lease

    def make_room(self, claim: Claim) -> list[StewardEffect]:
        """Drop what is kept on a device that is claimed for something else."""
        return self._drop(claim.device, f"its device is claimed for {claim.model}")

    def _drop(self, device: str, reason: str) -> list[StewardEffect]:
        kept = self._kept.pop(device, None)
        return [] if kept is None else [DropInstance(device, kept.instance, reason, planned=True)]

    # Time.

    def deadline(self) -> float | None:
        """Return when the next one has been kept for long enough."""
        return min((kept.until_s for kept in self._kept.values()), default=None)

    def due(self, now: float) -> list[StewardEffect]:
        """Drop those whose time is over."""
        effects: list[StewardEffect] = []
        for device, kept in sorted(self._kept.items()):
            if kept.until_s > now:
                continue
            if self._sends(device):
                kept.until_s = now + LONGER_S
            else:
                effects += self._drop(device, "it was kept for long enough")
        return effects
