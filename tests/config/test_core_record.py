"""Records: dataclasses that are frozen for type checkers only."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from blitzgw.core.record import record


@record(frozen=True, slots=True)
class Point:
    """For these tests."""

    x: int
    y: int = 0


def test_a_record_is_a_dataclass_with_slots() -> None:
    point = Point(1, y=2)
    assert (point, repr(point)) == (Point(1, 2), "Point(x=1, y=2)")
    assert replace(point, y=3) == Point(1, 3) != point
    assert [field.name for field in fields(Point)] == ["x", "y"]
    with pytest.raises(AttributeError):
        point.z = 1  # type: ignore[attr-defined]


def test_equal_records_have_one_hash() -> None:
    assert len({Point(1), Point(1, 0), Point(0, 1)}) == 2
