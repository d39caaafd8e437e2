"""The data plane: where workers listen for one another."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from blitzgw.config import ClusterConfig, NetworkEntry, TransferConfig
from blitzgw.configfile.cluster import is_host, is_loopback, is_wildcard, same_host
from blitzgw.configfile.keys import MAKE_CLUSTER_KEY
from blitzgw.configfile.tables import Mistakes

Place = tuple[str, str]
"""A key of the section and the address that stands there."""


def resolve_transfer(
    transfer: TransferConfig, cluster: ClusterConfig, keyed: bool, base: Path, mistakes: Mistakes
) -> TransferConfig:
    """Check the addresses; let workers listen where the node does unless told otherwise.

    `keyed` tells whether there is a cluster key: without one nothing would authenticate who
    connects. A relative folder counts from `base`.
    """
    places = list(_places(transfer, mistakes))
    _check_hosts(places, mistakes)
    _check_entries(transfer.networks, mistakes)
    host = transfer.host or cluster.host
    _check_distinct(host, places, mistakes)
    if not keyed and not mistakes.under("cluster.key_file"):
        _check_keyless(places, mistakes)
    folder = _folder(transfer.copies_dir, base, mistakes)
    return replace(transfer, host=host, copies_dir=folder)


def _places(transfer: TransferConfig, mistakes: Mistakes) -> Iterator[Place]:
    """Yield the addresses that are written and not yet known to be wrong."""
    if transfer.host:
        yield "transfer.host", transfer.host
    for i, entry in enumerate(transfer.networks):
        key = f"transfer.networks[{i}].host"
        if entry.host and not mistakes.under(key):
            yield key, entry.host


def _check_hosts(places: Iterable[Place], mistakes: Mistakes) -> None:
    for key, host in places:
        if not is_host(host):
            text = f'"{host}" is no host; give a host name or an IP address, without a port'
            mistakes.add(key, text)
        elif is_wildcard(host) and key != "transfer.host":
            text = f'"{host}" stands for every interface; give this machine\'s address on that'
            mistakes.add(key, f"{text} network")


def _check_entries(networks: Iterable[NetworkEntry], mistakes: Mistakes) -> None:
    taken: dict[str, str] = {}
    for i, entry in enumerate(networks):
        key = f"transfer.networks[{i}].name"
        if mistakes.under(key) or not (entry.name or entry.host):  # no table at all
            continue
        if not entry.name:
            mistakes.add(key, "is empty; give the name that all nodes on that network use for it")
        elif entry.name in taken:
            text = f'"{entry.name}" is already {taken[entry.name]}; each network has its own name'
            mistakes.add(key, text)
        taken.setdefault(entry.name, key)


def _check_distinct(host: str, places: Iterable[Place], mistakes: Mistakes) -> None:
    """Note addresses that are listened on twice: a plan would count their bandwidth twice."""
    seen = [("transfer.host", host)]
    for key, other in places:
        rival = next((known for known, taken in seen if same_host(other, taken)), key)
        if rival != key and not mistakes.under(key):
            text = f'"{other}" is already {rival}; give each network an address of its own'
            mistakes.add(key, text)
        seen.append((key, other))


def _check_keyless(places: Iterable[Place], mistakes: Mistakes) -> None:
    """Note what others could reach: without a key, nobody could tell peers from strangers."""
    for key, host in places:
        if is_host(host) and not is_loopback(host):
            text = f"{host} can be reached by others, which needs a key that all nodes share"
            text += f" ({MAKE_CLUSTER_KEY}), in cluster.key_file or $BLITZGW_CLUSTER_KEY"
            mistakes.add(key, text)


def _folder(written: str, base: Path, mistakes: Mistakes) -> str:
    if not written:
        return ""
    folder = (base / os.path.expanduser(written)).absolute()
    if folder.exists() and not folder.is_dir():
        mistakes.add("transfer.copies_dir", f"{folder} is no folder; name one of a tmpfs")
    return str(folder)
