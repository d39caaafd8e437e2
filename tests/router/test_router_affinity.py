"""What a router remembers of where prompts have been."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.router.affinity import (
    MAX_HOLDERS,
    MAX_SPANS,
    SPAN_TOKENS,
    PrefixMemory,
    SessionMemory,
    name_prefixes,
)


def prompt(*parts):
    """Spans by their numbers, and what is left over as single tokens."""
    return tuple(token for part in parts for token in [part] * SPAN_TOKENS)


def names(*parts, salt=("m", "")):
    return name_prefixes(prompt(*parts), salt)


def test_prefixes_are_named_at_their_ends():
    assert len(name_prefixes(prompt(1, 2)[:-1], ("m",))) == 1
    assert len(names(1, 2)) == 2
    assert len(names(*range(MAX_SPANS + 5))) == MAX_SPANS
    assert names(1, 2, 3)[:2] == names(1, 2, 4)[:2]
    assert names(1, 2, 3)[2] != names(1, 2, 4)[2]
    assert names(5, 2)[1] != names(6, 2)[1]  # what comes before is a part of it
    assert not set(names(1, 2)) & set(names(1, 2, salt=("m", "tenant")))


def test_the_longest_prefix_counts():
    memory = PrefixMemory()
    assert memory.cached(names(1)) == {}
    memory.note(names(1, 2, 3), 7)
    memory.note(names(1, 2), 8)
    memory.note(names(1), 9)
    spans = {7: 3, 8: 2, 9: 1}
    assert memory.cached(names(1, 2, 3, 4)) == {s: n * SPAN_TOKENS for s, n in spans.items()}
    assert memory.cached(names(1, 5)) == dict.fromkeys((7, 8, 9), SPAN_TOKENS)
    assert memory.cached(names(5, 2)) == {}


def test_the_latest_holders_are_remembered():
    memory = PrefixMemory()
    for serial in range(MAX_HOLDERS + 3):
        memory.note(names(1), serial)
    assert sorted(memory.cached(names(1))) == list(range(3, MAX_HOLDERS + 3))
    memory.note(names(1), 3)
    memory.note(names(1), 99)
    assert 3 in memory.cached(names(1))
    assert 4 not in memory.cached(names(1))


def test_the_ends_of_old_prompts_are_forgotten_first():
    memory = PrefixMemory(capacity=4)
    memory.note(names(1, 2, 3), 1)
    memory.note(names(5, 6), 1)
    assert len(memory) == 4
    assert memory.cached(names(1, 2, 3)) == {1: 2 * SPAN_TOKENS}
    assert memory.cached(names(5, 6)) == {1: 2 * SPAN_TOKENS}


@given(st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=5), st.integers(1, 4)), max_size=20))
@settings(max_examples=80, deadline=None)
def test_a_memory_that_never_forgets_knows_all(noted):
    """With few holders and room enough it tells the same as comparing all prompts."""
    memory = PrefixMemory()
    for parts, serial in noted:
        memory.note(names(*parts), serial)
    for asked, _ in noted:
        expected = {}
        for parts, serial in noted:
            common = 0
            while common < min(len(parts), len(asked)) and parts[common] == asked[common]:
                common += 1
            if common:
                expected[serial] = max(expected.get(serial, 0), common * SPAN_TOKENS)
        assert memory.cached(names(*asked)) == expected


def test_memories_are_bounded():
    memory, sessions, dice = PrefixMemory(100), SessionMemory(10), random.Random(1)
    for number in range(500):
        memory.note(names(dice.randrange(9), dice.randrange(9), number), number % 5)
        sessions.note("m", f"s{number}", 1, 100)
        assert len(memory) <= 100
        assert len(sessions) <= 10
    assert sessions.place("m", "s499") == (1, 100)
    assert sessions.place("m", "s489") is None
    assert sessions.place("other", "s499") is None


def test_a_session_that_is_used_is_not_forgotten():
    sessions = SessionMemory(3)
    for number in range(20):
        sessions.note("m", "kept", number, number)
        sessions.note("m", f"s{number}", 1, 1)
    assert sessions.place("m", "kept") == (19, 19)
