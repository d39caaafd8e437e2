"""Crowds of free devices, followed from change to change, are what a look at all would find."""

from __future__ import annotations

import random
from dataclasses import replace
from types import MappingProxyType

import pytest

from blitzgw.core.instance import DeviceKind, InstanceState
from blitzgw.core.picture import MAX_STALE, Picture
from blitzgw.core.rumours import Status
from blitzgw.core.view import ClusterView, HostFacts, NetworkFacts, NodeFacts
from blitzgw.scaling.survey import speaks
from blitzgw.scaling.vacancies import crowds
from tests.scaling.view_kit import SOFTWARE, device, instance, node

NAMES = "abcdefgh"


def host(rng):
    rate = rng.choice([0.0, 1e8, 1e9])
    networks = (NetworkFacts("net", "h", rate, rng.choice([0.0, 1e6])),)
    return HostFacts(rng.choice([0, 1 << 30, 1 << 40]), rng.choice(["", "r1"]), networks)


def devices(rng):
    """Up to two, whose worker is perhaps not up yet, or of another version."""
    made = [
        device(
            name,
            kind=rng.choice([DeviceKind.CPU, DeviceKind.HOST]) if name == "g1" else DeviceKind.CPU,
            memory_bytes=rng.choice([10, 1000]),
            claim=rng.randrange(9),
            software=rng.choice([SOFTWARE, SOFTWARE, {}]),
            data_ports=rng.choice([{"net": 1}, {"net": 1}, {}]),
        )
        for name in rng.sample(["g0", "g1"], rng.randrange(3))
    ]
    return {each.id: each for each in made}


def changed(rng, of):
    """Return a node of which one thing is different, or a figure, or nothing but the object."""
    match rng.randrange(9):
        case 0:
            return replace(of, status=rng.choice([*Status]))
        case 1:
            facts = NodeFacts(of.name, "", draining=rng.random() < 0.3)
            return replace(of, facts=rng.choice([None, facts, facts]))
        case 2:
            return replace(of, name=rng.choice(NAMES), port=rng.choice([1, 2]))
        case 3:
            models = {name: replace(m, disk=not m.disk) for name, m in of.models.items()}
            return replace(of, models=models)
        case 4 | 5:
            made = [
                instance(name, state=rng.choice([*InstanceState]), model=rng.choice("mn"))
                for name in rng.sample(["g0", "g1"], rng.randrange(3))
            ]
            return replace(of, instances={each.id: each for each in made})
        case 6:
            return replace(of, devices=devices(rng))
        case 7:
            return replace(of, host_facts=rng.choice([None, host(rng)]))
    return replace(of, heard_s=of.heard_s + 1.0)


def told(picture):
    """Return the crowds of a picture, as one can compare and keep them."""
    found = crowds(ClusterView("", picture.nodes, picture))
    return {likeness: [*places] for likeness, places in found.items()}


def anew(picture):
    return told(Picture(MappingProxyType(dict(picture.nodes))))


def vacant(picture):
    """Return the nodes that could take something, by their own facts alone."""
    called = {}
    for each in picture.nodes.values():
        if each.living:
            called.setdefault(each.name, []).append(each)
    found = set()
    for name, those in called.items():
        known = [each for each in those if each.facts is not None]
        if known and len({(each.host, each.port) for each in those}) == 1:  # restarted, if several
            one = known[-1]
            if not one.facts.draining and any(is_free(one, each) for each in one.devices.values()):
                found.add(f"{name}/")
    return found


def is_free(of, made):
    gone = (InstanceState.GONE, InstanceState.KEPT)
    used = {facts.device for facts in of.instances.values() if facts.state not in gone}
    return made.id not in used and made.kind is not DeviceKind.HOST and speaks(made)


@pytest.mark.parametrize("seed", range(16))
def test_no_free_device_stays_out_in_whatever_order_things_happen(seed):
    rng = random.Random(seed)
    many = MAX_STALE + 8 if seed % 4 == 0 else 9
    names = [*NAMES, *(f"x{i}" for i in range(many))]
    nodes = {f"b{i}": replace(node(names[i], devices=2), boot=f"b{i}") for i in range(many)}
    picture, kept = Picture(MappingProxyType(dict(nodes))), []
    for step in range(150):
        changes = {}
        some = len(nodes) if rng.random() < 0.02 else rng.choice([0, 1, 1, 2, 4])
        for boot in rng.sample(sorted(nodes), min(some, len(nodes))):
            changes[boot] = None if rng.random() < 0.05 else changed(rng, nodes[boot])
        if len(nodes) < many:
            boot = f"n{step}"
            changes[boot] = replace(node(rng.choice(names), devices=2), boot=boot, port=3)
        picture = picture.after(changes)
        nodes = dict(picture.nodes)
        if rng.random() < 0.5:
            found = told(picture)
            assert found == anew(picture)
            places = [place for crowd in found.values() for place in crowd]
            assert len(places) == len(set(places))
            assert set(places) == vacant(picture)
            kept.append((picture, found))
        if rng.random() < 0.3:  # as an owner sees it that knows more than its view shows
            corrected = {boot: changed(rng, each) for boot, each in [*nodes.items()][:3]}
            other = Picture({**nodes, **corrected}, picture)
            assert told(other) == anew(other)
    for former, found in kept:  # what came later has left it as it was
        assert told(former) == found
