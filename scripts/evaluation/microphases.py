"""How long the phases of one growth have taken, on the wall, from what its owner tells of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from blitzgw.cli.waterfall import NEVER, Track, track

Facts = Mapping[str, Any]


def phases(facts: Facts, dilation: float) -> dict[str, list[float]]:
    """Return seconds by constant, one for each target; `hop_s` between targets of a chain."""
    tracks = _tracks(facts)
    planned = next((e["at_s"] for e in facts["events"] if e["what"] == "planned"), NEVER)
    found: dict[str, list[float]] = {
        "plan_s": [planned],
        "claim_s": [one.claimed - planned for one in tracks],
        "connect_s": [one.connected - one.claimed for one in tracks],
        "first_byte_s": [_first(one) - one.connected for one in tracks[:1]],
        "serve_s": [one.ready - max(one.arrived) for one in tracks if one.arrived],
    }
    ends = sorted(max(one.arrived) for one in tracks if one.arrived)
    found["hop_s"] = [later - end for end, later in pairwise(ends)]
    return {name: _known(values, dilation) for name, values in found.items()}


def link_share(facts: Facts, nominal_bytes_per_s: float, dilation: float) -> list[float]:
    """Return the rate at which a lone target got its bytes, over the nominal one.

    From the first blob's arrival to the last one's: what was under way before does not count.
    """
    return [
        rate / nominal_bytes_per_s for rate in _rates(_tracks(facts), facts["size_bytes"], dilation)
    ]


def disk_rate_share(facts: Facts, bytes_per_s: float, dilation: float) -> dict[str, list[float]]:
    """Return when the first byte came from a disk, and its rate over the nominal one."""
    tracks = _tracks(facts)
    rates = _rates(tracks, facts["size_bytes"], dilation)
    # a blob is told of when it is whole: the first byte is told of by the rate
    first = [
        min(one.arrived) * dilation - facts["size_bytes"] / one.blobs / rate
        for one, rate in zip(tracks, rates, strict=True)
    ]
    claimed = [one.claimed * dilation for one in tracks if one.arrived]
    return {
        "disk_share": [rate / bytes_per_s for rate in rates],
        "disk_first_byte_s": [at - since for at, since in zip(first, claimed, strict=True)],
    }


def _rates(tracks: Sequence[Track], size_bytes: int, dilation: float) -> list[float]:
    """Return bytes per second on the wall; blobs are of nearly the same size."""
    return [
        size_bytes
        * (one.blobs - 1)
        / one.blobs
        / ((max(one.arrived) - min(one.arrived)) * dilation)
        for one in tracks
        if max(one.arrived, default=0.0) > min(one.arrived, default=0.0)
    ]


def _tracks(facts: Facts) -> list[Track]:
    found = [track(target, facts["events"]) for target in facts["targets"]]
    return [one for one in found if one.ready < NEVER]


def _first(one: Track) -> float:
    return min(one.first, *one.arrived) if one.arrived else one.first


def _known(values: Sequence[float], dilation: float) -> list[float]:
    """Return what is known of them: a phase that has not come is endless, or no number."""
    return [value * dilation for value in values if abs(value) < NEVER]
