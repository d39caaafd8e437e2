"""Arrivals from traces: two formats, told apart by their content; a window; more of it, or less.

    Azure       CSV with the columns TIMESTAMP, ContextTokens, GeneratedTokens, and perhaps more
    Mooncake    JSON lines: timestamp (ms), input_length, output_length, and hash_ids: one for each
                512 tokens of the prompt, the last one begun only; equal ids are an equal prefix

Times count from a trace's earliest row; rows need not be in order. Whatever cannot be meant raises
ConfigError, with file and line.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from blitzgw.errors import ConfigError
from blitzgw.sim.evaluation.arrivals import Arrival

BLOCK_TOKENS = 512
"""Of a Mooncake trace's blocks."""

JITTER_S = 1.0
"""Replicas of a request come within so much of it, so that they are no burst of their own."""

MAX_TOKENS = 1 << 24
"""Of a prompt or an answer: no model takes as many; a row that says more is damaged."""

MAX_TOLD = 5
"""Bad rows that are told one by one: a file of another format has nothing else."""

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MOONCAKE_KEYS = ("timestamp", "input_length", "output_length")

Row = tuple[float, int, int, tuple[int, ...]]
"""When, from any fixed moment on; tokens of the prompt and of the answer; blocks."""


def load(
    file: Path,
    window: tuple[float, float] | None = None,
    factor: float = 1.0,
    seed: int = 1,
    spread_s: float = 0.0,
) -> list[Arrival]:
    """Return `factor` times what arrives in a window of a trace, by default in all of it.

    With `spread_s` each row comes at any moment of so many seconds from its time on: for traces
    whose clock only ticks (Mooncake's: 3 s), where many would come at one moment.
    """
    rows = spread(read_trace(file), spread_s, seed)
    start_s, stop_s = window or (0.0, math.nextafter(rows[-1].at_s, math.inf))
    chosen = scaled(in_window(rows, start_s, stop_s), factor, seed, stop_s - start_s)
    if not chosen:
        raise ConfigError([f"{file}: a factor of {factor:g} leaves nothing of this window"])
    return chosen


