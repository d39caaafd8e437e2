"""A step's text goes to the client first; what it begins with is there by then."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from blitzgw.api.chunks import ChunkFormat, Tally
from blitzgw.api.generation import Batch, Generation, Options
from blitzgw.api.prompts import Prompt
from blitzgw.api.sse import EventStream
from blitzgw.core.request import FinishReason, GenerationRequest, SamplingParams, TokenEvent

FIRST = TokenEvent("r", 0, [7], queued_s=0.5, cached_tokens=2)
LAST = TokenEvent("r", 0, [8], finish=FinishReason.LENGTH)
PROMPT = Prompt((1, 2, 3), "one")
CHUNKS = {True: ChunkFormat("id", "m", 1, chat=True), False: ChunkFormat("id", "m", 1, chat=False)}


class Choice:
    """Tokens as text."""

    index, looks, pieces = 0, False, None

    def __init__(self):
        self.finish, self.stop_reason = None, None
        self.used = self.shown = self.count = 0

    def take(self, event):
        self.used, self.finish = len(event.tokens), event.finish
        self.count += self.used
        return f"{event.tokens}"


class Diary:
    """Notes in which order a generation's output, meter and generator are called."""

    def __init__(self, *, leaves=False):
        self.notes, self.leaves = [], leaves
        self.last_s, self.queued_s = 0.0, None
        self.metrics = SimpleNamespace()
        self.tally = Tally(3)
        self.batch = Batch(self, self, self, self.tally)
        request = GenerationRequest("r", "m", (1, 2, 3), 3, SamplingParams(max_tokens=2))
        self.generation = Generation(self.batch, request, PROMPT, Choice(), self, None)
        self.batch.generations.append(self.generation)

    def deliver(self, generation, text, event):
        usage = self.tally.usage()
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        self.notes.append(("told", text, usage["completion_tokens"], cached))
        if self.leaves:
            self.batch.abort()

    def step(self, tokens):
        self.notes.append(("counted", tokens))

    def end(self, reason, cached):
        self.notes.append(("ended", reason, cached))

    def abort(self, request_id):
        self.notes.append(("stopped", request_id))

    def served_by(self, request_id):
        return None


def test_a_client_is_told_before_anything_is_counted():
    diary = Diary()
    diary.generation.push(FIRST)
    assert diary.notes == [("told", "[7]", 1, 2), ("counted", 1)]
    assert diary.queued_s == 0.5
    diary.generation.push(LAST)
    assert diary.notes[2:] == [
        ("told", "[8]", 2, 2),
        ("counted", 1),
        ("ended", FinishReason.LENGTH, 2),
    ]
    diary.generation.push(LAST)
    assert len(diary.notes) == 5


@pytest.mark.parametrize("event", [FIRST, LAST], ids=["first", "last"])
def test_who_is_found_to_have_left_is_ended_once(event):
    diary = Diary(leaves=True)
    diary.generation.push(event)
    told, *others = diary.notes
    assert told[0] == "told"
    cached = event.cached_tokens
    assert others == [("ended", FinishReason.ABORT, cached), ("stopped", "r")]


def test_what_a_stop_string_ends_is_stopped_once_it_is_told(monkeypatch):
    diary = Diary()
    choice = diary.generation.choice

    def stop(_event):
        choice.finish, choice.used = FinishReason.STOP, 1
        return "text"

    monkeypatch.setattr(choice, "take", stop)
    diary.generation.push(TokenEvent("r", 0, [7, 8]))
    assert [note[0] for note in diary.notes] == ["told", "counted", "ended", "stopped"]


class Transport:
    """Takes everything."""

    def __init__(self):
        self.written = b""

    def is_closing(self):
        return False

    def get_write_buffer_size(self):
        return 0

    def write(self, data):
        self.written += data


async def streamed(options, *, prepared, choices=1, monkeypatch=None):
    """The bytes of one event and then another, after a head."""
    diary = Diary()
    tally, transport = Tally(3), Transport()
    stream = EventStream(options, CHUNKS[options.chat], tally, choices, 1 << 20)
    if prepared:
        stream.prepare()
    stream.go_through(transport, lambda: b"HEAD", framed=True)  # type: ignore[arg-type]
    if monkeypatch is not None:
        monkeypatch.setattr("blitzgw.api.chunks.ChoiceFormat.role", None)
        monkeypatch.setattr("blitzgw.api.chunks.ChunkFormat.choice", None)
    diary.generation.choice.take(FIRST)
    stream.deliver(diary.generation, "a", FIRST)
    diary.generation.choice.take(LAST)
    stream.deliver(diary.generation, "b", LAST)
    return transport.written


@pytest.mark.parametrize("choices", [1, 2])
async def test_what_is_made_ahead_changes_no_byte(choices):
    names = ("continuous_usage", "token_ids", "echo", "chat")
    for values in itertools.product((False, True), repeat=len(names)):
        options = Options(stream=True, **dict(zip(names, values, strict=True)))
        ahead = await streamed(options, prepared=True, choices=choices)
        assert ahead == await streamed(options, prepared=False, choices=choices)
        assert ahead.startswith(b"HEAD")


async def test_the_role_is_there_before_the_first_token(monkeypatch):
    options = Options(chat=True, stream=True)
    written = await streamed(options, prepared=True, monkeypatch=monkeypatch)
    assert b'"role":"assistant"' in written
