"""Free devices, gathered by what a model that has nothing there could tell apart.

In a large cluster most free devices are on nodes that differ in their names alone. They are kept as
crowds, by name, for as long as nodes say nothing else, so that whoever looks for a few devices does
not look at all of them.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from blitzgw.core.instance import DeviceKind, InstanceState
from blitzgw.core.membership import MEMBERSHIP
from blitzgw.core.picture import FIGURES, MEMBERS, Derived, Picture
from blitzgw.core.view import ClusterView, DeviceFacts, NodeView
from blitzgw.scaling.links import RATE_BYTES_PER_S, told_rate
from blitzgw.scaling.ownership import draining
from blitzgw.scaling.placement import magnitude
from blitzgw.scaling.possession import NONE, checkpoints
from blitzgw.scaling.survey import speaks

FREE = (InstanceState.GONE, InstanceState.KEPT)
"""States of instances whose device is as good as free."""


class Vacancy(NamedTuple):
    """A free device of a node. `displaces`: an instance is kept there."""

    device: str
    memory_bytes: int
    displaces: bool


class Likeness(NamedTuple):
    """What the nodes of a crowd have in common: all that counts but their names.

    `host_bytes` is free on the host, to the nearest power of two; `disk` are the weights of which
    they have the checkpoint.
    """

    zone: str
    rate_bytes_per_s: float
    host_bytes: int
    disk: frozenset[str]
    vacancies: tuple[Vacancy, ...]


def crowds(view: ClusterView) -> Mapping[Likeness, list[str]]:
    """Return the members with free devices, by what they have in common: names, each with a slash.

    They are sorted as their workers are.
    """
    return view.picture.recall(_CROWDS).places


def likeness(node: NodeView, view: ClusterView) -> Likeness | None:
    """Return what counts of a node with free devices; None: it has none."""
    vacancies = tuple(_vacancies(node)) if not draining(node) else ()
    if not vacancies:
        return None
    host = node.host_facts
    rates = [network.rate_bytes_per_s for network in host.networks] if host is not None else []
    return Likeness(
        zone=host.zone if host is not None else "",
        rate_bytes_per_s=max((told_rate(rate, RATE_BYTES_PER_S) for rate in rates), default=0.0),
        host_bytes=1 << magnitude(host.free_bytes if host is not None else 0),
        disk=checkpoints(view).get(node.boot, NONE),
        vacancies=vacancies,
    )


def _vacancies(node: NodeView) -> Iterator[Vacancy]:
    there = [facts for facts in node.instances.values() if facts.state is not InstanceState.GONE]
    for device in free_on(node, 0):
        displaces = any(facts.device == device.id for facts in there)
        yield Vacancy(device.id, device.memory_bytes, displaces)


def free_on(node: NodeView, size_bytes: int) -> list[DeviceFacts]:
    """Return the devices of a node that have no instance and could take one of that size.

    One on which something is only kept is as good as free.
    """
    taken = {facts.device for facts in node.instances.values() if facts.state not in FREE}
    return [
        device
        for _, device in sorted(node.devices.items())
        if device.id not in taken
        and device.kind is not DeviceKind.HOST
        and device.memory_bytes >= size_bytes
        and speaks(device)
    ]


@dataclass(slots=True)
class _Crowds:
    """The crowds, and where each member is; `named` are the members."""

    named: Mapping[str, str]
    places: dict[Likeness, list[str]] = field(default_factory=dict)
    known: dict[str, Likeness] = field(default_factory=dict)


def _follow(picture: Picture, former: _Crowds | None, stale: frozenset[str]) -> _Crowds:
    named, view = picture.recall(MEMBERSHIP).named, ClusterView("", picture.nodes, picture)
    if former is None or former.named is not named:
        made = _Crowds(named)
        for name, boot in named.items():
            found = likeness(picture.nodes[boot], view)
            if found is not None:
                made.known[name] = found
                made.places.setdefault(found, []).append(f"{name}/")
        for places in made.places.values():
            places.sort()
        return made
    made = _Crowds(named, {**former.places}, {**former.known})
    news = [picture.nodes[boot] for boot in stale if boot in picture.nodes]
    for node in news:
        if named.get(node.name) == node.boot:
            _move(made, former, node.name, likeness(node, view))
    return made


def _move(made: _Crowds, former: _Crowds, name: str, after: Likeness | None) -> None:
    """Put a node where it belongs by now; `former` stays as it is."""
    before, place = made.known.pop(name, None), f"{name}/"
    if after is not None:
        made.known[name] = after
    if before == after:
        return
    for each in (before, after):
        if each is not None:
            places = made.places.get(each)
            if places is None or places is former.places.get(each):
                made.places[each] = [*(places or ())]
    if before is not None:
        places = made.places[before]
        del places[bisect_left(places, place)]
        if not places:
            del made.places[before]
    if after is not None:
        insort(made.places[after], place)


_CROWDS = Derived(MEMBERS | FIGURES, _follow)
