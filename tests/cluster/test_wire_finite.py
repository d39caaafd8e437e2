"""Numbers that are none do not get past the wire, where they would become deadlines."""

import math
from dataclasses import replace

import pytest

from blitzgw.core.finite import finite_check, is_rate, lease_within
from blitzgw.core.operation import Claim, EdgeNews, EdgeOrder, Engage, Renew
from blitzgw.core.probe import ProbeDone
from blitzgw.errors import ProtocolError
from blitzgw.wire import PEER_MESSAGES, dump, parse

BAD = [math.nan, math.inf, -math.inf]
ORDER = EdgeOrder("e", "a/g", "b/g", "net", "h", 1, (0,), b"k" * 32, 5.0)
ENGAGE = Engage("o", 1, "m", "d", "w", (ORDER, ORDER))


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    "make",
    [
        lambda bad: Claim("o", "g", 1, "m", "d", bad),
        lambda bad: EdgeNews("o", 1, "e", 5, delayed_s=bad),
        lambda bad: replace(ENGAGE, lease_s=bad),
        lambda bad: replace(ENGAGE, edges=(ORDER, replace(ORDER, rate_bytes_per_s=bad))),
    ],
    ids=["claim", "edge", "lease", "rate of the second edge"],
)
def test_a_message_with_a_number_that_is_none_is_refused(make, bad):
    with pytest.raises(ProtocolError, match="not finite"):
        parse(dump(make(bad)), PEER_MESSAGES)


@pytest.mark.parametrize("message", [ENGAGE, Claim("o", "g", 1, "m", "d", -1.0), Renew("o")])
def test_others_pass(message):
    assert parse(dump(message), PEER_MESSAGES) == message


def test_all_places_of_a_type_are_looked_at():
    check = finite_check(dict[str, tuple[list[float] | None, ...]])
    assert check({"a": (None, [1.0]), "b": ()})
    assert not check({"a": (None, [1.0]), "b": ([2.0, math.nan],)})
    pair = finite_check(tuple[str, float])
    assert pair(("a", 1.0))
    assert not pair(("a", math.inf))
    assert finite_check(tuple[str, int]) is None
    assert finite_check(Renew) is None
    assert finite_check(ProbeDone)


def test_leases_and_rates():
    assert [lease_within(s, 60.0, 5.0) for s in (3.0, 1e9, math.inf)] == [3.0, 60.0, 60.0]
    assert [lease_within(s, 60.0, 5.0) for s in (0.0, -1.0, math.nan)] == [5.0] * 3
    assert [is_rate(rate) for rate in (1.0, 0.0, -1.0, *BAD)] == [True] + [False] * 5
