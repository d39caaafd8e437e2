"""Ends of pairings, and which instances of a node let others be joined to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from blitzgw.core.instance import InstanceState
from blitzgw.core.live import Attach, Purpose, Road, back_of
from blitzgw.core.parcels import PARCELS
from blitzgw.device import DeviceRunner
from blitzgw.scheduler.events import MoveOut, PairingOpened

PREFIX = "road-"
"""Of the names of pairings, by which their edges are told from others."""

_COMPLETE = frozenset({InstanceState.SERVING})

HOSTS = {
    Purpose.HELP: _COMPLETE,
    Purpose.MOVE: _COMPLETE,
    Purpose.STAGE: _COMPLETE | {InstanceState.LOADING},
}
"""The states in which an instance can be a host, by what for: the stages of a pipeline load."""


@dataclass(slots=True)
class End:
    """One end of a pairing. `boot` has the other one; `open`: both have agreed.

    `then` is told to the scheduler once it is open.
    """

    opened: PairingOpened
    device: str
    boot: str
    open: bool = False
    then: MoveOut | None = None
    back: Road | None = None
    """By which parcels come to a guest, which dials once the host has agreed."""


def admit(devices: Mapping[str, DeviceRunner], message: Attach) -> tuple[str, str]:
    """Return the device that a guest is meant for, and why it is not let in; empty: it is."""
    for name, runner in devices.items():
        instance = runner.instances.get(message.host)
        if instance is None:
            continue
        if instance.state not in HOSTS[message.purpose] or runner.claim != message.claim:
            return name, f"{message.host} is not what it was"
        if instance.served.n_layers != message.layers:
            return name, f"{message.host} has {instance.served.n_layers} layers"
        edge = message.road.edge
        if edge.weights != PARCELS or edge.id != message.pairing or not edge.id.startswith(PREFIX):
            return name, "that is not a road"
        if not _is_back(message):
            return name, "that is not a road back"
        return name, ""
    return "", f"{message.host} is not here"


def _is_back(message: Attach) -> bool:
    """Tell whether a guest asks for no road back, or for one of stages and of this pairing."""
    if message.back is None:
        return True
    edge = message.back.edge
    named = edge.weights == PARCELS and edge.id == back_of(message.pairing)
    return named and message.purpose is Purpose.STAGE