def read_trace(file: Path) -> list[Arrival]:
    """Return all that a trace has, sorted by time; the first comes at 0."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ConfigError([f"{file}: cannot be read: {error}"]) from None
    head = text.lstrip().partition("\n")[0]
    if head.startswith("{"):
        rows = _collected(file, _numbered_lines(text), _mooncake_row)
    elif set(AZURE_COLUMNS) <= set(head.strip().split(",")):
        rows = _collected(file, _numbered_records(text), _azure_row)
    else:
        raise ConfigError(
            [
                f"{file}:1: neither a CSV with the columns {', '.join(AZURE_COLUMNS)}, nor JSON"
                f" lines with {', '.join(MOONCAKE_KEYS)}"
            ]
        )
    rows.sort(key=lambda row: row[0])
    return [Arrival(row[0] - rows[0][0], *row[1:]) for row in rows]


def in_window(arrivals: Sequence[Arrival], start_s: float, stop_s: float) -> list[Arrival]:
    """Return what arrives in `[start_s, stop_s)`, counted from `start_s`."""
    if not 0 <= start_s < stop_s:
        raise ConfigError([f"window {start_s:g}:{stop_s:g}: a start from 0 on, and a later stop"])
    found = [
        Arrival(one.at_s - start_s, one.prompt_tokens, one.output_tokens, one.blocks)
        for one in arrivals
        if start_s <= one.at_s < stop_s
    ]
    if not found:
        last_s = max((one.at_s for one in arrivals), default=0.0)
        raise ConfigError(
            [f"window {start_s:g}:{stop_s:g}: nothing in it; the last row comes at {last_s:.1f} s"]
        )
    return found


def scaled(arrivals: Sequence[Arrival], factor: float, seed: int, window_s: float) -> list[Arrival]:
    """Return `factor` times as many: each stays, or goes, or has replicas near to it.

    Replicas keep lengths. The n-th replicas share prefixes with one another as the originals do,
    and none with these: another crowd of users, not the same ones asking the same again, which a
    prefix cache would answer for nothing.
    """
    if not 0 < factor < math.inf:
        raise ConfigError([f"factor {factor}: a number above 0"])
    dice = random.Random(f"arrivals {seed}")  # noqa: S311  repeatable
    stride = _stride(arrivals)
    made: list[Arrival] = []
    for one in arrivals:
        count = int(factor) + (dice.random() < factor % 1)
        for number in range(count):
            made.append(_replica(one, number * stride, dice, window_s) if number else one)
    return sorted(made, key=lambda one: one.at_s)


def repeated(arrivals: Sequence[Arrival], window_s: float, until_s: float) -> Iterator[Arrival]:
    """Yield a window again and again, until `until_s`: long runs from short traces.

    Each round has prefixes of its own, as replicas have. Raises ValueError for a window that would
    make no headway.
    """
    if window_s <= 0:
        raise ValueError(f"a window of {window_s} s")
    stride = _stride(arrivals)
    turn = 0
    while arrivals and turn * window_s < until_s:
        for one in arrivals:
            at_s = one.at_s + turn * window_s
            if at_s >= until_s:
                return
            yield _shifted(one, at_s, turn * stride)
        turn += 1


def spread(arrivals: Sequence[Arrival], spread_s: float, seed: int) -> Sequence[Arrival]:
    """Return the same, each at any moment of so many seconds from its time on."""
    if not spread_s:
        return arrivals
    if not 0 < spread_s < math.inf:
        raise ConfigError([f"spread {spread_s}: a number of seconds from 0 on"])
    dice = random.Random(f"spread {seed}")  # noqa: S311  repeatable
    moved = (_shifted(one, one.at_s + spread_s * dice.random(), 0) for one in arrivals)
    return sorted(moved, key=lambda one: one.at_s)


def _replica(one: Arrival, by: int, dice: random.Random, window_s: float) -> Arrival:
    earliest_s, latest_s = max(0.0, one.at_s - JITTER_S), min(window_s, one.at_s + JITTER_S)
    return _shifted(one, dice.uniform(earliest_s, latest_s), by)


def _shifted(one: Arrival, at_s: float, by: int) -> Arrival:
    blocks = tuple(block + by for block in one.blocks) if by else one.blocks
    return Arrival(at_s, one.prompt_tokens, one.output_tokens, blocks)


def _stride(arrivals: Sequence[Arrival]) -> int:
    """Return by how much ids of blocks are moved, so that none is met again."""
    return 1 + max((max(one.blocks) for one in arrivals if one.blocks), default=0)


def _collected(
    file: Path, rows: Iterable[tuple[int, Any]], parse: Callable[[Any], Row]
) -> list[Row]:
    """Parse all rows; tell of several bad ones at once."""
    found: list[Row] = []
    problems: list[str] = []
    for line, row in rows:
        try:
            found.append(parse(row))
        except (ValueError, TypeError) as error:
            problems.append(f"{file}:{line}: {error}")
            if len(problems) == MAX_TOLD:
                problems.append(f"{file}: and perhaps more")
                break
    if not found and not problems:
        problems.append(f"{file}: no rows")
    if problems:
        raise ConfigError(problems)
    return found


def _numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line


def _numbered_records(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the columns that matter of each row, as far as it has them."""
    lines = _numbered_lines(text)
    head = next(lines)[1].strip().split(",")
    columns = [head.index(name) for name in AZURE_COLUMNS]
    for number, line in lines:
        fields = line.strip().split(",")
        yield number, [fields[column] if column < len(fields) else "" for column in columns]


def _azure_row(row: Sequence[str]) -> Row:
    at, prompt, output = row
    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        raise ValueError(f"TIMESTAMP {at!r}: such as 2023-11-16 18:17:03.9799600") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)  # a local time zone may have hours twice
    tokens = _count("ContextTokens", prompt), _count("GeneratedTokens", output)
    return moment.timestamp(), *tokens, ()


def _mooncake_row(line: str) -> Row:
    try:
        row = orjson.loads(line)
        at_ms, prompt, output = (row[key] for key in MOONCAKE_KEYS)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"a JSON object with {', '.join(MOONCAKE_KEYS)}") from None
    if type(at_ms) not in (int, float):
        raise ValueError(f"timestamp {at_ms!r}: milliseconds")
    tokens = _count("input_length", prompt), _count("output_length", output)
    return at_ms / 1e3, *tokens, _blocks(row.get("hash_ids"), tokens[0])


def _blocks(ids: Any, prompt_tokens: int) -> tuple[int, ...]:
    """Check ids of blocks: as many as the prompt has, the last of which may be begun only."""
    if not ids:
        return ()
    needed = -(-prompt_tokens // BLOCK_TOKENS)
    if type(ids) is not list or not all(type(one) is int and one >= 0 for one in ids):
        raise ValueError("hash_ids: a list of integers from 0 on")
    if len(ids) != needed:
        raise ValueError(f"hash_ids: {needed} for {prompt_tokens} tokens, not {len(ids)}")
    return tuple(ids)


def _count(name: str, value: Any) -> int:
    """Return a number of tokens; 0 counts as 1: nothing can be asked with less."""
    try:
        count = int(value) if isinstance(value, str) else value
    except ValueError:
        count = None
    if type(count) is not int or not 0 <= count <= MAX_TOKENS:
        raise ValueError(f"{name} {value!r}: an integer from 0 to {MAX_TOKENS}")
    return max(1, count)
