"""Schedules of faults, drawn from a seed: what goes wrong when, and when it is mended.

A schedule ends with everything mended and the seeds running: whoever has found nobody else finds
them. So whatever is not right some time later is a fault of the deciders.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from math import log

MEAN_GAP_S = 0.7
"""Between two faults, on average: most overlap with others."""

MEND_WITHIN_S = (1.0, 12.0)
"""How long a network's fault lasts: from a hiccup to longer than any suspicion."""

PAUSE_S = (0.1, 3.0)
"""How long a process gets no processor."""

INGRESS_LOSS = (0.3, 0.8)
"""What share of the datagrams to one node is lost in a lossy period."""

VALUE_BYTES = (0, 1500)
"""Size of a published value: from nothing to more than a datagram's fair share."""


@dataclass(frozen=True, slots=True)
class Start:
    """A process starts, with a new boot id."""

    node: int


@dataclass(frozen=True, slots=True)
class Crash:
    """A process ends without a word; `off`: with its host, so that connections time out."""

    node: int
    off: bool


@dataclass(frozen=True, slots=True)
class Leave:
    """A process says that it leaves, and ends."""

    node: int


@dataclass(frozen=True, slots=True)
class Pause:
    """A process gets no processor for a while."""

    node: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class BreakLink:
    """A node's peer link to another one breaks, though both may be well."""

    node: int
    other: int


@dataclass(frozen=True, slots=True)
class Publish:
    """A node changes some entries of its state; None: the entry is gone."""

    node: int
    entries: tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True, slots=True)
class Split:
    """Nothing passes from `sources` to the other nodes; nor back, where it is `mutual`."""

    sources: tuple[int, ...]
    mutual: bool
    duration_s: float


@dataclass(frozen=True, slots=True)
class Deafen:
    """What arrives at some nodes is lost with a probability."""

    nodes: tuple[int, ...]
    loss: float
    duration_s: float


Action = Start | Crash | Leave | Pause | BreakLink | Publish | Split | Deafen


@dataclass(frozen=True, slots=True)
class Schedule:
    """What happens, by virtual second. All is mended at `end_s`."""

    nodes: int
    seeds: int
    end_s: float
    actions: tuple[tuple[float, Action], ...]

    def __str__(self) -> str:
        lines = [f"{at_s:7.3f} s  {_brief(action)}" for at_s, action in self.actions]
        return "\n".join([f"{self.nodes} nodes, {self.seeds} seeds", *lines])


def draw(seed: int, fewest: int, most: int, duration_s: float) -> Schedule:
    """Return the schedule of a seed: a cluster of `fewest` to `most` nodes, faults for a while.

    Raises ValueError for fewer than two nodes.
    """
    if fewest < 2:
        raise ValueError("a schedule needs two nodes at least")
    rng = random.Random(f"schedule {seed}")  # noqa: S311  a schedule is to repeat
    nodes = rng.randint(fewest, most)
    return _Draft(rng, nodes, min(nodes, rng.choice((1, 2, 3)))).schedule(duration_s)


@dataclass
class _Draft:
    rng: random.Random
    nodes: int
    seeds: int
    now: float = 0.0
    down: list[int] = field(default_factory=list)
    actions: list[tuple[float, Action]] = field(default_factory=list)

    def schedule(self, duration_s: float) -> Schedule:
        """Draw everything."""
        spread_s = self.rng.choice((0.0, 0.5, 4.0))
        for node in range(self.nodes):
            self.actions.append((self.rng.random() * spread_s, Start(node)))
            self.actions.append((self.actions[-1][0], self._publication(node)))
        self.now = spread_s + self.rng.choice((0.0, 3.0))
        kinds: list[Callable[[], None]] = [
            self._crash, self._crash, self._restart, self._restart, self._leave, self._pause,
            self._pause, self._publish, self._publish, self._split, self._split, self._deafen,
            self._break_link,
        ]  # fmt: skip
        while self.now < duration_s:
            self.rng.choice(kinds)()
            self.now -= MEAN_GAP_S * log(1 - self.rng.random())
        for node in [node for node in self.down if node < self.seeds]:
            self._start(node)
        self.actions.sort(key=lambda entry: entry[0])
        mended_s = max(at_s + getattr(action, "duration_s", 0) for at_s, action in self.actions)
        return Schedule(self.nodes, self.seeds, max(mended_s, self.now), tuple(self.actions))

    def _add(self, action: Action) -> None:
        self.actions.append((self.now, action))

    def _up(self) -> list[int]:
        return [node for node in range(self.nodes) if node not in self.down]

    def _stop(self) -> int | None:
        """Choose a node that is to end; None where only one runs."""
        up = self._up()
        if len(up) < 2:
            return None
        node = self.rng.choice(up)
        self.down.append(node)
        return node

    def _crash(self) -> None:
        node = self._stop()
        if node is None:
            return
        self._add(Crash(node, self.rng.random() < 0.3))
        if self.rng.random() < 0.2:
            self._start(node)  # at once, as a supervisor does

    def _leave(self) -> None:
        node = self._stop()
        if node is not None:
            self._add(Leave(node))

    def _restart(self) -> None:
        if self.down:
            self._start(self.rng.choice(self.down))

    def _start(self, node: int) -> None:
        self.down.remove(node)
        self._add(Start(node))
        self._add(self._publication(node))

    def _pause(self) -> None:
        self._add(Pause(self.rng.choice(self._up()), self.rng.uniform(*PAUSE_S)))

    def _break_link(self) -> None:
        self._add(BreakLink(*self.rng.sample(range(self.nodes), 2)))

    def _publish(self) -> None:
        self._add(self._publication(self.rng.choice(self._up())))

    def _publication(self, node: int) -> Publish:
        count = self.rng.choice((1, 1, 2, 8))
        keys = [f"load/{self.rng.randrange(12)}" for _ in range(count)]
        return Publish(node, tuple((key, self._value()) for key in dict.fromkeys(keys)))

    def _value(self) -> bytes | None:
        gone = self.rng.random() < 0.15
        return None if gone else self.rng.randbytes(self.rng.randint(*VALUE_BYTES))

    def _split(self) -> None:
        group = self.rng.sample(range(self.nodes), self.rng.randint(1, self.nodes - 1))
        mutual = self.rng.random() < 0.6
        self._add(Split(tuple(sorted(group)), mutual, self.rng.uniform(*MEND_WITHIN_S)))

    def _deafen(self) -> None:
        everywhere = self.rng.random() < 0.3
        nodes = range(self.nodes) if everywhere else [self.rng.randrange(self.nodes)]
        loss = self.rng.uniform(*INGRESS_LOSS)
        if everywhere:
            loss /= 2
        self._add(Deafen(tuple(nodes), loss, self.rng.uniform(*MEND_WITHIN_S)))


def _brief(action: Action) -> str:
    if isinstance(action, Publish):
        sizes = [f"{key}: {'gone' if v is None else len(v)}" for key, v in action.entries]
        return f"Publish(node={action.node}, {', '.join(sizes)})"
    return str(action)
