"""What one client may cost, before anything it sent is understood."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the HTTP side. Sizes in bytes, times in seconds.

    `max_url` and `max_header_field` must differ: which of them was exceeded is told by its number.
    """

    max_body: int = 16 << 20
    """Prompts of 2,000,000 token ids as JSON. The longest that parsing can hold up the event loop
    grows with it: 140 ms for 16 MiB of numbers, 15 ms for as much text."""
    max_url: int = 8192
    max_headers: int = 100
    max_header_field: int = 8190
    max_header_total: int = 32 << 10
    max_connections: int = 8192
    """File descriptors, and 14 KB each."""
    max_active: int = 4096
    """Generation requests in flight; more are told to come back."""
    max_unsent: int = 1 << 20
    """Unsent bytes of a stream above which its client counts as gone: some thousand chunks, far
    beyond any pause of the network, and 1,000 such clients hold no more than 1 GiB."""
    body_timeout_s: float = 30.0
    keep_alive_s: float = 120.0
    """Idle time of a connection, and the time that the headers of a request may take; longer than
    what load balancers keep connections for (60 s), so that they close first."""
    linger_s: float = 5.0
    """How long the rest of a refused body is read and thrown away, so that its client can read
    the refusal."""
