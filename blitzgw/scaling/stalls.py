"""Targets that get no bytes although they should: whose fault that is, as far as can be seen.

    source ──► a ──► b        a gets nothing: its source is blamed first, then a itself;
                              b waits for what a has not got, which is not b's fault

A source that gets its own blobs by another operation has until these are due.

A connection that is cut or silent is lost by the transport within seconds, and one that a worker's
death has ended at once. What is left is a source that lives and does not get on with its own disk,
and a target that does not take what comes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from blitzgw.scaling.targets import EdgeBook, Target

HANG_S = 30.0
"""Without a byte on any edge to a target. Bytes are counted by the piece, of a megabyte: a link or
a cap of less than 35 kB/s is not for weights. Well above what the transport takes to see and mend a
silent connection (a dozen seconds), and what requests may hold up weights."""


def hangs_at(
    targets: Mapping[str, Target], edges: Collection[EdgeBook], readers: Collection[str]
) -> float | None:
    """Return when the first target is to be taken for hung, if nothing comes until then."""
    waiting = _waiting(targets, edges, readers)
    return min((targets[worker].quiet_s + HANG_S for worker in waiting), default=None)


def hung(
    targets: Mapping[str, Target],
    edges: Collection[EdgeBook],
    readers: Collection[str],
    now: float,
) -> list[tuple[Target, set[str]]]:
    """Return the targets with which the lack of bytes begins, and the sources of each.

    Those that wait only for others among them are left out. `readers` read from disk by themselves
    in the present plan and tell only of whole blobs: nothing is concluded about them.
    """
    waiting = _waiting(targets, edges, readers)
    late = {w: sources for w, sources in waiting.items() if now >= targets[w].quiet_s + HANG_S}
    first = {w: sources for w, sources in late.items() if not sources <= late.keys()}
    return [(targets[worker], sources) for worker, sources in (first or late).items()]


def _waiting(
    targets: Mapping[str, Target], edges: Collection[EdgeBook], readers: Collection[str]
) -> dict[str, set[str]]:
    """Return the targets that wait for bytes from others, and from whom."""
    found: dict[str, set[str]] = {}
    for book in edges:
        worker = book.order.target
        target = targets.get(worker)
        if target is None or not target.held or worker in readers:
            continue
        if not set(book.order.blobs) <= target.arrived.keys():
            found.setdefault(worker, set()).add(book.order.source)
    return found
