"""Which waiting request goes next.

Lower `priority` first; within a priority the tenant that has been served least; within a tenant
what is due first. A prompt is due when it has waited for SLACK times the time that it takes itself:
a short one passes long ones, which would hold it up for many times its own time, and nobody waits
for what comes after he was due. What a tenant has been served is counted in virtual tokens (Sheng
et al., "Fairness in Serving Large Language Models", OSDI '24): a prompt token costs INPUT_WEIGHT,
an output token OUTPUT_WEIGHT, and a tenant that comes back from idleness starts at the least served
of those that wait, so that idling saves nothing up. Between two tenants that both always have
something waiting, service then differs by no more than the cost of what fits into the machine at
once.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sized
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

INPUT_WEIGHT = 1
OUTPUT_WEIGHT = 2
"""An output token reads the whole KV for itself alone; the paper's weights."""

SLACK = 5.0
"""Times a prompt's own time: what an objective of so many times the time alone leaves to wait."""

MAX_IDLE_ACCOUNTS = 1024
"""Tenants remembered while they have nothing here: a stranger's name must not cost memory."""


class Account:
    """What one tenant has been served, in virtual tokens, and how many of its requests wait."""

    __slots__ = ("charged", "name", "waiting")

    def __init__(self, name: str, charged: int) -> None:
        self.name = name
        self.charged = charged
        self.waiting = 0


class Waiting(Protocol):
    """What a queue needs to know of a sequence. `turn` is unique, and begins with `priority`."""

    account: Account
    priority: int

    @property
    def tokens(self) -> Sized:
        """Those known."""

    @property
    def turn(self) -> tuple[int, float, int]:
        """Return its place among its tenant's: the smaller goes first."""


T = TypeVar("T", bound=Waiting)

_turn = attrgetter("turn")


def due_s(now: float, prompt_tokens: int, tokens_per_s: float | None) -> float:
    """Return when a prompt is due that comes now; at once where no rate has been measured."""
    return now + SLACK * prompt_tokens / tokens_per_s if tokens_per_s else now


class FairQueue(Generic[T]):
    """The waiting sequences of one instance. `tokens` is the number of their tokens."""

    def __init__(self) -> None:
        self.tokens = 0
        self._accounts: dict[str, Account] = {}
        self._levels: dict[int, dict[str, list[T]]] = {}
        self._length = 0
        self._last_served = Account("", 0)

    def __len__(self) -> int:
        return self._length

    def account(self, tenant: str) -> Account:
        """Return a tenant's account, opened at the floor if there is none."""
        account = self._accounts.get(tenant)
        if account is None:
            if len(self._accounts) >= MAX_IDLE_ACCOUNTS:
                self._forget_idle()
            account = self._accounts[tenant] = Account(tenant, self._floor())
        return account

    def push(self, item: T) -> None:
        """Queue an item at its place among its tenant's."""
        # the account may have been forgotten, even opened anew, while the item was running
        account = item.account = self._accounts.setdefault(item.account.name, item.account)
        if not account.waiting:
            account.charged = max(account.charged, self._floor())
        line = self._levels.setdefault(item.priority, {}).setdefault(account.name, [])
        insort(line, item, key=_turn)
        account.waiting += 1
        self._length += 1
        self.tokens += len(item.tokens)

    def peek(self) -> T | None:
        """Return the item whose turn it is."""
        if not self._length:
            return None
        lines = self._levels[min(self._levels)]
        name = min(lines, key=lambda name: (self._accounts[name].charged, name))
        return lines[name][0]

    def in_order(self) -> Iterator[T]:
        """Yield what waits as it would be served if nobody were charged meanwhile."""
        for priority in sorted(self._levels):
            lines = self._levels[priority]
            for name in sorted(lines, key=lambda name: (self._accounts[name].charged, name)):
                yield from lines[name]

    def remove(self, item: T) -> None:
        """Take an item out, wherever it stands."""
        account = item.account
        lines = self._levels[item.priority]
        line = lines[account.name]
        place = bisect_left(line, item.turn, key=_turn)
        assert line[place] is item, "it has another turn than when it was queued"
        del line[place]
        if not lines[account.name]:
            del lines[account.name]
        if not lines:
            del self._levels[item.priority]
        account.waiting -= 1
        self._length -= 1
        self.tokens -= len(item.tokens)
        self._last_served = account

    def items(self) -> list[T]:
        """Return everything that waits, in no particular order."""
        return [item for lines in self._levels.values() for line in lines.values() for item in line]

    def _floor(self) -> int:
        """Return where a tenant starts that has nothing waiting yet.

        The least served of those that wait; nobody waiting: where the last one left.
        """
        waiting = [account.charged for account in self._accounts.values() if account.waiting]
        return min(waiting, default=self._last_served.charged)

    def _forget_idle(self) -> None:
        """Drop half of the idle accounts, the least served: they come back nearest to the floor."""
        idle = sorted(
            (account for account in self._accounts.values() if not account.waiting),
            key=lambda account: account.charged,
        )
        for account in idle[: (len(idle) + 1) // 2]:
            del self._accounts[account.name]
