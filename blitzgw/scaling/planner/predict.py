"""When a plan's blobs arrive: a flow-level simulation of its edges and reads."""

from __future__ import annotations

from blitzgw.core.plan import Links, Plan, Prediction, Task
from blitzgw.scaling.planner.check import resident_blobs
from blitzgw.scaling.planner.flows import Flow, flows_of
from blitzgw.scaling.planner.simulation import Simulation, Watch


def follow(
    plan: Plan, task: Task, links: Links, watch: Watch | None = None
) -> tuple[Prediction, list[Flow]]:
    """Return when every blob arrives at every target, with max-min fair shares, full duplex.

    Returns also the flows as they have run, with their tracks. Raises ValueError for a plan that
    cannot complete: a blob that nobody has, or that waits for itself, an edge between nodes that
    share no network.
    """
    flows, resources = flows_of(plan, task, links)
    arrived: dict[tuple[str, int], float] = {}
    Simulation(flows, resources, arrived, watch).run()
    return _summary(plan, task, arrived), flows


def _summary(plan: Plan, task: Task, arrived: dict[tuple[str, int], float]) -> Prediction:
    resident = resident_blobs(task)
    arrivals: dict[str, tuple[float, ...]] = {}
    blobs = range(len(task.blob_bytes))
    new: list[float] = []
    for target in dict.fromkeys(plan.targets):
        has = resident.get(target, ())
        missing = [blob for blob in blobs if blob not in has and (target, blob) not in arrived]
        if missing:
            raise ValueError(f"{target} never gets blob {missing[0]}")
        new.extend(arrived[target, blob] for blob in blobs if blob not in has)
        arrivals[target] = tuple(0.0 if blob in has else arrived[target, blob] for blob in blobs)
    covered = [min(times) for times in zip(*arrivals.values(), strict=True)]
    return Prediction(
        arrivals,
        complete_s=max(new, default=0.0),
        first_blob_s=min(new, default=0.0),
        coverage_s=max(covered, default=0.0),
    )
