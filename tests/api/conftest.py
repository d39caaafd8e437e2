"""Fakes of what lies behind the API, tokenizers small enough to build in a moment, a server."""

import asyncio
import contextlib
import json
from dataclasses import dataclass, field

import aiohttp
import pytest
import pytest_asyncio
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from blitzgw.api.limits import Limits
from blitzgw.api.models import ModelEntry, ModelTable
from blitzgw.api.server import HttpServer
from blitzgw.api.services import Services
from blitzgw.api.status import ModelStatus, NodeStatus, Served
from blitzgw.api.text import TextModel
from blitzgw.core.clock import MonotonicClock
from blitzgw.core.instance import ModelSpec
from blitzgw.core.model import Dtype, ModelShape, Rope, TextSpec
from blitzgw.core.request import FinishReason, TokenEvent

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 12:30, isn't it?",
    "Grüße aus Köln: naïve café, 你好，世界！ Привет, мир 😀👍🏽 — “quotes” …",
    "def main():\n    return [x for x in range(10)]\n\n\tprint('hello world')",
] * 5


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool é call>", special=False), "é!"])
    return tokenizer


def sentencepiece(strip=True):
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    words = [
        "▁the",
        "▁fox",
        "▁a",
        "b",
        "c",
        "d",
        "e",
        "▁",
        "he",
        "llo",
        "▁he",
        "lo",
        "▁世",
        "界",
        "é",
        "▁naïve",
        ".",
        ",",
        "▁▁",
        "▁▁▁▁",
        "😀",
    ]
    pieces += words
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def text_model(tokenizer, folder, template=TEMPLATE, name="tokenizer.json", vocab=0):
    path = folder / name
    tokenizer.save(str(path))
    return TextModel(TextSpec(str(path), template, "<|endoftext|>", "<|im_end|>"), vocab)


def model_spec(name, vocab, max_model_len=4096, eos_ids=(2,)):
    shape = ModelShape("llama", 2, 8, 1, 1, 8, 8, vocab, 1e-5, Rope(), max_model_len, True)
    return ModelSpec(name, "/nowhere", shape, Dtype.FLOAT32, max_model_len, eos_ids)


@dataclass
class FakeGenerator:
    """Plays `script(request)`, a list of events, one per tick; or leaves the test to push."""

    script: object = None
    tick_s: float = 0.0
    refusal: object = None
    full: object = None
    requests: dict = field(default_factory=dict)
    aborted: list = field(default_factory=list)
    tasks: set = field(default_factory=set)
    clock: MonotonicClock = field(default_factory=MonotonicClock)

    def turn_away(self, model, digest):
        if self.full is not None:
            raise self.full

    def generate(self, request, sink):
        if self.refusal is not None:
            refusal = self.refusal(request)
            if refusal is not None:
                raise refusal
        self.requests[request.id] = (request, sink)
        if self.script is not None:
            task = asyncio.get_running_loop().create_task(self._play(request, sink))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _play(self, request, sink):
        for event in self.script(request):
            await asyncio.sleep(self.tick_s)
            if request.id in self.aborted:
                return
            if isinstance(event, Exception):
                sink.fail(event)
            elif event.tokens and event == TokenEvent(request.id, 0, event.tokens[:1]):
                sink.push_token(event.tokens[0], self.clock.now())
            else:
                sink.push(event)

    def abort(self, request_id):
        self.aborted.append(request_id)

    @property
    def last(self):
        return next(reversed(self.requests.values()))


def events(request, tokens, finish=FinishReason.LENGTH, per_event=1, **first):
    """Cut tokens into events; the last one carries the finish."""
    groups = [tokens[i : i + per_event] for i in range(0, len(tokens), per_event)]
    made = [TokenEvent(request.id, 0, list(group)) for group in groups]
    for key, value in first.items():
        setattr(made[0], key, value)
    made[-1].finish = finish
    return made


