"""What the state machine of NCCL calls: a library, and links made by it. Without cupy."""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol


class NcclFailed(Exception):
    """A call of NCCL or CUDA has failed; the link it belongs to is of no use any more."""


class Role(IntEnum):
    """Which end of a link this is; its rank in the communicator."""

    SENDS = 0
    RECEIVES = 1


class Mark(Protocol):
    """A place in a link's stream."""

    def passed(self) -> bool:
        """Whether all that was launched before it has ended. Raises NcclFailed."""


class Link(Protocol):
    """A communicator of two ranks and its stream. The launching thread alone calls it.

    Nothing here waits: what takes time is asked after by `settled` and by marks.
    """

    def settled(self) -> bool:
        """Whether the last call has taken effect, so that the next may follow.

        Raises NcclFailed where a call before has failed, or the peer has.
        """

    def launch(self, pointer: int, size_bytes: int) -> None:
        """Send or receive, by its role, bytes on the device. Raises NcclFailed."""

    def mark(self) -> Mark:
        """Mark the place behind what has been launched. Raises NcclFailed."""

    def abort(self) -> None:
        """End what is under way and free the communicator. Raises nothing; once is enough."""


class Library(Protocol):
    """NCCL on one GPU."""

    @property
    def version(self) -> int:
        """NCCL's version as its own number; only equal ones talk to each other."""

    def use(self) -> None:
        """Make the GPU that of the calling thread. Raises NcclFailed."""

    def unique_id(self) -> bytes:
        """Return a name for a new pair: what both ends make their link with. From any thread.

        It opens a port for the peer on this host and touches no device. Raises NcclFailed.
        """

    def link(self, unique_id: bytes, role: Role) -> Link:
        """Begin to make an end of a link; it is warm once it has `settled`. Raises NcclFailed."""
