"""What simulations need while they run: to say how far they are, and no garbage collector."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

HEADING = "\b\nExamples:\n"
"""Before the examples of a command's help."""


@contextmanager
def status() -> Iterator[Callable[[str], None]]:
    """Give a function that shows what is being done, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415  keeps --help quick

    with Console(stderr=True).status("") as shown:
        yield shown.update


@contextmanager
def no_collector() -> Iterator[None]:
    """Keep the garbage collector out: millions of objects that live long, and hardly any cycle."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