@dataclass
class FakeStatus:
    accepting: bool = True
    reason: str = ""
    served: object = None

    def status(self):
        state = ModelStatus("m", "serving", 1, 30, 30, None, 3, 2, 0.5, 640, 1)
        return NodeStatus(self.accepting, self.reason, (state,))

    def served_by(self, request_id):
        return self.served


@dataclass
class World:
    """A running server and what stands behind it."""

    server: HttpServer
    port: int
    generator: FakeGenerator
    status: FakeStatus
    services: Services
    text: TextModel
    http: aiohttp.ClientSession

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    async def post(self, path, body, **kwargs):
        """Return (status, headers, decoded JSON)."""
        if isinstance(body, bytes):
            kwargs.setdefault("headers", {}).setdefault("Content-Type", "application/json")
            kwargs["data"] = body
        else:
            kwargs["json"] = body
        async with self.http.post(self.url(path), **kwargs) as response:
            return response.status, response.headers, await response.json()

    async def get(self, path, **kwargs):
        async with self.http.get(self.url(path), **kwargs) as response:
            body = await response.read()
            kind = response.headers.get("Content-Type", "")
            return response.status, response.headers, json.loads(body) if "json" in kind else body

    async def raw(self, request, until_eof=True):
        """Send bytes, return all bytes that come back."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        await writer.drain()
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        return answer

    def ids(self, text):
        return self.text.encode_now(text, False)


def post_bytes(path, body, version="1.1", headers=""):
    head = f"POST {path} HTTP/{version}\r\nHost: x\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def stream_events(payload):
    """Split the text of a stream into its decoded events."""
    lines = payload.decode().split("\n\n")
    assert lines[-1] == ""
    assert all(line.startswith("data: ") and "\n" not in line for line in lines[:-1])
    return ["[DONE]" if line == "data: [DONE]" else json.loads(line[6:]) for line in lines[:-1]]


@pytest.fixture(scope="session")
def byte_text(tmp_path_factory):
    return text_model(byte_level(), tmp_path_factory.mktemp("bytes"), vocab=600)


@pytest.fixture(scope="session", params=[True, False], ids=["strip", "no-strip"])
def sp_text(request, tmp_path_factory):
    return text_model(sentencepiece(request.param), tmp_path_factory.mktemp("sp"))


@pytest.fixture
def make_world(byte_text):
    """Start servers: `await make_world(...)`; all are stopped at the end."""
    worlds = []

    async def make(
        limits=None, text=None, aliases=("alias",), max_model_len=4096, cluster=None, **kwargs
    ):
        generator, status = FakeGenerator(), FakeStatus()
        text = text or byte_text
        entries = [ModelEntry("m", aliases, model_spec("m", 600, max_model_len), text, 1700000000)]
        services = Services(
            node="node-a",
            models=ModelTable(entries),
            generator=generator,
            status=status,
            clock=MonotonicClock(),
            limits=limits or Limits(),
            cluster=cluster,
            draw_seed=lambda: 7,
            unix_time=lambda: 1700000001,
        )
        server = HttpServer(services, **kwargs)
        port = await server.start("127.0.0.1", 0)
        http = aiohttp.ClientSession()
        worlds.append(World(server, port, generator, status, services, text, http))
        return worlds[-1]

    make.worlds = worlds
    return make


@pytest_asyncio.fixture
async def world(make_world):
    yield await make_world()


@pytest_asyncio.fixture(autouse=True)
async def stop_worlds(request):
    yield
    make = request.node.funcargs.get("make_world")
    for world in [] if make is None else make.worlds:
        await world.http.close()
        await world.server.stop(grace_s=0.0)
        for task in list(world.generator.tasks):
            task.cancel()


@pytest.fixture
def served():
    return Served


@pytest.fixture
def tools():
    """Helpers, as one namespace: the tests have no package to import them from."""

    class Tools:
        pass

    for helper in (
        byte_level,
        sentencepiece,
        text_model,
        events,
        post_bytes,
        stream_events,
        model_spec,
        FakeGenerator,
    ):
        setattr(Tools, helper.__name__, staticmethod(helper))
    return Tools
