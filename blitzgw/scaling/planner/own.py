"""Own: each target reads by itself what its own machine has, whatever the network could bring.

`disk` from the checkpoint on its disk, but what the machine's memory has comes from there; `host`
from the host copy in memory alone. What a target's own machine has not got comes from others: these
are for clusters where each has it. Neither is quicker than a plan that may use the network, too.
"""

from __future__ import annotations

from blitzgw.core.plan import Plan, Tier
from blitzgw.scaling.planner.base import Unfit
from blitzgw.scaling.planner.draft import Draft
from blitzgw.scaling.planner.ground import Ground

DISK_NAME = "disk"
HOST_NAME = "host"


def plan_disk(ground: Ground) -> Plan | Unfit:
    """Return a plan in which every target reads from its own disk what is not in its memory.

    Raises PlanError where a target cannot get what it lacks.
    """
    if not any(ground.own(target, Tier.DISK) for target in ground.needy()):
        return Unfit("no target has the checkpoint on its disk")
    draft = Draft(ground, DISK_NAME)
    for target in ground.needy():
        draft.read(target, Tier.DISK, ground.blobs)
    return draft.finish()


def plan_host(ground: Ground) -> Plan | Unfit:
    """Return a plan in which every target reads the host copy of its own machine.

    Raises PlanError where a target cannot get what it lacks.
    """
    if not any(ground.own(target, Tier.HOST) for target in ground.needy()):
        return Unfit("no target's machine has a copy in its memory")
    return Draft(ground, HOST_NAME).finish()
