"""Numbers as others have sent them: finite ones, leases that end, rates that a port can have.

A comparison with a NaN is false, so that a deadline made of one never passes and an infinite rate
is never used up. MessagePack carries both, and JSON's readers mostly do too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

Check = Callable[[Any], bool]


def lease_within(lease_s: float, most_s: float, usual_s: float) -> float:
    """Return a lease as it is granted: at most `most_s`, `usual_s` for one that is no duration."""
    return min(lease_s, most_s) if lease_s > 0 else usual_s


def is_rate(bytes_per_s: float) -> bool:
    """Say whether somebody has asked for a rate: neither 0, which is none, nor nonsense."""
    return 0 < bytes_per_s < math.inf


def finite_check(kind: Any) -> Check | None:
    """Return what says of a value of a type whether all its floats are finite.

    For dataclasses, tuples, lists, dicts and unions of them; None where there is no float in them.
    Made once for each type: reading annotations takes long.
    """
    if kind is float:
        return math.isfinite
    if is_dataclass(kind):
        return _check_fields(kind)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _check_union([arg for arg in args if arg is not NoneType])
    if origin is dict:
        return _each(finite_check(args[1]), dict.values)
    if origin is tuple and Ellipsis not in args:
        places = [(i, check) for i, arg in enumerate(args) if (check := finite_check(arg))]
        return _all_of(places, lambda values, i: values[i]) if places else None
    if origin in (tuple, list, frozenset):
        return _each(finite_check(args[0]), iter)
    return None


def _each(check: Check | None, values: Callable[[Any], Iterable[Any]]) -> Check | None:
    return None if check is None else lambda value: all(map(check, values(value)))


def _check_fields(kind: Any) -> Check | None:
    hints = get_type_hints(kind)
    fields = [(name, check) for name, hint in hints.items() if (check := finite_check(hint))]
    return _all_of(fields, getattr) if fields else None


def _all_of(places: list[tuple[Any, Check]], at: Callable[[Any, Any], Any]) -> Check:
    return lambda value: all(check(at(value, place)) for place, check in places)


def _check_union(kinds: list[Any]) -> Check | None:
    """Return a check by the class of the value: of a union, no two kinds are of one class."""
    checks = {get_origin(kind) or kind: finite_check(kind) for kind in kinds}
    if not any(checks.values()):
        return None

    def check(value: Any) -> bool:
        chosen = checks.get(type(value))
        return chosen is None or chosen(value)

    return check
