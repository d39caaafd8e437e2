"""What one client may cost, before anything it sent is understood."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the HTTP side. Sizes in bytes, times in seconds.

    `max_url` and `max_header_field` must differ: which of them was exceeded is told by its number.
    """

    max_body: int = 8 << 20
    """A prompt of 1,000,000 token ids as JSON; parsing that much takes 70 ms at worst."""
    max_url: int = 8192
    max_headers: int = 100
    max_header_field: int = 8190
    max_header_total: int = 32 << 10
    max_connections: int = 8192
    """File descriptors, and 14 KB each."""
    max_active: int = 4096
    """Generation requests in flight; more are told to come back."""
    body_timeout_s: float = 30.0
    keep_alive_s: float = 120.0
    """Idle time of a connection, and the time that the headers of a request may take; longer than
    what load balancers keep connections for (60 s), so that they close first."""
    linger_s: float = 5.0
    """How long the rest of a refused body is read and thrown away, so that its client can read
    the refusal."""
