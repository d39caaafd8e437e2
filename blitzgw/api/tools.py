"""The tools of a request: what a model may call, how it writes calls, and whether it must."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from blitzgw.api.bodies import ChatBody, NamedChoice, TokenizeBody, Tool
from blitzgw.api.dialects import LLAMA, Dialect
from blitzgw.api.grammars import COMPILER
from blitzgw.api.models import ModelEntry
from blitzgw.api.nesting import MAX_LEVELS, too_deep
from blitzgw.api.toolgrammar import Callable, forced_calls
from blitzgw.errors import InvalidRequest

MAX_TOOLS = 128
"""Tools of one request, as OpenAI has it."""

MAX_TOOL_CHARS = 256 << 10
"""All tools of a request as JSON: they are part of the prompt, and no context holds more."""

NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}
"""The schema of a function that names none: it takes nothing."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


@dataclass(frozen=True, slots=True)
class ToolUse:
    """How a request's answers call tools. `names` are those that are offered.

    `single`: only the first call counts. `grammar` forces calls, or calls or a form; empty: the
    model decides. `shown` are the tokens of the dialect's own words, which the text must keep.
    """

    dialect: Dialect
    names: frozenset[str]
    single: bool
    grammar: str
    shown: tuple[int, ...]


def template_tools(body: ChatBody | TokenizeBody) -> list[dict[str, Any]] | None:
    """Return the tools as chat templates expect them, None for none; raises InvalidRequest.

    With `tool_choice` none the model does not learn of them: so it calls none.
    """
    if not body.tools or (isinstance(body, ChatBody) and body.tool_choice == "none"):
        return None
    _check(body.tools)
    return [{"type": "function", "function": _function(tool)} for tool in body.tools]


async def read_tools(body: ChatBody, entry: ModelEntry, form: str) -> ToolUse | None:
    """Return how answers use the tools that `template_tools` has checked, None where they cannot.

    `form` is the grammar of answers that call none; empty: anything. Raises InvalidRequest.
    """
    choice = _choice(body)
    if not body.tools or choice == "none":
        return None
    forced = choice != "auto"
    knowledge = entry.text.tools
    dialect = knowledge.dialect
    if dialect is None:
        if not forced:
            why = "knows no tools" if not knowledge.shows_tools else "calls them in an unknown way"
            raise InvalidRequest(
                f"tools: the chat template of this model {why}, so that its answers cannot be read "
                'for calls: use tool_choice "required" or a named function, or leave tools out',
                param="tools",
            )
        dialect = LLAMA  # a plain JSON object, which the grammar sees to
    named = choice if isinstance(choice, NamedChoice) else None
    single = named is not None or body.parallel_tool_calls is False
    tokens = {word: entry.text.added[word] for word in dialect.syntax if word in entry.text.added}
    grammar = ""
    if form and not forced and dialect.bare:
        raise InvalidRequest(
            "tools that may be called and a form for the output exclude each other for this model, "
            'as its calls are JSON, too: leave one out, or use tool_choice "none" or "required"',
            param="tools",
        )
    if forced or form:
        if not entry.spec.eos_ids:
            raise InvalidRequest(
                "tool_choice: this model has no token that ends an output", param="tool_choice"
            )
        wanted = _wanted(body.tools, named)
        other = "" if forced else form
        grammar = await COMPILER.run(partial(forced_calls, wanted, dialect, tokens, single, other))
    return ToolUse(
        dialect,
        frozenset(tool.function.name for tool in body.tools),
        single,
        grammar,
        tuple(sorted(tokens.values())),
    )


def _choice(body: ChatBody) -> str | NamedChoice:
    """Return the `tool_choice` that is meant."""
    choice = body.tool_choice
    if choice is None:
        return "auto"
    if isinstance(choice, NamedChoice):
        if choice.type not in (None, "function") or choice.function is None:
            raise _wrong_choice('an object must be {"type": "function", "function": {"name": …}}')
        name = choice.function.name
        if not any(tool.function.name == name for tool in body.tools or ()):
            raise _wrong_choice("the function that it names is not among tools")
    elif choice not in ("none", "auto", "required"):
        raise _wrong_choice("must be none, auto, required or an object that names a function")
    elif choice == "required" and not body.tools:
        raise _wrong_choice("required needs tools")
    return choice


def _wrong_choice(why: str) -> InvalidRequest:
    return InvalidRequest(f"tool_choice: {why}", param="tool_choice")


def _check(tools: Sequence[Tool]) -> None:
    """Raise InvalidRequest for too many tools, and for such as cannot be told apart."""
    if len(tools) > MAX_TOOLS:
        raise _wrong_tools(f"{len(tools)} are too many, at most {MAX_TOOLS} are allowed")
    known: set[str] = set()
    chars = 0
    for i, tool in enumerate(tools):
        where = f"[{i}]"
        if tool.type not in (None, "function"):
            raise _wrong_tools(f"{where}: only tools of type function are accepted")
        if not _NAME.fullmatch(tool.function.name):
            raise _wrong_tools(
                f"{where}.function.name must be 1 to 128 letters, digits, dots, _ and -"
            )
        if tool.function.name in known:
            raise _wrong_tools(f"{where}.function.name is that of another tool, too")
        known.add(tool.function.name)
        if too_deep(tool.function.parameters):
            raise _wrong_tools(
                f"{where}.function.parameters has more than {MAX_LEVELS} levels of objects"
            )
        chars += len(json.dumps(_function(tool)))
    if chars > MAX_TOOL_CHARS:
        raise _wrong_tools(f"they have {chars} characters, at most {MAX_TOOL_CHARS} are allowed")


def _wrong_tools(why: str) -> InvalidRequest:
    return InvalidRequest(f"tools: {why}".replace("tools: [", "tools["), param="tools")


def _function(tool: Tool) -> dict[str, Any]:
    """Return a function in the order of keys that models are trained on."""
    function = tool.function
    given: dict[str, Any] = {"name": function.name}
    if function.description is not None:
        given["description"] = function.description
    return given | {"parameters": function.parameters or NO_PARAMETERS}


def _wanted(tools: Sequence[Tool], named: NamedChoice | None) -> list[Callable]:
    """Return what may be called where calls are forced."""
    chosen = None if named is None or named.function is None else named.function.name
    return [
        Callable(
            f"tools[{i}].function.parameters",
            tool.function.name,
            tool.function.parameters or NO_PARAMETERS | {"additionalProperties": False},
        )
        for i, tool in enumerate(tools)
        if chosen in (None, tool.function.name)
    ]
