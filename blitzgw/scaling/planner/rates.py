"""What ports, disks and host copies give a transfer, in bytes per second."""

from __future__ import annotations

from blitzgw.core.plan import Links, Port, Tier

BUSY_SHARE = 0.05
"""A port that spends this part of its tx on requests is avoided: below it the traffic is tokens and
the odd handoff, which no transfer delays for long."""

LEAST_SHARE = 0.02
"""What a port's tx leaves to weights however much it serves: they yield, but not for ever, and a
prediction stays finite."""

DISK_BYTES_PER_S = 1e9
"""Of a disk from which nothing has been read yet: what one thread reads from an ordinary one."""


def usable_tx(port: Port) -> float:
    """Return what serving leaves of a port's tx, in bytes per second."""
    return max(port.tx_bytes_per_s - port.serving_tx_bytes_per_s, LEAST_SHARE * port.tx_bytes_per_s)


def weights_tx(port: Port) -> float:
    """Return what one worker sends of weights through a port at most, in bytes per second."""
    return min(usable_tx(port), port.worker_tx_bytes_per_s)


def is_busy(port: Port) -> bool:
    """Return whether a port has requests to serve, so that it had better send nothing else."""
    return port.serving_tx_bytes_per_s > BUSY_SHARE * port.tx_bytes_per_s


def disk_rate(links: Links, node: str) -> float:
    """Return the rate of a node's disk in bytes per second, assumed where it is not known."""
    return links.disks.get(node, 0.0) or DISK_BYTES_PER_S


def host_rate(links: Links, node: str) -> float:
    """Return how fast a node's host copy is read, in bytes per second."""
    return links.hosts.get(node, 0.0) or links.local_bytes_per_s


def read_rate(links: Links, node: str, tier: Tier) -> float:
    """Return how fast a node reads from a tier, in bytes per second."""
    return host_rate(links, node) if tier is Tier.HOST else disk_rate(links, node)
