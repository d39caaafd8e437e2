"""The control plane: where this node listens, what peers call it, and whom it joins."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import replace

from blitzgw.config import ClusterConfig
from blitzgw.configfile.keys import MAKE_CLUSTER_KEY
from blitzgw.configfile.tables import Mistakes

MAX_PORT = 65535

_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,254}}$)({_LABEL}\.)*(?!\d+\.?$){_LABEL}\.?")
"""Labels of up to 63 characters (RFC 1123); the last one has a letter, or it was meant to be an
address."""


def resolve_cluster(
    cluster: ClusterConfig, keyed: bool, mistakes: Mistakes
) -> tuple[ClusterConfig, list[str]]:
    """Check the addresses of the control plane; `join` becomes a list of HOST:PORT.

    `keyed` tells whether there is a cluster key: without one nothing listens, so that nothing may
    be asked for which needs it.
    """
    _check_own(cluster, mistakes)
    join = [
        _seed(written, cluster.port, f"cluster.join[{i}]", mistakes)
        for i, written in enumerate(cluster.join)
    ]
    if not keyed and not mistakes.under("cluster.key_file"):
        _check_keyless(cluster, mistakes)
    seeds = tuple(dict.fromkeys(seed for seed in join if seed))
    return replace(cluster, join=seeds), _unreachable(cluster, seeds)


def split_address(written: str) -> tuple[str, int | None]:
    """Split `HOST`, `HOST:PORT`, `V6` or `[V6]:PORT`; the port is None where there is none.

    Raises `ValueError` for anything else, a port of 0 too.
    """
    match = re.fullmatch(r"\[([^\[\]]+)\](?::([0-9]{1,5}))?", written)
    if match and ":" not in match[1]:
        raise ValueError(f"{match[1]} is no IPv6 address")
    if match is None and written.count(":") < 2:
        match = re.fullmatch(r"([^:]+)(?::([0-9]{1,5}))?", written)
    host, port = (match[1], match[2]) if match else (written, None)
    if not is_host(host) or (port and not 1 <= int(port) <= MAX_PORT):
        raise ValueError(f"{written} is no address")
    return host, int(port) if port else None


def join_address(host: str, port: int) -> str:
    """Return `HOST:PORT`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_host(text: str) -> bool:
    """Say whether this can be an IP address or the name of a host."""
    return _ip(text) is not None or _HOST_NAME.fullmatch(text) is not None


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches the address."""
    ip = _ip(host)
    return host == "localhost" if ip is None else ip.is_loopback


def same_host(one: str, other: str) -> bool:
    """Say whether two texts are the same address or name."""
    ip = _ip(one)
    return one.lower() == other.lower() if ip is None else ip == _ip(other)


def is_wildcard(host: str) -> bool:
    """Say whether the address stands for every interface."""
    ip = _ip(host)
    return ip is not None and ip.is_unspecified


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _check_own(cluster: ClusterConfig, mistakes: Mistakes) -> None:
    right = "give a host name or an IP address, without a port"
    if not is_host(cluster.host):
        mistakes.add("cluster.host", f'"{cluster.host}" is no host; {right}')
    if cluster.advertise and not is_host(cluster.advertise):
        mistakes.add("cluster.advertise", f'"{cluster.advertise}" is no host; {right}')
    if is_wildcard(cluster.advertise):
        text = f'peers cannot connect to "{cluster.advertise}"; give this machine\'s own address'
        mistakes.add("cluster.advertise", f"{text}, or leave it empty")


def _seed(written: str, default_port: int, key: str, mistakes: Mistakes) -> str:
    """Return HOST:PORT, or nothing where there is a mistake."""
    try:
        host, port = split_address(written)
    except ValueError:
        text = f'"{written}" is no address; write HOST, HOST:PORT or [IPv6]:PORT'
        mistakes.add(key, text)
        return ""
    if is_wildcard(host):
        mistakes.add(key, f'"{written}" stands for every interface; give the address of a node')
    elif port is None and not default_port and not mistakes.under("cluster.port"):
        text = f'"{written}" has no port, and cluster.port is 0 (any): add :PORT, or set'
        mistakes.add(key, f"{text} cluster.port to what all nodes use")
    else:
        return join_address(host, port or default_port)
    return ""


def _check_keyless(cluster: ClusterConfig, mistakes: Mistakes) -> None:
    """Note what cannot be without a key: whoever reaches the port would be one of the cluster."""
    right = f"a key that all nodes share ({MAKE_CLUSTER_KEY}), in cluster.key_file or"
    right += " $BLITZGW_CLUSTER_KEY"
    if cluster.join:
        mistakes.add("cluster.join", f"needs {right}")
    if is_host(cluster.host) and not is_loopback(cluster.host):
        text = f"{cluster.host} can be reached by others, which needs {right}"
        mistakes.add("cluster.host", text)


def _unreachable(cluster: ClusterConfig, seeds: Sequence[str]) -> list[str]:
    """Warn of a node that asks to join and cannot be answered."""
    if not is_loopback(cluster.host):
        return []
    remote = [seed for seed in seeds if not is_loopback(split_address(seed)[0])]
    return [
        f"cluster.join names {seed}, but cluster.host is {cluster.host}, which other machines"
        ' cannot reach: set cluster.host to this machine\'s address or "0.0.0.0"'
        for seed in remote[:1]
    ]
