"""What a driver finds out: one JSON object a line on stdout.

Only the standard library: drivers run in the client's own environment, where blitzgw is not.
"""

from __future__ import annotations

import argparse
import json
import traceback
from collections.abc import Callable

MAX_DETAIL = 300
"""Characters of an error that are told: whole bodies of answers are of no use in a table."""


class Wrong(Exception):
    """An answer is not what it should be."""


def need(condition: object, otherwise: object) -> None:
    """Raise Wrong, with what there was, unless the condition holds."""
    if not condition:
        raise Wrong(str(otherwise))


def check(what: str, act: Callable[[], object]) -> None:
    """Do something, and tell whether it went well; what it returns is told as a detail."""
    try:
        detail, ok = act(), True
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
        ok = False
    text = "" if detail is None else " ".join(str(detail).split())[:MAX_DETAIL]
    print(json.dumps({"what": what, "ok": ok, "detail": text}), flush=True)


def arguments() -> tuple[str, str]:
    """Return the address, with /v1, and the model that the driver was started with."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("model")
    given = parser.parse_args()
    return given.url, given.model
