"""From TOML tables to frozen dataclasses, collecting every mistake instead of stopping at one.

A field says what it accepts by its annotation: `Annotated[int, Meta(ge=1, description=…), parse]`.
The description completes the sentence "VALUE is not …", so it tells what would be right; `parse`,
if there is one, turns what was written into what is then checked. The value of a field with
`repr=False` is a secret and never part of a message.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec
from msgspec import Meta

from blitzgw.errors import ConfigError

T = TypeVar("T")

_KINDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


class Mistakes:
    """What is wrong in one source. `options` maps a key to the option that has set it instead."""

    def __init__(self, source: str, options: dict[str, str] | None = None) -> None:
        self.source = source
        self.options = options or {}
        self.problems: list[str] = []
        self._keys: list[str] = []

    def add(self, key: str, text: str, source: str | None = None) -> None:
        """Note a mistake at `key`: what is wrong and what would be right.

        `source` names where the value came from, if neither file nor option.
        """
        keys = [at for at in self.options if _within(key, at)]
        option = self.options[max(keys, key=len)] if keys else None
        self.problems.append(f"{source or option or f'{self.source}: {key}'}: {text}")
        self._keys.append(key)

    def under(self, key: str) -> bool:
        """Say whether anything at or below `key` is already known to be wrong."""
        return any(_within(wrong, key) for wrong in self._keys)

    def raise_if_any(self) -> None:
        """Raise `ConfigError` with everything noted."""
        if self.problems:
            raise ConfigError(self.problems)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; raises `ConfigError` naming file, and line where the syntax is wrong."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path}: not valid TOML: {error}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: byte {error.start} is not UTF-8; save it as UTF-8"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None


def read_table(kind: type[T], table: object, key: str, mistakes: Mistakes) -> T:
    """Turn one table into the dataclass `kind`. A field that is wrong keeps its default.

    One that has none is then empty, as it is where it is missing.
    """
    hints = get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    required = [name for name, field in fields.items() if _is_required(field)]
    values = {name: _empty(hints[name]) for name in required}
    if not isinstance(table, dict):
        mistakes.add(key, f"{_shown(table)} is not a table; write it as {_table_form(key)}")
        return kind(**values)
    check_names(table, fields, key, mistakes)
    for name in required:
        if name not in table:
            mistakes.add(f"{key}.{name}", f"is missing; it is to be {_description(hints[name])}")
    for name in [name for name in table if name in fields]:
        where = f"{key}.{name}"
        try:
            values[name] = _read_field(fields[name], hints[name], table[name], where, mistakes)
        except ValueError as error:
            mistakes.add(where, str(error))
    return kind(**values)


def read_array(kind: type[T], tables: object, key: str, mistakes: Mistakes) -> list[T]:
    """Turn an array of tables into dataclasses.

    An array that was left out is one table of defaults; an empty one is empty.
    """
    if tables is None:
        return [kind()]
    if not isinstance(tables, list):
        text = f"write it as one or more [[{key}]], as {key} = [] for none"
        mistakes.add(key, f"{text}, or leave it out for the default")
        return [kind()]
    return [read_table(kind, table, f"{key}[{i}]", mistakes) for i, table in enumerate(tables)]


def check_names(table: dict[str, Any], known: Iterable[str], key: str, mistakes: Mistakes) -> None:
    """Note every name of `table` that is not `known`, with the nearest that is."""
    names = list(known)
    for name in table:
        if name not in names:
            where = f"{key}.{name}" if key else name
            mistakes.add(where, f"is not known; {nearest(name, names)}")


def nearest(name: str, names: Iterable[str]) -> str:
    """Say which of `names` was probably meant, or list them all."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"?' if close else f"known here: {', '.join(sorted(names))}"


def _read_field(
    field: dataclasses.Field[Any], hint: Any, value: object, where: str, mistakes: Mistakes
) -> Any:
    """Return what a field is given; raises ValueError where it cannot be that."""
    if dataclasses.is_dataclass(hint):
        return read_table(hint, value, where, mistakes)  # type: ignore[arg-type]
    kind = _entry_kind(hint)
    if kind is not None and isinstance(value, list):
        return tuple(
            read_table(kind, entry, f"{where}[{i}]", mistakes) for i, entry in enumerate(value)
        )
    return _read_value(field, hint, value)


def _entry_kind(hint: Any) -> type | None:
    """Return the dataclass of which the field has a list, if it is such a field."""
    arguments = get_args(getattr(hint, "__origin__", hint))
    kind = arguments[0] if arguments else None
    return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None


def _is_required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _empty(hint: Any) -> Any:
    return getattr(hint, "__origin__", hint)()


def _table_form(key: str) -> str:
    return "{ … }" if key.endswith("]") and "." in key else f"[{key}]"


def _read_value(field: dataclasses.Field[Any], hint: Any, value: object) -> Any:
    parsed = value
    for parse in filter(callable, getattr(hint, "__metadata__", ())):
        parsed = parse(value)
    try:
        return msgspec.convert(parsed, hint)
    except msgspec.ValidationError:
        shown = _shown(value) if field.repr else "the value"
        raise ValueError(f"{shown} is not {_description(hint)}") from None


def _description(hint: Any) -> str:
    for extra in getattr(hint, "__metadata__", ()):
        if isinstance(extra, Meta) and extra.description:
            return extra.description
    return _KINDS.get(hint, str(hint))


def _shown(value: object) -> str:
    text = f'"{value}"' if isinstance(value, str) else str(value)
    text = {"True": "true", "False": "false"}.get(text, text)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _within(key: str, parent: str) -> bool:
    return key == parent or key.startswith((f"{parent}.", f"{parent}["))
