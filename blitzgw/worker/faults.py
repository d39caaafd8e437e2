"""How what goes wrong inside a worker is put into words."""

from __future__ import annotations

import sys
import traceback

from blitzgw.errors import BlitzError

MESSAGE_CHARACTERS = 500
"""Longest text of a foreign error that is passed on: enough to name the fault."""


class Cancelled(Exception):
    """Raised into work that nobody waits for any more."""


def describe(error: Exception) -> str:
    """Return one line for the operator; a foreign error's traceback goes to stderr as well."""
    if isinstance(error, BlitzError):
        return str(error)
    traceback.print_exception(error, file=sys.stderr)
    return f"{type(error).__name__}: {str(error)[:MESSAGE_CHARACTERS]}"
