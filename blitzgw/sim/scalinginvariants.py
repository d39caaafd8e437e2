"""What must be true of a cluster that scales itself: at all times, and once it is left in peace.

At all times:
    device     no device has two instances; its claim is raised one by one, by its own node
    state      instances go the ways of scaling/lifecycle.py
    sound      every decider's own `check_integrity` holds
    owner      on every side of every partition each model has somebody who speaks for it, but for
               OWNER_S after a process has ended or a partition has begun
    bounds     no model has more than its maximum of instances for longer than CONVERGE_S
    answered   no request is answered twice

Some time after the last fault (`unsettled`), and at the end (`unanswered`):
    owner      the one that rendezvous names is the only one
    converged  what is wanted is there; no operation, lease, edge or drain is left
    bounds     what is wanted is within minimum and maximum, or is what an operator wishes
    steady     while loads are constant nothing goes up and down
    answered   every request has been served or refused
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from math import ceil, inf

from blitzgw.core.instance import InstanceState
from blitzgw.core.membership import MEMBERSHIP
from blitzgw.core.scale import AUTOMATIC
from blitzgw.core.view import ScaleFacts, ScaleWish
from blitzgw.sim.scalingload import SimModel
from blitzgw.sim.scalingnode import SimNode
from blitzgw.sim.scalingrequests import HOLD_S
from blitzgw.sim.scalingworld import ScalingWorld

OWNER_S = 3.0
"""Without an owner: detection takes up to 2 s (scalingsight.py), the view 0.2, settling 0.3; a
process that starts joins within 0.2."""

CONVERGE_S = 15.0
"""More than the maximum of instances after the last disturbance: a lease runs for 5 s, a claim is
given back, those that are too many drain."""

UNDER_WAY = (InstanceState.LOADING, InstanceState.DRAINING)
"""States in which an instance does not stay."""


CALM = 1.0
"""Of an owner's pressure, at most, when all is calm: a backlog of former times is no constant load,
and what is within the policy's band is none either."""


MOST_TURNS = 2
"""Of what is wanted, in the steady part: what was begun before may go too far and come back, and a
prompt more may tip over what has just been found to suffice. What goes on so is oscillation."""


class Watchman:
    """Looks at a world now and then, and notes what must not be."""

    def __init__(self, world: ScalingWorld) -> None:
        self._world = world
        self._unowned_s: dict[str, float] = {}
        self._over_s: dict[str, float] = {}
        self._told: set[tuple[str, str]] = set()

    def look(self) -> None:
        """Note what is wrong for too long."""
        self._look_at_owners()
        self._look_at_bounds()

    def check(self) -> None:
        """Note which deciders contradict themselves."""
        for node in self._world.running():
            try:
                node.check()
            except AssertionError as error:
                self._note("sound", node.boot, f"{node.name} contradicts itself: {error}")

    def _note(self, what: str, about: str, line: str) -> None:
        if (what, about) not in self._told:
            self._told.add((what, about))
            self._world.wrong(f"{what}: {line}")

    def _look_at_owners(self) -> None:
        world = self._world
        now = world.heap.now
        sides = _sides(world)
        for model in world.models:
            silent = [
                side for side in sides if not any(model.name in node.scaling for node in side)
            ]
            if not silent:
                self._unowned_s.pop(model.name, None)
                continue
            since_s = max(self._unowned_s.setdefault(model.name, now), world.disturbed_s)
            if now - since_s > OWNER_S:
                names = ", ".join(node.name for node in silent[0][:5])
                self._note(
                    "owner", model.name,
                    f"nobody of {names} … speaks for {model.name} since {since_s:.1f} s",
                )  # fmt: skip

    def _look_at_bounds(self) -> None:
        world = self._world
        now = world.heap.now
        for model in world.models:
            most = model.terms.max_instances
            if (
                not most
                or wish_of(world, model.name) != AUTOMATIC
                or world.count(model.name) <= most
            ):
                self._over_s.pop(model.name, None)
                continue
            since_s = max(self._over_s.setdefault(model.name, now), world.disturbed_s)
            if now - since_s > CONVERGE_S and world.links.whole:
                there = world.count(model.name)
                self._note(
                    "bounds", model.name,
                    f"{model.name} has {there} instances, {most} at most, since {since_s:.1f} s",
                )  # fmt: skip


def _sides(world: ScalingWorld) -> list[list[SimNode]]:
    """Return the processes that run and have joined, by side of all partitions."""
    sides: list[list[SimNode]] = []
    for node in world.running():
        for side in sides:
            if world.links.connected(side[0].index, node.index):
                side.append(node)
                break
        else:
            sides.append([node])
    return [side for side in sides if not all(node.alone for node in side)]


def wish_of(world: ScalingWorld, model: str) -> int:
    """Return what operators wish of a model, by the newest that any node publishes."""
    found: list[ScaleWish] = [
        node.wishes[model] for node in world.running() if model in node.wishes
    ]
    newest = max(found, key=lambda wish: (wish.stamp, wish.writer), default=None)
    return AUTOMATIC if newest is None else newest.wanted


