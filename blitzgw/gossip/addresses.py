"""Which address of this machine peers are told."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from blitzgw.configfile.cluster import is_wildcard, split_address
from blitzgw.errors import BlitzError

ANY_PORT = 9
"""Where a route is looked up to; no packet is sent."""

RESOLVE_S = 5.0
"""How long a resolver may take."""


async def advertised_host(host: str, advertise: str, join: Sequence[str]) -> str:
    """Return the IP address that peers are told.

    As configured in `advertise`, else as bound, else, where every address is bound, the one that
    the route to the first seed begins at, or that the machine's own name has. Raises BlitzError
    where none can be found.
    """
    wanted = advertise or host
    try:
        if not is_wildcard(wanted):
            return (await _resolve(wanted))[1]
        seed = split_address(join[0])[0] if join else socket.gethostname()
        return _route_to(await _resolve(seed))
    except (OSError, TimeoutError) as error:
        raise BlitzError(
            f"the address that peers can reach this node at is not known ({error});"
            " set cluster.advertise"
        ) from error


async def _resolve(name: str) -> tuple[socket.AddressFamily, str]:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(RESOLVE_S):
        found = await loop.getaddrinfo(name, ANY_PORT, type=socket.SOCK_DGRAM)
    family, _, _, _, address = found[0]
    return family, str(address[0])


def _route_to(target: tuple[socket.AddressFamily, str]) -> str:
    """Return the address that datagrams to a target would come from. Raises OSError."""
    family, address = target
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((address, ANY_PORT))
        return str(sock.getsockname()[0])
