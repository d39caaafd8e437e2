"""Find an operation, and follow it: ask until it has ended, whatever becomes of the node."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from blitzgw.cli.ask import Asker, NotFound, Unreachable
from blitzgw.cli.output import quoted
from blitzgw.errors import BlitzError

Operation = dict[str, Any]


class NoOperation(BlitzError):
    """Nobody has scaled anything of late."""


def followed(
    again: Callable[[], Operation], first: Operation, interval_s: float, lost_s: float
) -> Iterator[Operation]:
    """Yield an operation as it gets on, at last as it has ended.

    A node out of reach is asked again for `lost_s`; then BlitzError is raised. So it is where
    nobody knows the operation any more: its owner has died.
    """
    operation, silent_since = first, None
    while True:
        yield operation
        if operation["ended"]:
            return
        time.sleep(interval_s)
        try:
            operation, silent_since = again(), None
        except Unreachable:
            now = time.monotonic()
            silent_since = now if silent_since is None else silent_since
            if now - silent_since > lost_s:
                raise
        except NotFound:
            raise BlitzError(
                f"nobody knows operation {operation['id']} any more: its owner,"
                f" {operation['owner']}, has died or left, and what it had claimed is free again"
            ) from None


def latest(operations: list[Operation]) -> Operation | None:
    """Return the operation that is probably meant, of a list with the newest first.

    Copies are made unasked, so that scaling goes before them; then what is under way goes before
    what has ended.
    """
    ranked = sorted(operations, key=lambda o: (o["kind"] != "scale", o["ended"]))
    return next(iter(ranked), None)


def operation_of(asker: Asker, id_: str | None) -> Operation:
    """Return an operation, the one that is probably meant where no id is given.

    Raises BlitzError where there is none.
    """
    if id_ is None:
        found = latest(asker.get("/cluster/operations").get("operations") or [])
        if found is None:
            raise NoOperation("no operation is known: begin one with `blitzgw scale MODEL N`")
        id_ = str(found["id"])
    return asker.get(f"/cluster/operations/{quoted(id_)}")
