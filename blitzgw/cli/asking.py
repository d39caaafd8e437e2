"""The options of commands that ask a node, and who asks it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from blitzgw.cli.output import format_option

if TYPE_CHECKING:
    from blitzgw.cli.ask import Asker

F = TypeVar("F", bound=Callable[..., None])


def asking(command: F) -> F:
    """Give a command the options that all have: which node, which key, which form."""
    for option in (
        format_option(
            "How to print it. A table leaves out what does not fit; JSON has everything."
        ),
        click.option(
            "--api-key",
            metavar="KEY",
            envvar="BLITZGW_API_KEY",
            help="Key that the node wants; better in $BLITZGW_API_KEY.",
        ),
        click.option(
            "--url",
            metavar="URL",
            envvar="BLITZGW_URL",
            default="http://127.0.0.1:8000",
            show_default=True,
            help="The node to ask; also $BLITZGW_URL.",
        ),
    ):
        command = option(command)
    return command


def asker_of(url: str, api_key: str | None, timeout_s: float | None = None) -> Asker:
    """Return who asks that node. Of several keys the first is sent; no timeout: the usual one."""
    from blitzgw.cli.ask import TIMEOUT_S, Asker  # noqa: PLC0415  keeps --help quick

    keys = (api_key or "").split()  # the variable of `run` may hold several
    patience_s = TIMEOUT_S if timeout_s is None else timeout_s
    return Asker(url, keys[0] if keys else None, timeout_s=patience_s)
