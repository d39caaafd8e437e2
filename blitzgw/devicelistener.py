"""Whom devices tell what becomes of them: the interface between `device.py` and `node.py`."""

from __future__ import annotations

from typing import Any, Protocol

from blitzgw.scheduler.shell import LocalInstance


class DeviceListener(Protocol):
    """Who is told what becomes of a device and its instances. Called from the event loop."""

    def instance_up(self, device: str, port: LocalInstance, claim: int, digest: str) -> None:
        """An instance takes requests from now on, at a claim of its device.

        `digest` is that of the definition that it was brought up for; empty: this node's own.
        """

    def instance_leads(self, port: LocalInstance, claim: int, digest: str) -> None:
        """An instance that is loading keeps requests: those who have them may come for them.

        It takes no others until its pipeline is there, which is told in the same way; `instance_up`
        follows when it is complete.
        """

    def instance_down(self, instance: str, reason: str, *, planned: bool = False) -> None:
        """An instance is gone, and with it what it had; `planned`: it was not lost."""

    def instance_failed(self, device: str, instance: str, model: str, reason: str) -> None:
        """An instance of this model will not come."""

    def worker_up(self, device: str) -> None:
        """The worker is warm, and has nothing but what it finds in shared memory."""

    def worker_lost(self, device: str, reason: str) -> None:
        """The worker has died, and with it its stores and edges."""

    def told(self, device: str, message: Any) -> None:
        """The worker tells something of core/transfer.py."""

    def device_changed(self) -> None:
        """Something that the node publishes has changed."""
