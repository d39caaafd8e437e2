"""Ask a node over HTTP, and say what to do where that does not work."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

import click

from blitzgw.errors import BlitzError

TIMEOUT_S = 15.0
"""A node answers at once, except where it asks others: for requests, or to plan an operation."""

MAX_ANSWER_BYTES = 256 << 20
"""A cluster of thousands of devices tells some megabytes."""

API_REMEDY = "give one with --api-key or $BLITZGW_API_KEY"
ADMIN_REMEDY = (
    "give one with --admin-key or $BLITZGW_ADMIN_KEY, or run this on the node's machine as the user"
    " whom the node's http.admin_key_file belongs to"
)

NOT_FOUND_CODES = ("model_not_found", "operation_not_found")
"""What a node does not find, other than the path: its own words say it best."""


class NotFound(BlitzError):
    """The node answers, and does not know what it was asked for."""


class Unreachable(BlitzError):
    """No answer came, or none for now: the same question may be answered later."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Asks one node. `admin` tells which kind of key it is, for what is said if it is refused.

    `timeout_s` is the patience for an answer. Proxies of the environment are not used: they seldom
    know the way to a node.
    """

    url: str
    key: str | None = None
    admin: bool = False
    timeout_s: float = TIMEOUT_S

    def get(self, path: str) -> dict[str, Any]:
        """Return the JSON object that a node answers. Raises BlitzError with a remedy."""
        return self._ask("GET", path)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Have something done, and return the JSON object that a node answers; raises as `get`."""
        return self._ask("POST", path, json.dumps(body).encode())

    def _ask(self, method: str, path: str, data: bytes | None = None) -> dict[str, Any]:
        base = _base(self.url)
        shown = f"{base.scheme}://{base.netloc}{base.path}"
        headers = _headers(self.key, self.admin)
        if data is not None:
            headers["Content-Type"] = "application/json"
        reply = _send(base, method, path, headers, data, self.timeout_s)
        answer = _decoded(reply.body)
        if reply.status == 401:
            raise BlitzError(f"{shown} {self._refusal()}")
        if reply.status == 404:
            _raise_not_found(reply.code, _reason(answer), shown, path)
        if reply.status not in (200, 202):
            kind = Unreachable if reply.status >= 500 else BlitzError
            raise kind(f"{shown} answered {reply.status}{_reason(answer)}")
        if not isinstance(answer, dict):
            raise BlitzError(f"{shown} is not a blitzgw node: name one with --url or $BLITZGW_URL")
        return answer

    def _refusal(self) -> str:
        kind = "admin" if self.admin else "API"
        remedy = ADMIN_REMEDY if self.admin else API_REMEDY
        wants = f"wants an {kind} key" if self.key is None else f"does not know this {kind} key"
        return f"{wants}: {remedy}"


def ask(url: str, path: str, api_key: str | None) -> dict[str, Any]:
    """Return the JSON object that a node answers. Raises BlitzError with a remedy."""
    return Asker(url, api_key).get(path)


@dataclass(frozen=True, slots=True)
class _Reply:
    """`code` is the machine's word for an error."""

    status: int
    code: str
    body: bytes


def _base(url: str) -> SplitResult:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the host or the port
        right = False
    if not right or re.search(r"[^!-~]", url) or parts.username or parts.query or parts.fragment:
        raise click.UsageError(f"{url!r} is no URL of a node: write http://HOST:PORT")
    return parts._replace(path=parts.path.rstrip("/"))


def _headers(key: str | None, admin: bool) -> dict[str, str]:
    if key is None:
        return {}
    if not re.fullmatch("[!-~]+", key):
        kind = "admin" if admin else "API"
        raise click.UsageError(f"an {kind} key is printable ASCII without spaces")
    return {"Authorization": f"Bearer {key}"}


def _send(
    base: SplitResult,
    method: str,
    path: str,
    headers: Mapping[str, str],
    data: bytes | None,
    timeout_s: float,
) -> _Reply:
    shown = f"{base.scheme}://{base.netloc}{base.path}"
    https = base.scheme == "https"
    kind = http.client.HTTPSConnection if https else http.client.HTTPConnection
    connection = kind(base.hostname or "", base.port, timeout=timeout_s)
    try:
        connection.request(method, f"{base.path}{path}", body=data, headers=dict(headers))
        response = connection.getresponse()
        code = response.getheader("x-blitzgw-error-code") or ""
        return _Reply(response.status, code, response.read(MAX_ANSWER_BYTES))
    except TimeoutError:
        text = f"{shown} did not answer within {timeout_s:g} s; is it busy?"
        raise Unreachable(text) from None
    except OSError as error:
        raise Unreachable(
            f"cannot reach {shown}: {error.strerror or error}; start a node with `blitzgw run`, or"
            " name one that runs with --url or $BLITZGW_URL"
        ) from None
    except http.client.HTTPException:
        raise BlitzError(f"{shown} does not speak HTTP as a node does") from None
    finally:
        connection.close()


def _decoded(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _raise_not_found(code: str, reason: str, shown: str, path: str) -> None:
    if code in NOT_FOUND_CODES:
        raise NotFound(f"{shown} answered 404{reason}")
    raise NotFound(
        f"{shown} has nothing at {path}: is this a blitzgw node, and as new as this command?"
    )


def _reason(answer: object) -> str:
    """Return what a node says of an error, without anything that a terminal would obey."""
    error = answer.get("error") if isinstance(answer, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    if not isinstance(message, str):
        return ""
    return f": {''.join(c if c.isprintable() else '?' for c in message)}"
