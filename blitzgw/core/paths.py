"""Where blitzgw keeps what can be fetched or built again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return $BLITZGW_CACHE, else $XDG_CACHE_HOME/blitzgw, else ~/.cache/blitzgw."""
    own = os.environ.get("BLITZGW_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "blitzgw"
