"""What is measured of scale operations on a testbed, one function for each question."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from tests.support import barerelay, multicast
from tests.support.benchmodel import size_bytes
from tests.support.gateways import ClusterFailed, Gateways
from tests.support.multicast import OperationFailed, Round
from tests.support.multicast_bench import Bench, Findings
from tests.support.multicast_report import Verdict

HALF = 0.5
KILLED, LANES, MULTI_CHAIN, AGAIN = 1.35, 0.6, 1.03, 0.05
COVERED = {2: 0.65, 4: 0.4}
"""When the targets together have the model, in parts of the full time, by number of sources."""

COPY_S = 60.0


def ladder(bench: Bench, strategies: Sequence[str], targets: Sequence[int]) -> Findings:
    """All strategies to all numbers of targets, in turns: what drifts hits all of them."""
    found = Findings()
    cells: dict[tuple[str, int], list[Round]] = {}
    with bench.cluster(1 + max(targets)) as made:
        for _ in range(bench.setting.rounds):
            for strategy in strategies:
                for count in targets:
                    if one := bench.round(made, strategy, count):
                        cells.setdefault((strategy, count), []).append(one)
    for strategy in strategies:
        for count in targets:
            if rounds := cells.get((strategy, count)):
                found.rows.append(multicast.row(bench.setting, strategy, rounds))
    return found


def two_sources(bench: Bench) -> Findings:
    """Two sources, two targets with a fast cable between them."""
    found = Findings()
    with bench.cluster(4, 2, fast=((2, 3),)) as made:
        for strategy in ("chain", "multi-chain", "lanes"):
            found.rows.append(
                multicast.row(bench.setting, strategy, bench.rounds(made, strategy, 2))
            )
    seconds = {row["strategy"]: row["seconds"] for row in found.rows}
    for strategy, bound in (("lanes", LANES), ("multi-chain", MULTI_CHAIN)):
        value = seconds[strategy] / seconds["chain"]
        found.verdicts.append(Verdict(f"two sources: {strategy} / chain", value, bound))
    return found


def ways(bench: Bench, sources: Sequence[int], nodes: int = 8) -> Findings:
    """The binomial pipeline from several sources: when the targets together have the model."""
    found = Findings()
    for count in sources:
        with bench.cluster(nodes, count) as made:
            rounds = bench.rounds(made, "binomial", nodes - count)
        row = multicast.row(bench.setting, "binomial", rounds) | {"sources": count}
        found.rows.append(row)
        value = row["coverage_seconds"] / row["seconds"]
        name = f"{count}-way to {nodes - count}: coverage / full time"
        found.verdicts.append(Verdict(name, value, COVERED.get(count, 1.0)))
    return found


def kill_relay(bench: Bench, targets: int) -> Findings:
    """A relay in the middle of a chain dies when it has half: how long the rest takes."""
    found = Findings()
    with bench.cluster(1 + targets) as made:
        calm = bench.rounds(made, "chain", targets)
        torn = bench.succeeded(
            [_torn_round(bench, made, targets) for _ in range(bench.setting.rounds)]
        )
    row = multicast.row(bench.setting, "chain", calm)
    other = multicast.row(bench.setting, "chain", torn) | {"scenario": "a relay killed at 50 %"}
    found.rows += [row, other]
    value = other["seconds"] / row["seconds"]
    found.verdicts.append(Verdict("a relay killed: the rest / undisturbed", value, KILLED))
    size = row["size_bytes"]
    once = {n: b for one in calm for n, b in zip(one.targets, one.received_bytes, strict=True)}
    again = [
        (b - once[n]) / size
        for one in torn
        for n, b in zip(one.targets, one.received_bytes, strict=True)
        if n in once
    ]
    name = "a relay killed: most received twice, of the model"
    found.verdicts.append(Verdict(name, max(again), AGAIN))
    return found


def _torn_round(bench: Bench, made: Gateways, targets: int) -> Round | None:
    try:
        one = _torn(bench, made, targets)
    except (OperationFailed, ClusterFailed) as failure:
        bench.fail(made, f"a relay killed: {failure}")
        return None
    made.restart()
    return one


def _torn(bench: Bench, made: Gateways, targets: int) -> Round:
    """Begin a chain and kill a relay in the middle; the others are what is measured."""
    before = made.counters()
    facts = multicast.begin(made, made.roles.sources + targets, "chain")
    operation, size = facts["id"], facts["size_bytes"]
    facts = made.until(lambda: _flowing(multicast.look(made, operation), targets), "a plan")
    victim = relay(facts, made.names_by_boot())
    had = before[made.name(victim)].received
    made.until(
        lambda: made.bed.counters(victim).received - had > HALF * size, "half of it at the relay"
    )
    made.kill(victim)
    facts = made.until(lambda: _ended(multicast.look(made, operation)), "the end of it")
    one = multicast.read_round(facts, before, made.counters())
    bench.setting.progress(f"n{victim} killed: {one.seconds:.3f} s, {facts['state']}")
    if len(one.targets) < targets - 1:
        left = [(t["worker"], t["state"], t["reason"]) for t in facts["targets"]]
        raise OperationFailed(f"n{victim} was killed: {facts['state']} {facts['reason']} {left}")
    return one


def relay(facts: Mapping[str, Any], names: Mapping[str, str]) -> int:
    """Return the node in the middle of a chain; not the owner, whose death ends an operation."""
    follows = {edge["source"]: edge["target"] for edge in facts["edges"]}
    heads = [worker for worker in follows if worker not in follows.values()]
    order = [heads[0]]
    while order[-1] in follows:
        order.append(follows[order[-1]])
    owner = names.get(facts["owner"], facts["owner"])
    relays = [multicast.node_of(worker) for worker in order[1:-1]]
    usable = [name for name in relays if name != owner]
    if not usable:
        raise OperationFailed(f"no relay that could be killed in {order}, owner {owner}")
    return int(usable[len(usable) // 2][1:])


def _flowing(facts: dict[str, Any], targets: int) -> dict[str, Any] | None:
    if facts["ended"]:
        raise OperationFailed(f"{facts['state']}: {facts['reason']}")
    return facts if len(facts["edges"]) >= targets else None


def _ended(facts: dict[str, Any]) -> dict[str, Any] | None:
    return facts if facts["ended"] else None


def copies(bench: Bench, nodes: int = 8) -> Findings:
    """From one instance to as many as there are nodes: what is held of the model in memory."""
    found = Findings()
    with bench.cluster(nodes, host_copies=1, definers=2) as made:
        size = sum(size_bytes(bench.model))

        def ratio() -> float:
            return sum(made.held_bytes().values()) / size

        made.until(lambda: ratio() >= 1.0, "the host copy", COPY_S)
        _note(found, "before", ratio())
        facts = multicast.begin(made, nodes)
        most = 0.0
        while not facts["ended"]:
            most = max(most, ratio())
            time.sleep(multicast.POLL_S)
            facts = multicast.look(made, facts["id"])
        if facts["state"] != "done":
            raise OperationFailed(f"{facts['state']}: {facts['reason']}")
        time.sleep(multicast.SETTLE_S)
        _note(found, "while scaling (most)", most)
        _note(found, f"after 1 → {nodes}", ratio())
        holder = max(made.held_bytes().items(), key=lambda item: item[1])[0]
        killed_s = made.kill(holder)
        made.front = next(node for node in made.nodes if node != holder)
        made.until(lambda: ratio() >= 1.0, "a new host copy", COPY_S)
        took_s = time.monotonic() - killed_s
        time.sleep(multicast.SETTLE_S)
        _note(found, f"after the holder's death ({took_s:.1f} s later)", ratio())
    return found


def _note(found: Findings, phase: str, ratio: float) -> None:
    found.rows.append({"scenario": "copies", "phase": phase, "held": ratio})
    found.verdicts.append(Verdict(f"host bytes / model, {phase}", ratio, 1.05))


def bare(bench: Bench, targets: Sequence[int]) -> Findings:
    """A chain of bare sockets over the same links: what cannot be done better here."""
    found = Findings()
    size = sum(size_bytes(bench.model))
    with bench.bed(1 + max(targets)) as bed:
        for count in targets:
            took_s = [
                barerelay.chain(bed, size, range(1 + count)) for _ in range(bench.setting.rounds)
            ]
            rounds = [_bare_round(one, size, count) for one in took_s]
            found.rows.append(multicast.row(bench.setting, "bare", rounds))
            bench.setting.progress(f"bare chain to {count}: {min(took_s):.3f} s at best")
    return found


def _bare_round(seconds: float, size: int, count: int) -> Round:
    targets = tuple(f"n{node}" for node in range(1, 1 + count))
    return Round("bare", seconds, seconds, -1.0, -1.0, -1.0, -1.0, size, targets, (size,) * count)
