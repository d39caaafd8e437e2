"""The systems that are compared: the same product, with other words in its configuration.

Policy, bounds and targets are the same for all that scale; what differs is where weights come from,
and what an instance does while they arrive. How fast disks, host memory and links are is a matter
of the machines, the same for all of them ([transfer] rate, max_disk_rate, max_host_rate).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

EVERYWHERE = 4096
"""Host copies: more than any cluster here has nodes, so that each of them has one."""

FOR_GOOD_S = 86_400.0
"""Longer than any window: what is kept for so long is there until the end."""


@dataclass(frozen=True, slots=True)
class System:
    """A way of bringing instances up.

    `settings` are knobs of `[[models]]` beside those that all have. `initial` is how many instances
    there are at the start: "min", "mean" (what the window needs on average) or "full"; those that
    do not scale keep that number. `free_when_kept`: a kept instance is not paid for (`oracle`).
    """

    name: str
    says: str
    """What it is, in half a line."""
    scales: bool = True
    initial: str = "min"
    settings: Mapping[str, object] = field(default_factory=dict)
    free_when_kept: bool = False


def _fixed(name: str, says: str, initial: str) -> System:
    return System(name, says, scales=False, initial=initial, settings={"host_copies": 0})


def _from_disk(name: str, cache_s: float) -> System:
    """Return ServerlessLLM's way: the node's own disk, or what its memory still has of it."""
    return System(
        name,
        f"from the node's own disk, or from its memory for {cache_s:g} s after an instance",
        settings={
            "live": "stop",
            "strategy": "disk",
            "host_copies": 0,
            "host_cache_s": cache_s,
        },
    )


def _networked(name: str, says: str, live: str, strategy: str = "auto") -> System:
    """Return a system that loads over the network; one copy in host memory is the default."""
    settings = {"live": live, "strategy": strategy, "host_copies": 1}
    return System(name, says, settings=settings)


SYSTEMS: Mapping[str, System] = {
    system.name: system
    for system in (
        _fixed("static-full", "as many instances as may be, all the time", "full"),
        _fixed("static-mean", "what the window needs on average, all the time", "mean"),
        _from_disk("stop+disk", 30.0),
        _from_disk("stop+disk-300", 300.0),
        System(
            "stop+host",
            "from host memory, where every node has a copy all the time",
            settings={"live": "stop", "strategy": "host", "host_copies": EVERYWHERE},
        ),
        _networked("stop+star", "over the network, from one source to each", "stop", "star"),
        _networked("stop+chain", "over the network, from one to the next", "stop", "chain"),
        _networked("pipeline", "receivers that have the model together serve", "pipeline"),
        _networked(
            "live-best-effort", "run the layers that are there, at most half", "best-effort"
        ),
        _networked("live-zigzag", "layer by layer, handed over where it has got to", "zigzag"),
        _networked("live", "what is predicted to be quicker, zigzag or stop", "auto"),
        System(
            "oracle",
            "nothing to load: all instances are kept, and come back at once",
            initial="full",
            settings={"live": "stop", "host_copies": 0, "keep_s": FOR_GOOD_S},
            free_when_kept=True,
        ),
    )
}
"""By name, in the order in which they are shown."""
