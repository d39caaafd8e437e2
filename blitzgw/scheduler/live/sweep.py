"""The steps of an instance whose prefills go through the layers in groups.

Why in groups: between two of them a decode step fits in, and a request that is recalled from a
helper comes soon after it has been asked for. Why not one layer at a time: every step costs its
overhead.

Bound on starvation: decode steps cost prefill as much time as prefill costs those who decode. So
between two decode steps goes at least one group, and then no more prefill than takes `patience`
decode steps' time at the measured rates; never more than one whole step has without groups, which
is `max_batched_tokens` through all layers. With `patience` 0 every second step decodes: a decoding
sequence waits for `max_batched_tokens` through `home_layers` layers.
"""

from __future__ import annotations

from blitzgw.core.span import Span
from blitzgw.scheduler.batch import Batch
from blitzgw.scheduler.lane import Lane
from blitzgw.scheduler.live.records import Course


def compose(lane: Lane, home_layers: int, patience: float) -> Batch:
    """Put the next step of a complete instance together; an empty one if there is nothing to do.

    Decode rows and groups of layers take turns; plain prefill goes with the former.
    """
    ready = [course for course in lane.courses.values() if course.ready and not course.done]
    group = next_group(ready, catch_up=lane.hosting)
    waits = not _is_due(lane, patience) or not _decodes(lane)
    span = group_span(lane, group, home_layers) if group and waits else None
    batch = Batch(lane, span)
    _take_in(lane, batch)
    _promote(lane)
    if span is not None:
        fill(batch, group)
        lane.since_decode += batch.work
    else:
        batch.decode()
        _land(lane, batch)
        batch.prefill()
        lane.since_decode = 0
    return batch


def next_group(ready: list[Course], *, catch_up: bool) -> list[Course]:
    """Return the courses that go next, all at the same layer: that of the earliest.

    To `catch_up`, the lowest goes first: it shares steps with the others from where they are on.
    One that has been begun goes alone until all of its positions are at the same layer.
    """
    begun = [course for course in ready if course.is_begun]
    if begun or not ready:
        return begun[:1]
    ready.sort(key=lambda course: course.seq.turn)
    layer = min(course.layer for course in ready) if catch_up else ready[0].layer
    return [course for course in ready if course.layer == layer]


def group_span(lane: Lane, group: list[Course], home_layers: int) -> Span:
    """Return the layers of the next step.

    Few tokens go through more layers than many, so that a step is worth its overhead.
    """
    n_layers, first = lane.instance.n_layers, group[0]
    if first.is_begun:
        return Span(first.layer, first.stop)
    if not lane.hosting:
        return Span(first.layer, n_layers)
    most = lane.instance.max_batched_tokens
    tokens = sum(len(course.seq.tokens) - course.start for course in group)
    stop = first.layer + max(home_layers, home_layers * most // max(tokens, 1))
    ahead = [c.layer for c in lane.courses.values() if c.ready and first.layer < c.layer < stop]
    return Span(first.layer, min([stop, n_layers, *ahead]))


def fill(batch: Batch, group: list[Course]) -> None:
    """Add rows for a group: for the first a chunk, the others only as a whole.

    So chunks of a prompt are cut at the same positions in every layer.
    """
    batch.advance(group[0])
    for course in group[1:]:
        if len(course.seq.tokens) - course.start <= batch.room:
            batch.advance(course)


def _is_due(lane: Lane, patience: float) -> bool:
    """Tell whether those who decode have waited for long enough."""
    if not lane.since_decode:
        return False
    served, pace = lane.instance, lane.pace
    tokens = patience * (pace.decode_step_s or 0.0) * (pace.prefill_tokens_per_s or 0.0)
    return lane.since_decode >= min(tokens, served.max_batched_tokens) * served.n_layers


def _decodes(lane: Lane) -> bool:
    if lane.prefilling or any(_may_decode(course) for course in lane.courses.values()):
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
