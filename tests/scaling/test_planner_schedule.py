"""The binomial pipeline's steps against the figures of the algorithm."""

from __future__ import annotations

import pytest

from blitzgw.scaling.planner.binomial import rotated
from blitzgw.scaling.planner.schedule import Move, schedule, steps_of

BLOCKS = (1, 2, 3, 5, 8, 13, 16, 31, 48)


@pytest.mark.parametrize("nodes", range(2, 65))
def test_everybody_has_everything_after_exactly_the_steps(nodes: int) -> None:
    dims = nodes.bit_length() - 1
    for blocks in BLOCKS:
        steps = schedule(nodes, blocks)
        expected = blocks + dims - (nodes == 1 << dims)
        assert len(steps) == steps_of(nodes, blocks) == expected
        has = run(steps, nodes, blocks)
        assert all(len(held) == blocks for held in has)
        assert steps[-1], "the last step moves something"


def run(steps: list[list[Move]], nodes: int, blocks: int) -> list[set[int]]:
    """Follow the moves; each step reads what was there at its start and uses each port once."""
    has: list[set[int]] = [set() for _ in range(nodes)]
    has[0] = set(range(blocks))
    for moves in steps:
        assert len({sender for sender, _, _ in moves}) == len(moves)
        assert len({receiver for _, receiver, _ in moves}) == len(moves)
        assert all(block in has[sender] for sender, _, block in moves)
        for _, receiver, block in moves:
            assert block not in has[receiver]
            has[receiver].add(block)
    return has


@pytest.mark.parametrize(("nodes", "blocks"), [(0, 4), (1, 4), (5, 0)])
def test_nothing_to_move_takes_no_steps(nodes: int, blocks: int) -> None:
    assert schedule(nodes, blocks) == []


@pytest.mark.parametrize(
    ("k", "covered", "led", "done"), [(1, 16, 18, 18), (2, 8, 9, 17), (4, 4, 4, 16)]
)
def test_k_way_takes_the_steps_of_the_table(k: int, covered: int, led: int, done: int) -> None:
    """8 nodes, 16 blocks; of k = 1 the source is one of the 8, of k groups each has a source."""
    nodes, blocks = 8, 16
    group = nodes // k
    orders = [rotated(range(blocks), index, k) for index in range(k)]
    steps = schedule(group, blocks)
    union_at = led_at = done_at = 0
    held = [[set[int]() for _ in range(group)] for _ in range(k)]
    for number, moves in enumerate(steps, 1):
        for order, groups in zip(orders, held, strict=True):
            for _, receiver, block in moves:
                groups[receiver].add(order[block])
        union = set().union(*(blobs for groups in held for blobs in groups))
        one_each = any(
            len(set().union(*(groups[place] for groups in held))) == blocks
            for place in range(1, group)
        )
        union_at = union_at or (number if len(union) == blocks else 0)
        led_at = led_at or (number if one_each else 0)
        everywhere = all(len(b) == blocks for groups in held for b in groups[1:])
        done_at = done_at or (number if everywhere else 0)
    assert (union_at, led_at, done_at) == (covered, led, done)


def test_groups_start_at_their_own_parts() -> None:
    assert rotated(range(5), 0, 2) == [0, 1, 2, 3, 4]
    assert rotated(range(5), 1, 2) == [3, 4, 0, 1, 2]
    assert rotated(range(2), 3, 4) == [0, 1]
    assert sorted(rotated(range(7), 2, 3)) == list(range(7))
