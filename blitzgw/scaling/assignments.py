"""What a node's targets do while they load: whom they help, which stage of a pipeline they are."""

from __future__ import annotations

from blitzgw.core.live import LivePolicy
from blitzgw.core.operation import Engage
from blitzgw.core.span import Span
from blitzgw.scaling.duties import PairInstance, StageInstance, UnpairInstance, UnstageInstance
from blitzgw.scaling.effects import StewardEffect
from blitzgw.scaling.engagement import Engagement
from blitzgw.scaling.leases import Lease


def assignments(held: Engagement, order: Engage) -> list[StewardEffect]:
    """Let the targets of an operation do what an order says, in place of what they did before.

    Those that are complete help nobody; one that is a stage goes on with it.
    """
    homes = {pair.worker: pair.home for pair in order.pairs}
    stages = _stages(order)
    effects: list[StewardEffect] = []
    for device, lease in sorted(held.leases.items()):
        worker = held.worker(device)
        if not lease.ready:
            policy = _policy(order, stages.get(worker))
            effects += _help(lease, homes.get(worker, ""), policy)
        effects += _stage(lease, stages.get(worker))
    return effects


def _policy(order: Engage, stage: tuple[Span, str] | None) -> LivePolicy:
    """Return how a target helps its home: a stage that leads no pipeline, when it is complete."""
    return order.policy if stage is None or stage[0].start == 0 else LivePolicy.STOP


def _help(lease: Lease, home: str, policy: LivePolicy) -> list[StewardEffect]:
    helps = (home, policy) if home else None
    if helps == lease.helps:
        return []
    lease.helps = helps
    if helps is None:
        return [UnpairInstance(lease.device, lease.instance)]
    return [PairInstance(lease.device, lease.instance, *helps)]


def _stage(lease: Lease, stage: tuple[Span, str] | None) -> list[StewardEffect]:
    if stage == lease.stage or (lease.ready and stage is not None):
        return []
    lease.stage = stage
    if stage is None:
        return [UnstageInstance(lease.device, lease.instance)]
    return [StageInstance(lease.device, lease.instance, *stage)]


def _stages(order: Engage) -> dict[str, tuple[Span, str]]:
    """Return, by worker, the span of each stage and the instance of the one behind it."""
    found = {}
    for pipeline in order.pipelines:
        for i, stage in enumerate(pipeline):
            behind = pipeline[i + 1].worker if i + 1 < len(pipeline) else ""
            found[stage.worker] = (stage.span, f"{order.model}@{behind}" if behind else "")
    return found
