"""Tasks and links for the planner's tests, by hand and by hypothesis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hypothesis import strategies as st

from blitzgw.core.plan import Edge, Holder, Links, Plan, Port, Prediction, Task, Tier
from blitzgw.scaling.planner.base import PlanError, Unfit
from blitzgw.scaling.planner.choose import STRATEGIES
from blitzgw.scaling.planner.ground import Ground
from blitzgw.scaling.planner.predict import follow
from blitzgw.scaling.planner.simulation import Watch

RATE = 50e6
PIECE = 1 << 20


def predict(plan: Plan, task: Task, links: Links, watch: Watch | None = None) -> Prediction:
    """Return the prediction alone."""
    return follow(plan, task, links, watch)[0]


def even_links(
    nodes: int,
    *,
    rate: float = RATE,
    disks: float = 0.0,
    setup_s: float = 0.0,
    hop_s: float = 0.0,
    piece_bytes: int = PIECE,
) -> Links:
    """Return nodes n0, n1, … with equal ports to one network."""
    names = [f"n{i}" for i in range(nodes)]
    return Links(
        ports={(name, "net"): Port(rate, rate) for name in names},
        disks=dict.fromkeys(names, disks) if disks else {},
        setup_s=setup_s,
        hop_s=hop_s,
        piece_bytes=piece_bytes,
    )


def even_task(
    targets: int, sources: int = 1, *, blobs: int = 32, size: int = 32 * 8 * PIECE
) -> Task:
    """Return a task of equal blobs: the first nodes have all, the next ones want all."""
    workers = [f"n{i}/0" for i in range(sources + targets)]
    every = frozenset(range(blobs))
    return Task(
        blob_bytes=(size // blobs,) * blobs,
        targets=tuple(workers[sources:]),
        holders=tuple(Holder(worker, every) for worker in workers[:sources]),
    )


def planned(name: str, task: Task, links: Links) -> Plan:
    """Return the plan of a strategy that must apply."""
    plan = STRATEGIES[name](Ground(task, links))
    assert isinstance(plan, Plan), plan
    return plan


def all_plans(task: Task, links: Links) -> Mapping[str, Plan]:
    """Return the plans of all strategies that apply; empty where the task cannot be planned."""
    plans: dict[str, Plan] = {}
    for name, make in STRATEGIES.items():
        try:
            made = make(Ground(task, links))
        except PlanError:
            return {}
        if not isinstance(made, Unfit):
            plans[name] = made
    return plans


def crossed() -> tuple[Task, Plan]:
    """Return a plan in which each blob has its source, and the orders of three edges a deadlock.

    n0 sends 1 after 0, n1 sends 2 after 1, n3 sends 0 after 2: each to the next.
    """
    holders = [(0, {1}), (1, {2}), (2, {0})]
    task = Task(
        blob_bytes=(10, 10, 10),
        targets=("n0/0", "n1/0", "n3/0"),
        holders=tuple(Holder(f"n{node}/0", frozenset(blobs)) for node, blobs in holders),
    )
    edges = [(0, 1, (0, 1)), (1, 3, (1, 2)), (3, 0, (2, 0)), (2, 3, (0,))]
    return task, Plan(
        "crossed",
        task.targets,
        tuple(Edge(f"n{a}/0", f"n{b}/0", blobs, "net") for a, b, blobs in edges),
    )


rates = st.sampled_from([1e6, 7e6, 1e7, 1.05e7, 5e7, 1e9])


@st.composite
def links_of(draw: st.DrawFn, nodes: Sequence[str]) -> Links:
    """Draw ports of these nodes to a network that all share, mostly, and to faster ones."""
    ports: dict[tuple[str, str], Port] = {}
    for node in nodes:
        for network, share in (("net", 9), ("fast", 4)):
            if draw(st.integers(0, 9)) < share:
                tx, rx = draw(rates), draw(rates)
                serving = draw(st.sampled_from([0.0, 0.0, 0.01, 0.5, 2.0])) * tx
                most = draw(st.sampled_from([math.inf, math.inf, tx / 3, 2 * tx]))
                ports[node, network] = Port(tx, rx, serving, most)
    return Links(
        ports=ports,
        disks={node: draw(rates) for node in nodes if draw(st.booleans())},
        hosts={node: draw(rates) for node in nodes if draw(st.booleans())},
        zones={node: draw(st.sampled_from(["", "a", "b"])) for node in nodes},
        local_bytes_per_s=draw(st.sampled_from([1e8, 4e9])),
        setup_s=draw(st.sampled_from([0.0, 0.05])),
        hop_s=draw(st.sampled_from([0.0, 0.002])),
        piece_bytes=draw(st.sampled_from([1 << 16, PIECE])),
    )


@st.composite
def situations(draw: st.DrawFn, most_nodes: int = 6) -> tuple[Task, Links]:
    """Draw a task with whole, partial and hidden holdings, targets among the holders."""
    nodes = [f"n{i}" for i in range(draw(st.integers(2, most_nodes)))]
    workers = [f"{node}/{device}" for node in nodes for device in range(draw(st.integers(1, 2)))]
    count = draw(st.integers(1, 9))
    sizes = tuple(draw(st.sampled_from([0, 10, 70_000, 300_000, 5_000_000])) for _ in range(count))
    targets = draw(st.lists(st.sampled_from(workers), min_size=1, unique=True))
    every = frozenset(range(count))
    holders = []
    for worker in draw(st.lists(st.sampled_from(workers), min_size=1, max_size=6)):
        tier = draw(st.sampled_from([None, None, Tier.HOST, Tier.DISK]))
        some = st.frozensets(st.sampled_from(sorted(every)))
        holders.append(Holder(worker, draw(st.one_of(st.just(every), some)), tier))
    return Task(sizes, tuple(targets), tuple(holders)), draw(links_of(nodes))
