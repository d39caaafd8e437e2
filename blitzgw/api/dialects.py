"""How models write tool calls, and which way a model's chat template shows.

    hermes         <tool_call>{"name": …, "arguments": {…}}</tool_call>        Qwen, Hermes
    llama          {"name": …, "parameters": {…}}                              maybe <|python_tag|>
    mistral        [TOOL_CALLS][{"name": …, "arguments": {…}}, …]
    mistral-named  [TOOL_CALLS]name[ARGS]{…}[TOOL_CALLS]name[ARGS]{…}          newer ones

A template is asked, not read: it renders a conversation in which a tool is offered, called and
answers, and the text tells.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from blitzgw.api.template import ChatTemplate
from blitzgw.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Dialect:
    """A way to write calls: `marker` announces one, or a list of them; `closer` may end it.

    `bare`: a call may also stand without its marker, where an answer begins or after another call.
    `lists`: the marker may be followed by a list of calls, or by the name of one.
    """

    name: str
    marker: str
    closer: str = ""
    bare: bool = False
    lists: bool = False

    @property
    def syntax(self) -> tuple[str, ...]:
        """Everything that may be a token of its own, special ones included."""
        named = ("[CALL_ID]", "[ARGS]") if self.lists else ()
        return (self.marker, *((self.closer,) if len(self.closer) > 1 else ()), *named)


HERMES = Dialect("hermes", "<tool_call>", "</tool_call>")
LLAMA = Dialect("llama", "<|python_tag|>", bare=True)
MISTRAL = Dialect("mistral", "[TOOL_CALLS]", "]", lists=True)
MISTRAL_NAMED = Dialect("mistral-named", "[TOOL_CALLS]", "]", lists=True)

OFFERED, CALLED, ARGUMENT = "probe_of_tools", "probe_of_calls", "probe_of_arguments"
"""Names that no template has by itself."""

_USER = {"role": "user", "content": "?"}
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "type": "function",
            "id": "prob3call",  # Mistral's templates insist on nine letters and digits
            "function": {"name": CALLED, "arguments": {ARGUMENT: 1}},
        }
    ],
}
_RESULT = {"role": "tool", "name": CALLED, "tool_call_id": "prob3call", "content": "1"}
_TOOL = {
    "type": "function",
    "function": {
        "name": OFFERED,
        "description": "?",
        "parameters": {"type": "object", "properties": {}},
    },
}
_JSON_CALL = re.compile(
    rf'"name"\s*:\s*"{CALLED}"\s*,\s*"(?:arguments|parameters)"\s*:\s*\{{\s*"{ARGUMENT}"'
)


@dataclass(frozen=True, slots=True)
class ToolKnowledge:
    """What a chat template makes of tools. `dialect`: how answers call them; None: not known."""

    shows_tools: bool
    shows_calls: bool
    dialect: Dialect | None


def ask(template: ChatTemplate | None) -> ToolKnowledge:
    """Return what a template knows of tools; takes the time of three prompts."""
    if template is None:
        return ToolKnowledge(shows_tools=False, shows_calls=False, dialect=None)
    offered = _rendered(template, [_USER], [_TOOL])
    plain_calls = _rendered(template, [_USER, _CALL, _RESULT], None)
    called = _rendered(template, [_USER, _CALL, _RESULT], [_TOOL])
    return ToolKnowledge(
        shows_tools=OFFERED in offered,
        shows_calls=CALLED in plain_calls,
        dialect=_spoken(offered + called) if OFFERED in offered else None,
    )


def _rendered(
    template: ChatTemplate, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> str:
    try:
        return template.render(messages, tools=tools)
    except InvalidRequest:  # it has an own mind about conversations
        return ""


def _spoken(text: str) -> Dialect | None:
    if MISTRAL.marker in text:
        named = re.search(rf"\[TOOL_CALLS\]\s*{CALLED}", text) or "[ARGS]" in text
        return MISTRAL_NAMED if named else MISTRAL
    if re.search(r"<tool_call>\s*\{", text):
        return HERMES
    return LLAMA if _JSON_CALL.search(text) else None
