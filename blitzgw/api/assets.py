"""The page at `/`: files of this package as they are, read once.

They hold no secret and nothing of the cluster: what the page shows it asks for, with its reader's
key where there are keys. Nothing but this node's own files runs in it, and whatever a model, a peer
or a configuration says is inserted as text: the headers have browsers enforce both.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from blitzgw.api.exchange import Exchange

FOLDER = Path(__file__).with_name("page")
START = "index.html"
PREFIX = "/page/"

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

HEADERS = {
    "Cache-Control": "no-cache",  # asked for again each time, by ETag: nodes may differ in version
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
        " object-src 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """One file."""

    body: bytes
    media_type: str
    tag: str

    async def answer(self, exchange: Exchange) -> web.StreamResponse:
        """Answer the file, or 304 to who has it already."""
        headers = {**exchange.headers, **HEADERS, "ETag": f'"{self.tag}"'}
        known = exchange.request.if_none_match or ()
        if any(etag.value in (self.tag, "*") for etag in known):
            return web.Response(status=304, headers=headers)
        headers["Content-Type"] = self.media_type
        return web.Response(body=self.body, headers=headers)


def assets() -> dict[str, Asset]:
    """Return what is served, by path."""
    files = sorted(file for file in FOLDER.iterdir() if file.suffix in TYPES)
    return {"/" if file.name == START else PREFIX + file.name: _read(file) for file in files}


def _read(file: Path) -> Asset:
    body = file.read_bytes()
    return Asset(body, TYPES[file.suffix], hashlib.sha256(body).hexdigest()[:32])
