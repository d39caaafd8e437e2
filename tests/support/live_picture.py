"""A picture of what instances compute while one of them is loading.

Each instance has a lane: time from left to right, layers from bottom to top. A box is a step, as
high as its layers and as wide as it took, in the colour of its request. In the lane of an instance
that is loading a line says which layers it has, and one straight up goes to its home for each
handoff. The lowest lane is of tokens: a mark for each, and how many requests have had their first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.support.live_trace import Trace, Work
from tests.support.svg import GREY, RULE, box, image, nice, polyline, text

WIDTH, LANE, GAP = 1080, 150, 34
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 46, 48
TOKENS = 80
TICKS = 10
GOLDEN_ANGLE = 137.508
"""Between the hues of one request and the next, so that neighbours differ."""


def plot(trace: Trace, layers: int, title: str) -> str:
    """Return an SVG image."""
    frame = _Frame(trace, layers)
    parts = [text(LEFT, 20, title, "start", 'font-weight="bold"'), *frame.axis()]
    names = sorted({name for one in trace.works for name, _ in one.requests})
    colours = {name: colour(place) for place, name in enumerate(names)}
    for instance in trace.instances:
        parts += frame.lane(instance)
        mine = [one for one in trace.works if one.instance == instance]
        for one in mine:
            parts += frame.boxes(one, colours)
        parts += frame.arrivals(instance)
    parts += frame.handoffs(colours)
    parts += frame.tokens(colours)
    return image(WIDTH, frame.height, parts)


def colour(place: int) -> str:
    """Return the colour of the request that was sent as the so-manieth."""
    return f"hsl({place * GOLDEN_ANGLE % 360:.0f} 65% {52 + 8 * (place % 3)}%)"


class _Frame:
    """Where times, layers and lanes are on the image."""

    def __init__(self, trace: Trace, layers: int) -> None:
        self.trace, self.layers = trace, layers
        ends = [one.stop_s for one in trace.works] + [at for at, _ in trace.tokens]
        ends += [*trace.ready.values()]
        most_s = max(ends, default=1.0)
        self.step = nice(most_s / TICKS)
        self.until_s = self.step * max(1, math.ceil(most_s / self.step))
        self.tops = {name: TOP + i * (LANE + GAP) for i, name in enumerate(trace.instances)}
        self.tokens_top = TOP + len(self.tops) * (LANE + GAP)
        self.height = self.tokens_top + TOKENS + BOTTOM

    def x(self, at_s: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * at_s / self.until_s

    def y(self, instance: str, layer: float) -> float:
        return self.tops[instance] + LANE * (1 - layer / self.layers)

    def axis(self) -> list[str]:
        parts, bottom = [], self.tokens_top + TOKENS
        for number in range(round(self.until_s / self.step) + 1):
            x = self.x(number * self.step)
            parts.append(polyline([(x, TOP), (x, bottom)], RULE))
            parts.append(text(x, bottom + 18, f"{number * self.step:g} s", "middle"))
        return parts

    def lane(self, instance: str) -> list[str]:
        """The ground of a lane: its first and last layer, and whose it is."""
        low, high = self.y(instance, 0), self.y(instance, self.layers)
        loading = " (loading)" if instance in self.trace.layers else ""
        return [
            text(LEFT, high - 6, f"{instance}{loading}", "start"),
            *(polyline([(LEFT, y), (WIDTH - RIGHT, y)], GREY) for y in (low, high)),
            text(LEFT - 8, low, "layer 0", "end"),
            text(LEFT - 8, high + 10, str(self.layers), "end"),
        ]

    def boxes(self, one: Work, colours: dict[str, str]) -> list[str]:
        """A step: its requests share its height by their tokens."""
        low, high = self.y(one.instance, one.span[0]), self.y(one.instance, one.span[1])
        x, wide = self.x(one.start_s), max(0.5, self.x(one.stop_s) - self.x(one.start_s))
        whole = sum(count for _, count in one.requests)
        parts, y = [], high
        for name, count in one.requests:
            tall = (low - high) * count / whole
            said = f"{name}: layers {one.span[0]} to {one.span[1]}, {count} tokens"
            parts.append(box(x, y, wide, tall, colours.get(name, GREY), said))
            y += tall
        return parts

    def arrivals(self, instance: str) -> list[str]:
        """Which layers an instance has that is loading, as stairs; and when it was complete."""
        stairs: list[tuple[float, float]] = []
        for at, count in self.trace.layers.get(instance, ()):
            if stairs:
                stairs.append((self.x(at), stairs[-1][1]))
            stairs.append((self.x(at), self.y(instance, min(count, self.layers))))
        if not stairs:
            return []
        ready = self.trace.ready.get(instance)
        if ready is None:
            return [polyline(stairs, "black", 'stroke-width="1.5"')]
        top, low = self.y(instance, self.layers), self.y(instance, 0)
        stairs += [(self.x(ready), stairs[-1][1]), (self.x(ready), top)]
        return [
            polyline(stairs, "black", 'stroke-width="1.5"'),
            polyline([(self.x(ready), low), (self.x(ready), top)], "black", DASHED),
            text(self.x(ready) + 4, top - 6, "complete", "start"),
        ]

    def handoffs(self, colours: dict[str, str]) -> list[str]:
        """Lines from the layer that was reached to the lane above."""
        helpers = [name for name in self.tops if name in self.trace.layers]
        homes = [name for name in self.tops if name not in self.trace.layers]
        if not helpers or not homes:
            return []
        parts = []
        for at, name, layer in self.trace.handoffs:
            helper = self._who(name, at, helpers)
            ends = [(self.x(at), self.y(helper, layer)), (self.x(at), self.y(homes[-1], 0))]
            parts.append(polyline(ends, colours.get(name, GREY), 'stroke-dasharray="2 2"'))
        return parts

    def _who(self, name: str, at: float, helpers: Sequence[str]) -> str:
        """The helper that has last computed for a request."""
        last = helpers[0]
        for one in self.trace.works:
            if one.start_s > at:
                break
            if one.instance in helpers and any(who == name for who, _ in one.requests):
                last = one.instance
        return last

    def tokens(self, colours: dict[str, str]) -> list[str]:
        """Marks, and stairs of how many requests have had their first token."""
        top, low = self.tokens_top, self.tokens_top + TOKENS
        parts = [text(LEFT, top - 6, "tokens; requests with a first one", "start")]
        parts.append(polyline([(LEFT, low), (WIDTH - RIGHT, low)], GREY))
        firsts: dict[str, float] = {}
        for at, name in sorted(self.trace.tokens):
            firsts.setdefault(name, at)
            parts.append(box(self.x(at), low - 12, 1.5, 12, colours.get(name, GREY), name))
        stairs, y = [(self.x(0.0), low - 14.0)], low - 14.0
        for at in sorted(firsts.values()):
            stairs.append((self.x(at), y))
            y -= (TOKENS - 14.0) / len(firsts)
            stairs.append((self.x(at), y))
        parts.append(polyline(stairs, "black", 'stroke-width="1.5"'))
        parts.append(text(LEFT - 8, top + 10, str(len(firsts)), "end"))
        return parts


DASHED = 'stroke-dasharray="5 4"'