def unsettled(world: ScalingWorld) -> list[str]:
    """Return what is not (yet) as it should be of a cluster that is left in peace."""
    found = [*_members(world), *_left_over(world)]
    full = _is_full(world)
    for model in world.models:
        owners = [node for node in world.running() if model.name in node.scaling]
        rightful = {node.sight.owner(model.name) for node in world.running()}
        if [node.boot for node in owners] != sorted(rightful) or len(owners) != 1:
            names = ", ".join(node.name for node in owners) or "nobody"
            found.append(f"owner: {names} speak(s) for {model.name}, not {sorted(rightful)}")
        else:
            found += _numbers(world, model, owners[0].scaling[model.name], full=full)
    return found


def owed_s(world: ScalingWorld) -> float:
    """Return how long what there is to be computed now takes, besides the steady load.

    That is more than what clients wait for: an instance computes what it has got from a node that
    has crashed since, and what has been given to another one after a link was lost. A model has
    what its steady load needs and one more instance, where it may have as many.
    """
    queued = [submit for there in world.instances() for submit in there.submits()]
    there = {each.request.number for each in queued if each.attempt == each.request.attempt}
    owed = Counter(each.request.model.name for each in queued)
    owed.update(r.model.name for r in world.ledger.open.values() if r.number not in there)
    longest_s = 0.0
    for model in world.models:
        steady = model.phases[-1].rate_per_s * model.prefill_s
        most = min(ceil(steady) + 1, model.terms.max_instances or inf)
        longest_s = max(longest_s, owed[model.name] * model.prefill_s / (most - steady))
    return longest_s


def alone_s(world: ScalingWorld) -> float:
    """Return how long an instance would take that had all that is open of a model."""
    models = Counter(request.model for request in world.ledger.open.values())
    return max((count * model.prefill_s for model, count in models.items()), default=0.0)


def _members(world: ScalingWorld) -> Iterator[str]:
    boots = {node.boot for node in world.running()}
    if len(boots) < world.nodes:
        yield f"members: {len(boots)} of {world.nodes} nodes run"
    for node in world.running():
        living = node.sight.view().picture.recall(MEMBERSHIP).living
        if living.keys() != boots:
            yield f"members: {node.name} believes in {len(living)} nodes, {len(boots)} run"


def _left_over(world: ScalingWorld) -> Iterator[str]:
    for node in world.running():
        running = node.operations.statistics().running
        if running:
            yield f"converged: {node.name} has {running} operations under way"
        left = node.steward.statistics()
        if left.operations or left.leases or left.edges or left.retiring:
            yield f"converged: {node.name} still has {left}"
        for there in node.instances():
            if there.state in UNDER_WAY:
                yield f"converged: {there.id} is {there.state}"
        for name, book in node.ingress.clients.items():
            if book.held and wish_of(world, name) == AUTOMATIC:
                yield f"backlog: {node.name} holds {len(book.held)} requests of {name}"
    if world.flows.open:
        yield f"converged: {len(world.flows.open)} edges are open"


def _is_full(world: ScalingWorld) -> bool:
    """Whether every device has an instance that serves."""
    return all(
        device.instance is not None and device.instance.state is InstanceState.SERVING
        for node in world.running()
        for device in node.premises.devices.values()
    )


def _numbers(
    world: ScalingWorld, model: SimModel, facts: ScaleFacts, *, full: bool
) -> Iterator[str]:
    there, terms, wish = world.count(model.name), model.terms, wish_of(world, model.name)
    if facts.present != there:
        yield f"converged: {model.name} is said to have {facts.present} instances, has {there}"
    if there != facts.wanted and not (full and there < facts.wanted):
        yield f"converged: {model.name} has {there} instances, {facts.wanted} are wanted"
    if facts.pressure > CALM and wish == AUTOMATIC:
        yield f"backlog: {model.name} has a pressure of {facts.pressure:g}"
    if wish != AUTOMATIC:
        if facts.wanted != wish and not full:
            yield f"bounds: {facts.wanted} of {model.name} are wanted, the wish is {wish}"
        return
    if there < terms.min_instances and not full:
        yield f"bounds: {model.name} has {there} instances, {terms.min_instances} at least"
    if 0 < terms.max_instances < there:
        yield f"bounds: {model.name} has {there} instances, {terms.max_instances} at most"


def unsteady(world: ScalingWorld, since_s: float) -> list[str]:
    """Return which models have gone up and down more often than MOST_TURNS since a moment."""
    found = []
    for model in world.models:
        history = world.wanted[model.name]
        before = [wanted for at_s, wanted in history if at_s < since_s][-1:]
        since = before + [wanted for at_s, wanted in history if at_s >= since_s]
        rises = [after > former for former, after in pairwise(since) if after != former]
        if sum(one != other for one, other in pairwise(rises)) > MOST_TURNS:
            found.append(f"steady: {model.name} goes {' → '.join(map(str, since))}")
    return found


def unanswered(world: ScalingWorld) -> list[str]:
    """Return which requests have been forgotten, and which have been answered twice."""
    now = world.heap.now
    lost = [
        f"answered: request {request.number} of {request.model.name} is open for"
        f" {now - request.arrived_s:.1f} s (attempt {request.attempt})"
        for request in world.ledger.open.values()
    ]
    late = [r for r in world.ledger.open.values() if now - r.arrived_s > HOLD_S]
    return (lost if late else []) + world.ledger.wrong
