"""The network interfaces of this machine: which one has an address, and what it can carry."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from pathlib import Path

_SIOCGIFADDR = 0x8915

HEADER_BYTES = 52
"""IPv4 and TCP headers of a segment, with timestamps; IPv6 has 20 more."""

FRAME_BYTES = 14
"""The Ethernet header, which an interface's rate counts too."""

DEFAULT_MTU = 1500


def payload_rate(host: str, line_bytes_per_s: float = 0.0, root: Path = Path("/")) -> float:
    """Return what a TCP connection can carry over the interface of an address, in bytes per second.

    rate × (mtu − 52) / (mtu + 14); of a `line_bytes_per_s` of 0 what the interface says of itself.
    Returns 0 where neither is known, as for the loopback.
    """
    name = interface_of(host, root)
    folder = root / "sys/class/net" / name if name else None
    mtu = DEFAULT_MTU
    if folder is not None:
        mtu = _number(folder / "mtu") or DEFAULT_MTU
        line_bytes_per_s = line_bytes_per_s or _number(folder / "speed") * 1e6 / 8
    return line_bytes_per_s * (mtu - HEADER_BYTES) / (mtu + FRAME_BYTES)


def interface_of(host: str, root: Path = Path("/")) -> str | None:
    """Return the name of the interface that has an address; None where none has."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if address.version == 6:
        return _interface_of_v6(address.packed.hex(), root)
    for _, name in socket.if_nameindex():
        if _address_of(name) == str(address):
            return name
    return None


def _address_of(name: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            answer = fcntl.ioctl(sock, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        except OSError:  # it has none
            return None
    return socket.inet_ntoa(answer[20:24])


def _interface_of_v6(packed: str, root: Path) -> str | None:
    try:
        lines = (root / "proc/net/if_inet6").read_text("ascii").splitlines()
    except OSError:
        return None
    return next((line.split()[-1] for line in lines if line.startswith(packed)), None)


def _number(path: Path) -> int:
    """Return the number in a file, 0 where there is none or it is negative: not known."""
    try:
        return max(0, int(path.read_text("ascii")))
    except (OSError, ValueError):
        return 0
