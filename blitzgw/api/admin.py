"""Who may change things: the admin key, and no page that a browser was led to.

A key that is sent in a header cannot be sent by a foreign page; a page that has bound its own name
to this node's address (DNS rebinding) could ask for it, or use what an operator's browser keeps. So
the name that was asked for must be one of ours, and the page that asks, if any, one of this node's.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web

from blitzgw.api.auth import SCHEME
from blitzgw.api.respond import HttpError
from blitzgw.config import Config
from blitzgw.configfile.adminkey import ensure_admin_keys
from blitzgw.errors import Unauthorized

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")

REMEDY = (
    "send Authorization: Bearer KEY with the key of the file http.admin_key_file of this node;"
    " `blitzgw scale` on its machine does"
)


class AdminGuard:
    """Lets through who has the admin key. `hosts` are names under which this node is asked.

    Addresses and localhost are always right: nobody can rebind those.
    """

    def __init__(self, keys: Iterable[str], hosts: Iterable[str] = ()) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._hosts = frozenset(_plain(host) for host in hosts if host)

    def knows(self, authorization: str | None) -> bool:
        """Tell whether an Authorization header has the admin key."""
        if authorization is None or authorization[: len(SCHEME)].lower() != SCHEME:
            return False
        key = authorization[len(SCHEME) :].strip()
        digest = hashlib.sha256(key.encode(errors="surrogateescape")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches)

    def check(self, request: web.BaseRequest) -> None:
        """Refuse a request that may not change things: 403 for where it is from, 401 for its key.

        Raises RequestError.
        """
        self.check_site(request)
        if not self.knows(request.headers.get("Authorization")):
            raise Unauthorized(f"the admin key is needed, an API key is not enough: {REMEDY}")

    def check_site(self, request: web.BaseRequest) -> None:
        """Refuse what another name than ours was asked for, or another page asks; raises HttpError.

        Without API keys this alone keeps foreign pages from the page at `/`.
        """
        self.check_host(request)
        _check_origin(request.headers.getall("Origin", []), request.headers.get("Host", ""))

    def check_host(self, request: web.BaseRequest) -> None:
        """Refuse what another name than ours was asked for; raises HttpError."""
        hosts = request.headers.getall("Host", [])
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is None or not self._is_ours(_plain(match[1])):
            raise HttpError(
                403,
                "foreign_host",
                "this node does not go by that name: ask it by its address, or name it in http.host"
                " or cluster.advertise",
                "PermissionDeniedError",
            )

    def _is_ours(self, host: str) -> bool:
        if host in self._hosts or host == "localhost" or host.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True


def admin_guard(config: Config) -> AdminGuard:
    """Return the guard of a node, whose key file is made where it is missing.

    Raises ConfigError where it cannot be read or made.
    """
    keys = ensure_admin_keys(Path(config.http.admin_key_file))
    hosts = config.http.host, config.cluster.host, config.cluster.advertise, socket.gethostname()
    return AdminGuard(keys, hosts)


def _plain(host: str) -> str:
    return host.lower().strip("[]").removesuffix(".")


def _check_origin(origins: list[str], host: str) -> None:
    """Refuse a page of another host: an Origin says SCHEME://HOST, and the Host header HOST."""
    if not origins:
        return
    try:
        parts = urlsplit(origins[0])
        own = parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()
    except ValueError:
        own = False
    if len(origins) > 1 or not own:
        raise HttpError(
            403,
            "foreign_origin",
            "a page of another site may not ask this: ask without an Origin header,"
            " from a script or with `blitzgw scale`",
            "PermissionDeniedError",
        )
