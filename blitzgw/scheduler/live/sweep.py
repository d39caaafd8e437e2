"""The steps of an instance whose prefills go through the layers in groups.

What begins at the first layer goes into the steps of those who decode, where there are any, as on
an instance without helpers: they read the weights anyway. What has been recalled at a later layer
has none of theirs to share; it goes in groups of layers, with decode steps in between. With nobody
who decodes, all goes in groups: a request that is recalled from a helper comes soon after it has
been asked for. Why not one layer at a time: every step costs its overhead.

Bound on starvation: decode steps cost prefill as much time as prefill costs those who decode. So
between two decode steps goes at least one group, and then no more prefill than takes `patience`
decode steps' time at the measured rates; and together with the decode step no more than one whole
step has without groups, which is `max_batched_tokens` through all layers. With `patience` 0 every
second step decodes: a decoding sequence waits for `max_batched_tokens` through the layers that are
left.
"""

from __future__ import annotations

from blitzgw.core.span import Span
from blitzgw.scheduler.batch import Batch
from blitzgw.scheduler.lane import Lane
from blitzgw.scheduler.live.records import Course
from blitzgw.scheduler.sequence import Sequence, Turn


def compose(lane: Lane, home_layers: int, patience: float) -> Batch:
    """Put the next step of a complete instance together; an empty one if there is nothing to do.

    Of all prefill the earliest in turn goes: with decode rows if it has all layers before it, else
    in groups that take turns with them.
    """
    ready = [course for course in lane.courses.values() if course.ready and not course.done]
    group = next_group(ready, lane.instance.max_batched_tokens, catch_up=lane.hosting)
    decodes = _decodes(lane)
    whole = _is_whole(lane, group, decodes=decodes)
    if group and not whole:
        batch = Batch(lane, group_span(lane, group, home_layers, decodes=decodes))
        if not decodes or not _is_due(lane, patience, _work(group, batch)):
            _take_in(lane, batch)
            _promote(lane)
            fill(batch, group)
            lane.since_decode += batch.work
            return batch
    batch = Batch(lane)
    _take_in(lane, batch)
    _promote(lane)
    batch.decode()
    _land(lane, batch)
    if whole or not group:
        _prefill(lane, batch, [course for course in ready if course.is_whole])
    lane.since_decode = 0
    return batch


def _is_whole(lane: Lane, group: list[Course], *, decodes: bool) -> bool:
    """Tell whether what goes next goes through all layers at once."""
    if group and group[0].is_begun:
        return False
    first = min((seq.turn for seq in lane.prefilling.values()), default=None)
    if first is not None and (not group or first < group[0].seq.turn):
        return True
    return decodes and bool(group) and group[0].is_whole


def _work(group: list[Course], batch: Batch) -> int:
    """Return the work of a group's next step, in tokens × layers."""
    return min(sum(course.tokens for course in group), batch.room) * len(batch.span)


def _prefill(lane: Lane, batch: Batch, courses: list[Course]) -> None:
    """Fill a step through all layers with what has them all before it, in turn."""
    waiting: list[tuple[Turn, Sequence | Course]] = [(one.seq.turn, one) for one in courses]
    waiting += [(seq.turn, seq) for seq in lane.prefilling.values()]
    for _, one in sorted(waiting, key=lambda each: each[0]):
        if isinstance(one, Sequence):
            batch.go_on(one)
        elif batch.room:
            batch.advance(one)


def next_group(ready: list[Course], most: int, *, catch_up: bool) -> list[Course]:
    """Return the courses that go next, all at the same layer: that of the earliest.

    To `catch_up`, the lowest of those goes first that fit into one step of `most` tokens with the
    earliest: it shares steps with the others from where they are on.
    One that has been begun goes alone until all of its positions are at the same layer.
    """
    begun = [course for course in ready if course.is_begun]
    if begun or not ready:
        return begun[:1]
    ready.sort(key=lambda course: course.seq.turn)
    if not catch_up:
        return [course for course in ready if course.layer == ready[0].layer]
    together, room = ready[:1], most - ready[0].tokens
    for course in ready[1:]:
        if course.tokens <= room:
            together.append(course)
            room -= course.tokens
    layer = min(course.layer for course in together)
    return [course for course in together if course.layer == layer]


def group_span(lane: Lane, group: list[Course], home_layers: int, *, decodes: bool) -> Span:
    """Return the layers of the next step.

    Few tokens go through more layers than many, so that a step is worth its overhead. Beside those
    who decode all go to the last one, a chunk at a time: no step costs them more than that.
    """
    n_layers, first = lane.instance.n_layers, group[0]
    if first.is_begun:
        return Span(first.layer, first.stop)
    if not lane.hosting:
        return Span(first.layer, n_layers)
    most = lane.instance.max_batched_tokens
    tokens = sum(course.tokens for course in group)
    stop = first.layer + max(home_layers, home_layers * most // max(tokens, 1))
    if decodes:
        stop = n_layers
    ahead = [
        course.layer
        for course in lane.courses.values()
        if course.ready and first.layer < course.layer < stop and course.tokens + tokens <= most
    ]
    return Span(first.layer, min([stop, n_layers, *ahead]))


def fill(batch: Batch, group: list[Course]) -> None:
    """Add rows for a group: for the first a chunk, the others only as a whole.

    So chunks of a prompt are cut at the same positions in every layer.
    """
    batch.advance(group[0])
    for course in group[1:]:
        if course.tokens <= batch.room:
            batch.advance(course)


def _is_due(lane: Lane, patience: float, work: int) -> bool:
    """Tell whether those who decode have waited for long enough, and go before so much work."""
    if not lane.since_decode:
        return False
    served, pace = lane.instance, lane.pace
    step = (pace.decode_step_s or 0.0) * (pace.prefill_tokens_per_s or 0.0)
    tokens = min(patience * step, served.max_batched_tokens - step)
    return lane.since_decode + work > tokens * served.n_layers


def _decodes(lane: Lane) -> bool:
    if any(_may_decode(course) for course in lane.courses.values()):
        return True
    return any(seq.scheduled + 1 < seq.limit for seq in lane.decoding.values())


def _may_decode(course: Course) -> bool:
    """Tell whether a prompt is computed, and its KV is here or comes with the next step."""
    if course.passage is not None and not course.passage.landed:
        return False
    return course.done and (course.loan is None or course.loan.is_whole)


def _promote(lane: Lane) -> None:
    for number, course in list(lane.courses.items()):
        if course.introduced and _may_decode(course):
            del lane.courses[number]
            lane.decoding[number] = course.seq


def _land(lane: Lane, batch: Batch) -> None:
    """Let those go on that have come from other instances with all of their KV."""
    for number, course in list(lane.courses.items()):
        if not course.introduced and _may_decode(course) and batch.room:
            del lane.courses[number]
            lane.prefilling[number] = course.seq
            batch.land(course.seq)


def _take_in(lane: Lane, batch: Batch) -> None:
    for course in lane.courses.values():
        if course.passage is not None and course.passage.fresh:
            batch.receive(course)
        elif course.introduced and course.loan is not None and course.loan.fresh:
            batch.take_in(course)
