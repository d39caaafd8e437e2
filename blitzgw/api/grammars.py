"""From what a client asks of the output's form to a grammar: JSON, JSON of a schema, some texts.

A grammar is what llguidance's matcher takes (core/request.py). Each is compiled here before its
request goes anywhere, over single bytes instead of tokens, so that a client is told what is wrong
with it, and where. Schemas are hostile input: their size and the work that they cost are bounded,
nothing that they refer to is fetched, and they are compiled on one thread beside the event loop.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from functools import cache, lru_cache, partial
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

import msgspec

from blitzgw.api.bodies import GenerationBody, ResponseFormat, StructuredOutputs
from blitzgw.core.request import MAX_GRAMMAR_BYTES
from blitzgw.engine.grammar import deeply, parser_limits, short
from blitzgw.errors import InvalidRequest, Overloaded

if TYPE_CHECKING:
    from llguidance import LLTokenizer

WHITESPACE = r"[\x20\x0A\x0D\x09]{1,64}"
"""Between the parts of a JSON text: enough for indented ones, not so much that a model which likes
blanks writes nothing else."""

MAX_CHECKED = 64
"""Grammars whose faults are remembered, with their text: the same ones come again and again."""

MAX_MULTIPLE = 20_000
"""What all `multipleOf` of a schema may have as their least common multiple, in significant digits.
llguidance looks through as many remainders, 10 µs each, and its limits know nothing of them."""

RESPONSE_FORMAT, STRUCTURED_OUTPUTS = "response_format", "structured_outputs"

MAX_WAITING = 32
"""Requests whose grammars wait to be compiled: 13 s of the worst of them. Others come back."""


class Compiler:
    """One thread beside the event loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "grammars")
        self._waiting = 0

    async def run(self, make: Callable[[], str]) -> str:
        """Return the grammar that `make` makes; raises Overloaded, and what that raises."""
        if self._waiting >= MAX_WAITING:
            raise Overloaded("too many output formats wait to be compiled", retry_after_s=1.0)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, make)
        finally:
            self._waiting -= 1


COMPILER = Compiler()


async def read_grammar(body: GenerationBody, eos_ids: Sequence[int]) -> str:
    """Return the grammar that a body asks for, empty where it asks for none.

    Raises InvalidRequest, also for a model that has no token to end such an output with, and
    Overloaded.
    """
    wanted = [
        (name, make)
        for name, make in (
            (RESPONSE_FORMAT, _of_format(body.response_format)),
            (STRUCTURED_OUTPUTS, _of_outputs(body.structured_outputs)),
        )
        if make is not None
    ]
    if not wanted:
        return ""
    name, make = wanted[-1]
    if len(wanted) > 1:
        raise InvalidRequest(f"{name} and {wanted[0][0]} exclude each other", param=name)
    if not eos_ids:
        raise InvalidRequest(f"{name}: this model has no token that ends an output", param=name)
    return await COMPILER.run(make)


def json_object_grammar(param: str = RESPONSE_FORMAT) -> str:
    """Return the grammar of any JSON object; see `json_schema_grammar`."""
    return json_schema_grammar({"type": "object"}, param)


def json_schema_grammar(schema: object, param: str = RESPONSE_FORMAT) -> str:
    """Return the grammar of the JSON texts that satisfy a schema.

    Takes 1 ms, and up to 0.4 s for what somebody has made for that: not on the event loop. Raises
    InvalidRequest, which names the field `param`, for what is no schema, is not supported, takes
    more than MAX_GRAMMAR_BYTES or costs too much.
    """
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{param}: a JSON schema is an object", param=param)
    try:
        text = msgspec.json.encode(schema).decode()
        _check_size(text, param)
        check_multiples(schema, param)
        grammar = _llguidance(param).LLMatcher.grammar_from_json_schema(
            text, overrides={"lenient": False, "whitespace_pattern": WHITESPACE}
        )
    except (ValueError, RecursionError) as error:  # of more levels than its parser takes
        raise InvalidRequest(f"{param}: {short(str(error))}", param=param) from None
    return checked_grammar(grammar, param)


def choice_grammar(texts: Sequence[str], param: str = STRUCTURED_OUTPUTS) -> str:
    """Return the grammar of exactly these texts; see `json_schema_grammar`."""
    if not texts or "" in texts:
        raise InvalidRequest(f"{param}: choice needs texts, none of them empty", param=param)
    text = msgspec.json.encode(texts).decode()
    _check_size(text, param)
    return checked_grammar(_llguidance(param).grammar_from("choice", text), param)


