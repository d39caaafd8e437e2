"""Whose turn it is."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from blitzgw.scheduler import fairness
from blitzgw.scheduler.fairness import Account, FairQueue, due_s


@dataclass(eq=False)
class Item:
    account: Account
    arrival: int
    priority: int = 0
    tokens: list[int] = field(default_factory=lambda: [1] * 10)
    due_s: float = 0.0

    @property
    def turn(self):
        return self.priority, self.due_s, self.arrival


class Line:
    """A queue whose items are named by their arrival."""

    def __init__(self):
        self.queue: FairQueue[Item] = FairQueue()
        self.n = 0

    def push(self, tenant: str, priority: int = 0, cost: int = 10, due_s: float = 0.0) -> Item:
        self.n += 1
        item = Item(self.queue.account(tenant), self.n, priority, [1] * cost, due_s)
        self.queue.push(item)
        return item

    def pop(self) -> Item:
        item = self.queue.peek()
        self.queue.remove(item)
        item.account.charged += len(item.tokens)
        return item

    def order(self) -> list[int]:
        return [self.pop().arrival for _ in range(len(self.queue))]


def test_within_a_tenant_what_is_due_first():
    line = Line()
    for at_s in (3.0, 1.0, 2.0, 1.0):
        line.push("a", due_s=at_s)
    assert [item.arrival for item in line.queue.in_order()] == [2, 4, 3, 1]
    assert line.order() == [2, 4, 3, 1]


def test_a_short_prompt_is_due_before_a_long_one_but_not_for_ever():
    assert due_s(1.0, 100, 1000.0) < due_s(0.9, 1000, 1000.0) < due_s(6.0, 1, 1000.0)
    assert due_s(1.0, 1000, None) == 1.0  # nothing is measured: first come, first served


def test_what_is_due_at_once_goes_first_come_first_served():
    line = Line()
    for _ in range(4):
        line.push("a")
    assert line.order() == [1, 2, 3, 4]


def test_lower_priority_first_whoever_asks():
    line = Line()
    line.push("a", 1)
    line.push("a", 0)
    line.push("b", -1)
    assert line.order() == [3, 2, 1]


def test_a_burst_does_not_push_others_back():
    line = Line()
    for _ in range(3):
        line.push("a")
    line.push("b")
    line.push("b")
    assert line.order() == [1, 4, 2, 5, 3]


def test_idling_saves_nothing_up():
    line = Line()
    line.push("b")
    line.pop()
    for _ in range(20):
        line.push("a")
    for _ in range(10):
        line.pop()
    for _ in range(4):
        line.push("b")
    assert [line.pop().account.name for _ in range(6)] in (list("ababab"), list("bababa"))


def test_who_comes_to_an_empty_queue_starts_where_the_last_one_left():
    line = Line()
    item = line.push("a")
    line.pop()
    item.account.charged += 990  # its output
    assert line.push("b").account.charged == 1000


def test_the_preempted_go_in_front_of_their_tenant():
    line = Line()
    first = line.push("a")
    line.push("a")
    line.queue.remove(first)
    line.queue.push(first)
    assert line.order() == [1, 2]


def test_removing_leaves_no_trace():
    line = Line()
    item, other = line.push("a", 3), line.push("b")
    line.queue.remove(item)
    assert (len(line.queue), line.queue.tokens, line.queue.items()) == (1, 10, [other])
    assert line.order() == [2]
    assert line.queue.peek() is None


def test_strangers_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(fairness, "MAX_IDLE_ACCOUNTS", 8)
    line = Line()
    running = line.push("kept")
    line.pop()
    for i in range(100):
        line.push(f"t{i}")
        line.pop()
    assert len(line.queue._accounts) <= 8
    line.queue.push(running)  # its account may have been forgotten meanwhile
    assert line.queue.peek() is running
    assert line.order() == [1]


@given(
    costs=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=5, max_size=40),
    start=st.integers(0, 500),
)
def test_service_of_two_backlogged_tenants_differs_by_one_request_at_most(costs, start):
    line = Line()
    line.queue.account("a").charged = start
    for a, b in costs:
        line.push("a", cost=a)
        line.push("b", cost=b)
    served = {"a": 0, "b": 0}
    base = {name: line.queue.account(name).charged for name in served}
    head_start = max(base.values()) - min(base.values())
    while all(line.queue.account(name).waiting for name in served):
        item = line.pop()
        served[item.account.name] += len(item.tokens)
        assert abs(served["a"] - served["b"]) <= 50 + head_start
