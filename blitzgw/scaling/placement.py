"""Which free device a new instance of a model is best put on.

Instances are put one after the other, each on the device that comes first by, in this order:

1. what it costs: an instance of the same definition that drains there, then one that is kept there,
   serves again at once and without a byte moved;
2. where the weights are: in its machine's memory, then on its machine's disk;
3. whose place it takes: one where nothing of another model is kept, which could be revived;
4. the way to the weights: near to somebody who has them in memory;
5. the way's width: the machine's fastest port, shared among the instances that are put there and
   those of the model that are there (this spreads them over nodes);
6. room: what the device has beyond the weights, and the host has free;
7. how many instances of the model its node has, its turn among those alike, and its name.

Rates and sizes count by powers of two: what differs less is not worth a worse place in the rest.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

MIN_SHARE = 1.0
"""Below one unit (byte, byte per second) there is nothing to tell apart."""


class Revival(IntEnum):
    """What of the same definition is there already; the least is the best."""

    DRAINING = 0
    KEPT = 1
    NOTHING = 2


class Distance(IntEnum):
    """Where the weights are, as seen from a device; the least is the best."""

    MEMORY = 0
    """Of the same machine: a host copy, or another instance."""
    DISK = 1
    ELSEWHERE = 2


@dataclass(frozen=True, slots=True)
class Candidate:
    """A device that could take an instance. `worker` is `node/device`.

    `near`: its node is in the zone of one that has the weights in memory. `displaces`: an instance
    of something else is kept there. `instances_here` are those of the model on its node.
    `rate_bytes_per_s` is that of the node's fastest port, `free_bytes` what the device has beyond
    the weights, `host_bytes` what the host has free, `turn` its place in an order of the model's
    own (freedevices.py).
    """

    worker: str
    node: str
    revival: Revival = Revival.NOTHING
    distance: Distance = Distance.ELSEWHERE
    displaces: bool = False
    near: bool = False
    rate_bytes_per_s: float = 0.0
    free_bytes: int = 0
    host_bytes: int = 0
    instances_here: int = 0
    turn: int = 0


def ranked(
    candidates: Iterable[Candidate], crowds: Iterable[Iterator[list[Candidate]]] = ()
) -> Iterator[Candidate]:
    """Yield candidates, the best first, each as the next choice after those before it.

    A crowd yields the candidates of one node after the other, which differ in their names and turns
    alone and come in the order of these: no more of them are looked at than may be next.
    """
    put: dict[str, int] = defaultdict(int)
    queues = _alike(candidates)
    heads = [_entry(queue, index, 0) for index, queue in enumerate(queues)]
    heapq.heapify(heads)
    behind: dict[int, Iterator[list[Candidate]]] = {}

    def come(crowd: Iterator[list[Candidate]]) -> None:
        for queue in _alike(next(crowd, ())):
            behind[len(queues)] = crowd
            heapq.heappush(heads, _entry(queue, len(queues), 0))
            queues.append(queue)

    for crowd in crowds:
        come(crowd)
    while heads:
        entry = heads[0]
        queue = queues[entry[-1]]
        now = _entry(queue, entry[-1], put[queue[0].node])
        if now > entry:  # another one has been put on its node: that makes it worse, never better
            heapq.heapreplace(heads, now)
            continue
        best = queue.popleft()
        yield best
        put[best.node] += 1
        if queue:
            heapq.heapreplace(heads, _entry(queue, entry[-1], put[best.node]))
        else:
            heapq.heappop(heads)
        if entry[-1] in behind:  # whoever is behind it in its crowd is no better than it was
            come(behind.pop(entry[-1]))


def _alike(candidates: Iterable[Candidate]) -> list[deque[Candidate]]:
    """Return candidates in queues, the best first, whose order no choice changes.

    What is put on a node makes those of it worse alike where their port and their instances are the
    same: mostly a queue is a node, so that only its first has to be compared with others.
    """
    queues: dict[tuple[object, ...], deque[Candidate]] = defaultdict(deque)
    for each in sorted(candidates, key=lambda each: (*_order(each, 0), each.turn, each.worker)):
        near_bytes = each.distance is Distance.MEMORY
        queues[each.node, near_bytes, each.rate_bytes_per_s, each.instances_here].append(each)
    return list(queues.values())


def _entry(
    queue: deque[Candidate], index: int, put_here: int
) -> tuple[tuple[float, ...], int, str, int]:
    """Return the place of the first of a queue among the firsts of all."""
    return _order(queue[0], put_here), queue[0].turn, queue[0].worker, index


def _order(each: Candidate, put_here: int) -> tuple[float, ...]:
    here = each.instances_here + put_here
    share = each.rate_bytes_per_s
    if each.distance is not Distance.MEMORY:  # else its bytes come by no port
        share /= 1 + here
    return (
        each.revival,
        each.distance,
        each.displaces,
        not each.near,
        -magnitude(share),
        -magnitude(each.free_bytes),
        -magnitude(each.host_bytes),
        here,
    )


def magnitude(figure: float) -> int:
    """Return the power of two that a figure is nearest to; figures are other nodes' own words."""
    if not MIN_SHARE <= figure < math.inf:
        return 0
    return round(math.log2(figure))