def _of_format(wanted: ResponseFormat | None) -> Callable[[], str] | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return json_object_grammar
    if wanted.type != "json_schema":
        raise InvalidRequest(
            "response_format.type must be text, json_object or json_schema", param=RESPONSE_FORMAT
        )
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        raise InvalidRequest("response_format.json_schema.schema is missing", param=RESPONSE_FORMAT)
    return partial(json_schema_grammar, wanted.json_schema.schema)


def _of_outputs(wanted: StructuredOutputs | None) -> Callable[[], str] | None:
    if wanted is None:
        return None
    makes: list[Callable[[], str]] = []
    if wanted.json is not None:
        makes.append(partial(_schema_or_text, wanted.json))
    if wanted.json_object:
        makes.append(partial(json_object_grammar, STRUCTURED_OUTPUTS))
    if wanted.choice is not None:
        makes.append(partial(choice_grammar, wanted.choice))
    others = [wanted.regex, wanted.grammar, wanted.structural_tag]
    if len(makes) != 1 or any(other is not None for other in others):
        raise InvalidRequest(
            "structured_outputs must have one of json, json_object and choice, and nothing else",
            param=STRUCTURED_OUTPUTS,
        )
    return makes[0]


def _schema_or_text(schema: object) -> str:
    """Return the grammar of a schema that may be in a string."""
    if isinstance(schema, str):
        try:
            schema = msgspec.json.decode(schema)
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidRequest(
                f"structured_outputs.json is not valid JSON: {error}", param=STRUCTURED_OUTPUTS
            ) from None
    return json_schema_grammar(schema, STRUCTURED_OUTPUTS)


def _check_size(text: str, param: str) -> None:
    size = len(text.encode())
    if size > MAX_GRAMMAR_BYTES:
        raise InvalidRequest(
            f"{param} takes {size} bytes, at most {MAX_GRAMMAR_BYTES} are allowed", param=param
        )


def check_multiples(schema: object, param: str) -> None:
    """Raise InvalidRequest for a schema whose numbers are multiples of too large ones."""
    common = 1
    for value in _multiples(schema):
        digits = "".join(map(str, Decimal(str(value)).as_tuple().digits)).strip("0")
        common = math.lcm(common, int(digits or "1"))
        if common > MAX_MULTIPLE:
            raise InvalidRequest(
                f"{param}: the least common multiple of each multipleOf, without trailing zeros "
                f"and points, is {common} or more; at most {MAX_MULTIPLE} is allowed",
                param=param,
            )


def _multiples(schema: object) -> Iterator[int | float]:
    todo = [schema]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            todo += value.values()
            wanted = value.get("multipleOf")
            if isinstance(wanted, int | float) and wanted > 0:
                yield wanted
        elif isinstance(value, list):
            todo += value


def checked_grammar(grammar: str, param: str) -> str:
    """Return a grammar that can be compiled within bounds, and has a text; raises InvalidRequest.

    Not on the event loop either.
    """
    _check_size(grammar, param)
    fault = fault_of(grammar)
    if fault:
        raise InvalidRequest(f"{param}: {fault}", param=param)
    return grammar


@lru_cache(MAX_CHECKED)
def fault_of(grammar: str) -> str:
    """Return what is wrong with a grammar over bytes; empty: nothing is."""

    def compiled() -> LLMatcher:
        return LLMatcher(_bytes(), grammar, log_level=0, limits=parser_limits())

    from llguidance import LLMatcher  # noqa: PLC0415

    try:
        matcher = deeply(compiled)
    except TimeoutError as error:
        return str(error)
    if not matcher.is_error():
        matcher.compute_bitmask()
        if matcher.is_error():
            return f"no text satisfies it, or finding one costs too much ({matcher.stop_reason()})"
    return short(matcher.get_error())


@cache
def _bytes() -> LLTokenizer:
    """Return a vocabulary of the 256 bytes and an end."""
    from llguidance import LLTokenizer, TokenizerWrapper  # noqa: PLC0415

    return LLTokenizer(TokenizerWrapper(_Bytes()), slices=[])


class _Bytes:
    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")
    special_token_ids = (256,)

    def __call__(self, text: bytes) -> list[int]:
        return [*text]


def _llguidance(param: str) -> ModuleType:
    """Import llguidance, which takes 0.1 s, for the first who needs it. Raises InvalidRequest."""
    try:
        return import_module("llguidance")
    except ImportError:
        raise InvalidRequest(
            f"{param} needs llguidance, which this node is without (pip install llguidance)",
            param=param,
        ) from None
