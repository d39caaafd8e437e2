"""Chat templates: jinja2 in a sandbox, compiled once, with what `transformers` gives templates."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from blitzgw.api.sandbox import TemplateSandbox
from blitzgw.errors import CheckpointError, InvalidRequest

RESERVED = frozenset({"messages", "add_generation_prompt", "bos_token", "eos_token", "tools"})
"""Names that a client's `chat_template_kwargs` may not shadow."""

MESSAGE_CHARS = 300
"""A template's own complaint is cut here, should it quote the conversation."""

CONTINUE_MARK = "\ue000continue\ue001 "
"""Marks where the final message ends, in private-use characters, while it is rendered. The space at
its end tells whether the template trims messages."""


class _Generation(Extension):
    """`{% generation %}`: marks an assistant's words for training; here its body is just text."""

    tags = {"generation"}  # noqa: RUF012  # the base class declares a set

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def local_now() -> datetime:
    """Return the wall clock's local time, which templates print as today's date."""
    return datetime.now().astimezone()


class ChatTemplate:
    """Renders conversations. Raises CheckpointError where the source does not compile."""

    def __init__(
        self,
        source: str,
        bos_token: str,
        eos_token: str,
        now: Callable[[], datetime] = local_now,
    ) -> None:
        environment = TemplateSandbox(["jinja2.ext.loopcontrols", _Generation])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda pattern: now().strftime(pattern)
        try:
            self._template = environment.from_string(source)
        except Exception as error:  # also RecursionError, and ValueError for a number's length
            reason = str(error)[:MESSAGE_CHARS] or type(error).__name__
            raise CheckpointError(f"the chat template does not compile: {reason}") from error
        # jinja2 gives a chain of maps, and goes through it twice whenever it renders: most of that
        self._template.globals = dict(self._template.globals)
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[dict[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt; raises InvalidRequest where the template refuses the messages."""
        if continue_final_message:
            *rest, last = messages
            marked = [*rest, last | {"content": last["content"] + CONTINUE_MARK}]
            return _until_mark(self._run(marked, add_generation_prompt, tools, extra))
        return self._run(messages, add_generation_prompt, tools, extra)

    def _run(
        self,
        messages: Sequence[dict[str, Any]],
        add_generation_prompt: bool,
        tools: Sequence[dict[str, Any]] | None,
        extra: Mapping[str, Any] | None,
    ) -> str:
        given = {
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "tools": tools,
            "documents": None,
        }
        try:
            return self._template.render(**(extra or {}), **self._tokens, **given)
        except jinja2.TemplateError as error:
            reason = str(error)[:MESSAGE_CHARS]
            raise InvalidRequest(
                f"the chat template refused the messages: {reason}", param="messages"
            ) from error
        except Exception as error:  # a template is a program of the model's author
            raise InvalidRequest(
                "the chat template cannot render these messages", param="messages"
            ) from error


def _until_mark(rendered: str) -> str:
    cut = rendered.rfind(CONTINUE_MARK.rstrip())
    if cut < 0:
        raise InvalidRequest(
            "continue_final_message: the chat template does not keep the final message",
            param="continue_final_message",
        )
    kept = rendered.startswith(CONTINUE_MARK, cut)
    return rendered[:cut] if kept else rendered[:cut].rstrip()


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON without jinja's HTML escapes."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
