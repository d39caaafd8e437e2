from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw import wire
from blitzgw.core.rumours import Digest, Packet, PacketKind, Update
from blitzgw.gossip.rumourmill import Load, Part, RumourMill, encoded_bytes
from tests.gossip.membership_kit import rumour


def update(key, size=10, version=1, boot="b"):
    return Update(boot, key, version, b"x" * size)


def mill_of(*updates):
    mill = RumourMill()
    for u in updates:
        mill.put((u.boot, u.key), Part(u))
    return mill


def drawn(mill, room=10_000, packets=1, limit=4):
    load = Load(room, packets)
    mill.draw(load, limit)
    mill.check_integrity()
    return [[u.key for u in updates] for _, updates in load.packed]


def test_the_newest_goes_first_and_each_goes_so_many_times():
    mill = mill_of(update("a"), update("b"))
    assert drawn(mill, limit=2) == [["b", "a"]]
    mill.put(("b", "c"), Part(update("c")))
    assert drawn(mill, limit=2)[0][0] == "c"
    assert drawn(mill, limit=2) == [["c"]]
    assert len(mill) == 0
    assert drawn(mill) == [[]]


def test_what_was_told_least_goes_first():
    mill = mill_of(update("a", 100), update("b", 100), update("c", 100))
    order = [drawn(mill, room=150)[0][0] for _ in range(6)]
    assert sorted(order[:3]) == sorted(order[3:]) == ["a", "b", "c"]


def test_a_newer_part_takes_the_place_of_an_older_one_and_starts_anew():
    mill = mill_of(update("a"))
    drawn(mill)
    mill.put(("b", "a"), Part(update("a", version=2)))
    assert len(mill) == 1
    assert sum(bool(drawn(mill, limit=3)[0]) for _ in range(5)) == 3


def test_parts_are_spread_over_packets_and_none_twice():
    mill = mill_of(*(update(str(i), 100) for i in range(10)))
    packets = drawn(mill, room=250, packets=3)
    assert [len(p) for p in packets] == [2, 2, 2]
    assert len({key for p in packets for key in p}) == 6


def test_a_small_part_goes_where_a_large_one_does_not_fit():
    mill = mill_of(update("small", 5), update("large", 500))
    assert drawn(mill, room=100) == [["small"]]
    assert drawn(mill, room=1000)[0][0] == "large"


def test_what_is_dropped_is_told_no_more():
    mill = mill_of(update("a"), update("b"))
    drawn(mill)
    mill.drop(("b", "a"))
    mill.drop(("b", "unknown"))
    assert drawn(mill) == [["b"]]


text = st.text(max_size=300)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.builds(Update, text, text, st.integers(0, 1 << 53), st.binary(max_size=700)),
            st.builds(rumour, st.text(min_size=1, max_size=9), name=text, host=text, accuser=text),
        ),
        max_size=40,
    )
)
def test_a_packet_is_never_larger_than_its_parts_were_counted(parts):
    bare = Packet(PacketKind.GOSSIP, 0, Digest("x", 0, 0))
    full = bare._replace(
        rumours=tuple(p for p in parts if not isinstance(p, Update)),
        updates=tuple(p for p in parts if isinstance(p, Update)),
    )
    counted = sum(map(encoded_bytes, parts))
    added = len(wire.dump(full)) - len(wire.dump(bare))
    assert added - 4 <= counted <= added
