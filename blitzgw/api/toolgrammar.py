"""The grammar of answers that must be tool calls, for llguidance: a dialect around JSON schemas.

Or of answers that must be that or have a form, where a client asks for both.

What a dialect itself writes is literal, as its models are trained to write it; only the arguments
are up to the model, and follow the schema of the tool. Words that are tokens of their own are named
by number, for no spelling stands for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blitzgw.api.dialects import HERMES, LLAMA, MISTRAL, Dialect
from blitzgw.api.grammars import check_multiples, fault_of
from blitzgw.core.request import MAX_GRAMMAR_BYTES
from blitzgw.errors import InvalidRequest

MAX_CALLS = 16
"""Calls of one forced answer, so that a weak model comes to an end."""

WHITESPACE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write arguments, the usual one: some models would write blanks without end."""


_PLACE = re.compile(r"at (\d+)\(\d+\): (?:failed to compile JSON schema: )?")
"""The line of a grammar with which llguidance finds fault."""

_ARGUMENTS = re.compile(r"arguments_(\d+): ")


@dataclass(frozen=True, slots=True)
class Callable:
    """A function that may be called: `where` it stands in the request, its name and schema."""

    where: str
    name: str
    schema: dict[str, Any]


def forced_calls(
    functions: Sequence[Callable],
    dialect: Dialect,
    tokens: Mapping[str, int],
    single: bool,
    form: str = "",
) -> str:
    """Return the grammar of one call, or of several; takes some ms, so not on the event loop.

    `tokens` are the words of the dialect that are tokens. `form` is the grammar of what may stand
    instead of calls; empty: nothing. Raises InvalidRequest, which names the schema that is at
    fault.
    """
    for function in functions:
        if function.schema.get("type", "object") != "object":
            raise _wrong(function.where, "its type must be object")
    check_multiples([function.schema for function in functions], "tools")
    rules = _rules(functions, dialect, tokens, single)
    grammar = _joined(rules, form)
    size = len(grammar.encode())
    if size > MAX_GRAMMAR_BYTES:
        raise InvalidRequest(
            f"tools: forcing their calls takes a grammar of {size} bytes, at most "
            f"{MAX_GRAMMAR_BYTES} are allowed",
            param="tools",
        )
    spelled = _rules(functions, dialect, {}, single)  # bytes know no tokens
    fault = fault_of(_joined(spelled, form))
    if fault:
        raise _at_fault(fault, rules, functions)
    return grammar


def _joined(rules: Sequence[str], form: str) -> str:
    """Return the grammar of calls, or of those and of a form, which is of either kind."""
    if not form:
        return "\n".join((*rules, "start: calls"))
    either = {"lark_grammar": "\n".join((*rules, "start: calls | @form"))}
    (other,) = json.loads(form)["grammars"] if form[0] == "{" else ({"lark_grammar": form},)
    return json.dumps({"grammars": [either, other | {"name": "form"}]}, ensure_ascii=False)


def _rules(
    functions: Sequence[Callable], dialect: Dialect, tokens: Mapping[str, int], single: bool
) -> list[str]:
    words = {word: _word(word, tokens) for word in dialect.syntax}
    rules = _frame(dialect, words, "" if single else f"{{0,{MAX_CALLS - 1}}}")
    rules.append("called: " + " | ".join(f"called_{i}" for i in range(len(functions))))
    for i, function in enumerate(functions):
        rules.append(f"called_{i}: {_called(function.name, dialect, words, f'arguments_{i}')}")
        rules.append(f"arguments_{i}: %json {_schema(function)}")
    return rules


def _frame(dialect: Dialect, words: Mapping[str, str], more: str) -> list[str]:
    """Return the rules around `called`; `more` is how often another call may follow."""
    opener = words[dialect.marker]
    if dialect == LLAMA:  # its templates show one call at a time
        return ["calls: called"]
    if dialect == MISTRAL:
        following = f'(", " called){more}' if more else ""
        return [f'calls: {opener} " "? "[" called {following} "]"']
    if dialect == HERMES:
        following = f'("\\n" call){more}' if more else ""
        call = f'call: {opener} "\\n" called "\\n" {words[dialect.closer]}'
        return [f"calls: call {following}", call]
    return [f"calls: called {f'called{more}' if more else ''}"]


def _called(name: str, dialect: Dialect, words: Mapping[str, str], arguments: str) -> str:
    """Return what one call consists of."""
    if "[ARGS]" in words and dialect != MISTRAL:
        return f"{words[dialect.marker]} {json.dumps(name)} {words['[ARGS]']} {arguments}"
    key = "parameters" if dialect == LLAMA else "arguments"
    opening = f'{{"name": "{name}", "{key}": '
    return f'{json.dumps(opening)} {arguments} "}}"'


def _word(word: str, tokens: Mapping[str, int]) -> str:
    return f"<[{tokens[word]}]>" if word in tokens else json.dumps(word)


def _schema(function: Callable) -> str:
    return json.dumps({"type": "object"} | function.schema | {"x-guidance": WHITESPACE})


def _at_fault(fault: str, rules: list[str], functions: Sequence[Callable]) -> InvalidRequest:
    """Return the error for a fault: of the schema in whose rule it is, or of all together."""
    place, why = _PLACE.match(fault), _PLACE.sub("", fault)
    line = int(place[1]) if place else 0
    rule = _ARGUMENTS.match(rules[line - 1]) if 0 < line <= len(rules) else None
    if rule is None or "too big" in why:  # sizes add up
        return _wrong("tools: forcing their calls", why)
    return _wrong(functions[int(rule[1])].where, why)


def _wrong(where: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"{where}: {why}", param="tools")
