"""Ask a node over HTTP, and say what to do where that does not work."""

from __future__ import annotations

import http.client
import json
import re
from typing import Any
from urllib.parse import SplitResult, urlsplit

import click

from blitzgw.errors import BlitzError

TIMEOUT_S = 15.0
"""A node answers at once, except for requests: those it collects from others for a few seconds."""

MAX_ANSWER_BYTES = 256 << 20
"""A cluster of thousands of devices tells some megabytes."""


def ask(url: str, path: str, api_key: str | None) -> dict[str, Any]:
    """Return the JSON object that a node answers. Raises BlitzError with a remedy.

    Proxies of the environment are not used: they seldom know the way to a node.
    """
    base = _base(url)
    shown = f"{base.scheme}://{base.netloc}{base.path}"
    status, body = _get(base, path, _headers(api_key), shown)
    if status == 401:
        text = "wants an API key" if api_key is None else "does not know this API key"
        raise BlitzError(f"{shown} {text}: give one with --api-key or $BLITZGW_API_KEY")
    if status == 404:
        raise BlitzError(
            f"{shown} has nothing at {path}: is this a blitzgw node, and as new as this command?"
        )
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if status != 200:
        raise BlitzError(f"{shown} answered {status}{_reason(answer)}")
    if not isinstance(answer, dict):
        raise BlitzError(f"{shown} is not a blitzgw node: name one with --url or $BLITZGW_URL")
    return answer


def _base(url: str) -> SplitResult:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the host or the port
        right = False
    if not right or re.search(r"[^!-~]", url) or parts.username or parts.query or parts.fragment:
        raise click.UsageError(f"{url!r} is no URL of a node: write http://HOST:PORT")
    return parts._replace(path=parts.path.rstrip("/"))


def _headers(api_key: str | None) -> dict[str, str]:
    if api_key is None:
        return {}
    if not re.fullmatch("[!-~]+", api_key):
        raise click.UsageError("an API key is printable ASCII without spaces")
    return {"Authorization": f"Bearer {api_key}"}


def _get(base: SplitResult, path: str, headers: dict[str, str], shown: str) -> tuple[int, bytes]:
    https = base.scheme == "https"
    kind = http.client.HTTPSConnection if https else http.client.HTTPConnection
    connection = kind(base.hostname or "", base.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", f"{base.path}{path}", headers=headers)
        response = connection.getresponse()
        return response.status, response.read(MAX_ANSWER_BYTES)
    except TimeoutError:
        raise BlitzError(f"{shown} did not answer within {TIMEOUT_S:g} s; is it busy?") from None
    except OSError as error:
        raise BlitzError(
            f"cannot reach {shown}: {error.strerror or error}; start a node with `blitzgw run`, or"
            " name one that runs with --url or $BLITZGW_URL"
        ) from None
    except http.client.HTTPException:
        raise BlitzError(f"{shown} does not speak HTTP as a node does") from None
    finally:
        connection.close()


def _reason(answer: object) -> str:
    error = answer.get("error") if isinstance(answer, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return f": {message}" if isinstance(message, str) else ""
