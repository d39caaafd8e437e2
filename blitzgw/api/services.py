"""What handlers work with; put together by whoever builds the server."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from blitzgw.api.limits import Limits
from blitzgw.api.metrics import Metrics
from blitzgw.api.models import ModelTable
from blitzgw.api.status import ClusterPort, ProbePort, ScalePort, StatusPort
from blitzgw.core.clock import Clock
from blitzgw.core.ports import Generator

VERSION = "0.1.0"
"""What /version and peers are told; the same as in pyproject.toml."""


def draw_seed() -> int:
    """Return 63 random bits."""
    return secrets.randbits(63)


def unix_time() -> int:
    """Return the wall clock in seconds of the Unix epoch, for the `created` of responses."""
    return int(datetime.now(UTC).timestamp())


@dataclass(frozen=True, slots=True)
class Services:
    """The node as the API's handlers see it; without `cluster` nothing is at /cluster/….

    Without `scaling` there are no operations, and nothing is at /admin/….
    """

    node: str
    models: ModelTable
    generator: Generator
    status: StatusPort
    clock: Clock
    metrics: Metrics = field(default_factory=Metrics)
    limits: Limits = field(default_factory=Limits)
    cluster: ClusterPort | None = None
    scaling: ScalePort | None = None
    probing: ProbePort | None = None
    version: str = VERSION
    draw_seed: Callable[[], int] = draw_seed
    unix_time: Callable[[], int] = unix_time
