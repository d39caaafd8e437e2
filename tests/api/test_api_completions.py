"""The way of a request through both generating endpoints, streamed and not."""

import asyncio
import json
from dataclasses import replace
from itertools import chain

import openai
import pytest

from blitzgw.api.status import Served
from blitzgw.core.request import FinishReason, Logprobs, TokenEvent
from blitzgw.errors import GenerationFailed, Overloaded, Unavailable

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
TEXT = {"model": "m", "prompt": "Hello"}


def say(world, tools, text="Hi there, Köln 😀!", **kwargs):
    tokens = world.ids(text)
    world.generator.script = lambda request: tools.events(request, tokens, **kwargs)
    return text, tokens


async def test_chat_answers_as_openai_does(world, tools):
    text, tokens = say(world, tools, cached_tokens=3, queued_s=0.5)
    world.status.served = Served("i-1", "[0,2)+[2,4)")
    status, headers, body = await world.post(
        "/v1/chat/completions", CHAT, headers={"x-request-id": "r1"}
    )
    request, _ = world.generator.last
    assert status == 200
    assert body == {
        "id": "chatcmpl-r1",
        "object": "chat.completion",
        "created": 1700000001,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
            }
        ],
        "usage": {
            "prompt_tokens": request.prompt_length,
            "completion_tokens": len(tokens),
            "total_tokens": request.prompt_length + len(tokens),
            "prompt_tokens_details": {"cached_tokens": 3},
        },
        "system_fingerprint": None,
    }
    assert headers["x-request-id"] == "r1"
    assert headers["x-blitzgw-node"] == "node-a"
    assert headers["x-blitzgw-instance"] == "i-1"
    assert headers["x-blitzgw-split"] == "[0,2)+[2,4)"
    assert world.text.decode(request.tokens, skip_special_tokens=False) == (
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert request.sampling.max_tokens == 4096 - request.prompt_length
    assert request.sampling.seed == 7
    assert request.id.startswith("chatcmpl-r1-")
    assert request.id.endswith("-0")


async def test_a_text_stream_is_exact_to_the_byte(world, tools):
    _, tokens = say(world, tools, "Hi you")
    body = json.dumps(TEXT | {"stream": True, "max_tokens": 9}).encode()
    raw = await world.raw(
        tools.post_bytes(
            "/v1/completions", body, headers="Connection: close\r\nx-request-id: r2\r\n"
        )
    )
    head, _, rest = raw.partition(b"\r\n\r\n")
    assert b"Content-Type: text/event-stream; charset=utf-8" in head
    assert b"Transfer-Encoding: chunked" in head
    payload = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        payload += rest[:length]
        assert rest[length : length + 2] == b"\r\n"
        rest = rest[length + 2 :]
    opening = (
        'data: {"id":"cmpl-r2","object":"text_completion","created":1700000001,"model":"m",'
        '"system_fingerprint":null,"choices":[{"index":0,"text":'
    )
    pieces = [world.text.table.raw[token].decode() for token in tokens]
    ends = ['"logprobs":null,"finish_reason":null}]}\n\n'] * (len(tokens) - 1)
    ends.append('"logprobs":null,"finish_reason":"length","stop_reason":null}]}\n\n')
    expected = "".join(
        f"{opening}{json.dumps(piece)},{end}" for piece, end in zip(pieces, ends, strict=True)
    )
    assert payload.decode() == expected + "data: [DONE]\n\n"


async def test_http_1_0_streams_without_chunks_until_the_end(world, tools):
    text, _ = say(world, tools)
    body = json.dumps(TEXT | {"stream": True, "max_tokens": 90}).encode()
    raw = await world.raw(
        tools.post_bytes("/v1/completions", body, "1.0", "Connection: keep-alive\r\n")
    )
    head, _, payload = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200")
    assert b"chunked" not in head
    *chunks, done = tools.stream_events(payload)
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text


async def test_role_comes_with_the_first_token_and_not_before(world):
    body = CHAT | {"stream": True}
    post = asyncio.ensure_future(world.http.post(world.url("/v1/chat/completions"), json=body))
    await asyncio.sleep(0.1)
    assert not post.done()
    request, sink = world.generator.last
    sink.push(TokenEvent(request.id, 0, world.ids("Hi")))
    response = await asyncio.wait_for(post, 5)
    first = json.loads((await response.content.readline())[6:])
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    sink.push(TokenEvent(request.id, 0, [2], finish=FinishReason.STOP))
    rest = (await response.read()).strip().split(b"\n\n")
    assert json.loads(rest[-2][6:])["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": None,
    }
    assert rest[-1] == b"data: [DONE]"


async def stream(world, tools, path, body):
    async with world.http.post(world.url(path), json=body | {"stream": True}) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        return tools.stream_events(await response.read())


async def test_usage_comes_once_and_only_where_asked(world, tools):
    _, tokens = say(world, tools)
    plain = await stream(world, tools, "/v1/completions", TEXT)
    assert all(chunk == "[DONE]" or "usage" not in chunk for chunk in plain)
    body = TEXT | {"stream_options": {"include_usage": True}}
    *chunks, usage, done = await stream(world, tools, "/v1/completions", body)
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == len(tokens)
    assert all("usage" not in chunk for chunk in chunks)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_continuous_usage_counts_up_on_every_chunk(world, tools, path):
    _, tokens = say(world, tools)
    body = (TEXT if path == "/v1/completions" else CHAT) | {
        "stream_options": {"include_usage": True, "continuous_usage_stats": True}
    }
    *chunks, _ = await stream(world, tools, path, body)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == len(tokens)


async def test_choices_and_prompts_interleave_by_index(world, tools):
    texts = {i: f"choice {i}" for i in range(6)}
    world.generator.script = lambda request: tools.events(request, world.ids(texts[request.choice]))
    body = {"model": "m", "prompt": ["a", "b", "c"], "n": 2, "max_tokens": 50}
    *chunks, _ = await stream(world, tools, "/v1/completions", body)
    joined = dict.fromkeys(texts, "")
    for chunk in chunks:
        joined[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert joined == texts
    _, _, answer = await world.post("/v1/completions", body)
    assert [choice["text"] for choice in answer["choices"]] == list(texts.values())
    assert answer["usage"]["prompt_tokens"] == 3
    prompts = [request.tokens for request, _ in world.generator.requests.values()][6:]
    assert prompts == [tuple(world.ids(text)) for text in "aabbcc"]
    for chunk_format in (CHAT | {"n": 3},):
        chunks = await stream(world, tools, "/v1/chat/completions", chunk_format)
        roles = [c for c in chunks[:-1] if c["choices"][0]["delta"].get("role")]
        assert sorted(c["choices"][0]["index"] for c in roles) == [0, 1, 2]


async def test_what_one_choice_computes_for_others_is_not_told_as_cached(world, tools):
    found = {0: 2, 1: 5, 2: 0, 3: 4}  # of the first prompt and of the second
    world.generator.script = lambda request: tools.events(
        request, world.ids("Hi"), cached_tokens=found[request.choice], queued_s=0.1
    )
    prompts = [[*range(10, 20)], [*range(20, 30)]]
    _, _, answer = await world.post("/v1/completions", {"model": "m", "prompt": prompts, "n": 2})
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}


@pytest.mark.parametrize("kind", ["ids", "lists"])
async def test_token_id_prompts_and_echo(world, tools, kind):
    text, _ = say(world, tools)
    ids = world.ids("Hello fox")
    body = {"model": "m", "prompt": ids if kind == "ids" else [ids], "echo": True}
    _, _, answer = await world.post("/v1/completions", body)
    assert world.generator.last[0].tokens == tuple(ids)
    assert answer["choices"][0]["text"] == "Hello fox" + text
    chunks = await stream(world, tools, "/v1/completions", body)
    assert "".join(c["choices"][0]["text"] for c in chunks[:-1]) == "Hello fox" + text


@pytest.mark.parametrize("max_tokens", [0, 5])
async def test_echo_with_logprobs_tells_those_of_the_prompt_first(world, tools, max_tokens):
    text, ids = "Hello fox", world.ids("Hello fox")
    output = world.ids("Hi Hi")[:5]
    logprobs = [Logprobs(-0.25, ((7, -0.25),))] * len(output)
    scores = [Logprobs(-float(n), ((8, -0.5),)) for n in range(1, len(ids))]
    events = [
        TokenEvent("", 0, output[:1], logprobs[:1], queued_s=0.1, prompt_logprobs=scores),
        TokenEvent("", 0, output[1:], logprobs[1:], FinishReason.LENGTH),
    ]

    def script(request):
        told = events if max_tokens else [replace(events[0], finish=FinishReason.STOP)]
        return [replace(event, request_id=request.id) for event in told]

    world.generator.script = script
    body = {"model": "m", "prompt": text, "echo": True, "logprobs": 1, "max_tokens": max_tokens}
    _, _, answer = await world.post("/v1/completions", body)
    request, _ = world.generator.last
    assert (request.sampling.prompt_logprobs, request.sampling.max_tokens) == (
        1,
        max(1, max_tokens),
    )
    (choice,) = answer["choices"]
    shown = world.text.decode(output, skip_special_tokens=True) if max_tokens else ""
    assert choice["text"] == text + shown
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == (len(output) if max_tokens else 0)
    told = choice["logprobs"]
    assert told["token_logprobs"] == [None, *(-float(n) for n in range(1, len(ids)))] + (
        [-0.25] * len(output) if max_tokens else []
    )
    assert told["top_logprobs"][0] is None
    assert len(told["top_logprobs"][1]) == 2
    assert told["text_offset"][0] == 0
    assert "".join(told["tokens"]) == text + shown
    chunks = await stream(world, tools, "/v1/completions", body)
    parts = [c["choices"][0]["logprobs"] for c in chunks[:-1] if c["choices"][0]["logprobs"]]
    for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [item for part in parts for item in part[key]] == told[key]


async def test_end_of_sequence_ends_the_text_but_counts(world, tools):
    tokens = [*world.ids("Hi"), 2]
    world.generator.script = lambda r: tools.events(r, tokens, FinishReason.STOP)
    _, _, answer = await world.post("/v1/completions", TEXT | {"skip_special_tokens": False})
    assert answer["choices"][0]["text"] == "Hi"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == len(tokens)
    body = TEXT | {"skip_special_tokens": False, "include_stop_str_in_output": True}
    _, _, answer = await world.post("/v1/completions", body)
    assert answer["choices"][0]["text"] == "Hi<|im_end|>"


async def test_a_stop_string_cuts_counts_and_aborts(world, tools):
    text = "one two STOP three"
    tokens = world.ids(text)
    for per_event in (1, 2, 50):
        world.generator.script = lambda r, p=per_event: tools.events(r, tokens, per_event=p)
        for path, body in (("/v1/completions", TEXT), ("/v1/chat/completions", CHAT)):
            _, _, answer = await world.post(path, body | {"stop": ["STOP", "never"]})
            choice = answer["choices"][0]
            assert (choice.get("text") or choice["message"]["content"]) == "one two "
            assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "STOP")
            used = next(
                i
                for i in range(len(tokens))
                if "STOP" in world.text.decode(tokens[:i], skip_special_tokens=True)
            )
            assert answer["usage"]["completion_tokens"] == used
            if per_event < 50:
                assert world.generator.last[0].id in world.generator.aborted
        *chunks, _ = await stream(world, tools, "/v1/completions", TEXT | {"stop": "STOP"})
        assert "".join(c["choices"][0]["text"] for c in chunks) == "one two "
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_min_tokens_holds_stop_strings_off(world, tools):
    tokens = [*world.ids("x"), *world.ids("x"), *world.ids("x"), *world.ids("y")]
    world.generator.script = lambda r: tools.events(r, tokens)
    _, _, answer = await world.post("/v1/completions", TEXT | {"stop": "x", "min_tokens": 2})
    assert answer["choices"][0]["text"] == "xx"
    assert answer["usage"]["completion_tokens"] == 3


async def test_an_unfinished_character_is_flushed_at_the_end(world, tools):
    tokens = world.ids("a😀")[:-1]
    assert len(world.ids("😀")) > 1
    world.generator.script = lambda r: tools.events(r, tokens)
    *chunks, _ = await stream(world, tools, "/v1/completions", TEXT)
    texts = [chunk["choices"][0]["text"] for chunk in chunks]
    assert "".join(texts) == "a�"
    assert "�" not in "".join(texts[:-1])


async def test_logprobs_of_chat(world, tools):
    text, tokens = say(world, tools, "Hi you")
    logprobs = [Logprobs(-0.5, ((5, -0.25), (token, -0.5))) for token in tokens]
    made = [TokenEvent("", 0, [t], [given]) for t, given in zip(tokens, logprobs, strict=True)]
    made[-1].finish = FinishReason.LENGTH
    world.generator.script = lambda r: made
    body = CHAT | {"logprobs": True, "top_logprobs": 2}
    _, _, answer = await world.post("/v1/chat/completions", body)
    assert world.generator.last[0].sampling.logprobs == 2
    content = answer["choices"][0]["logprobs"]["content"]
    assert "".join(item["token"] for item in content) == text
    assert bytes(b for item in content for b in item["bytes"]) == text.encode()
    assert content[0]["logprob"] == -0.5
    assert [top["logprob"] for top in content[0]["top_logprobs"]] == [-0.25, -0.5]
    *chunks, _ = await stream(world, tools, "/v1/chat/completions", body)
    streamed = [
        i for c in chunks for i in (c["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == content


async def test_logprobs_of_text(world, tools):
    text, tokens = say(world, tools, "Hi you")
    logprobs = [Logprobs(float("-inf"), ((5, -0.25),)) for _ in tokens]
    made = [TokenEvent("", 0, tokens, logprobs, FinishReason.LENGTH)]
    world.generator.script = lambda r: made
    _, _, answer = await world.post("/v1/completions", TEXT | {"logprobs": 1})
    found = answer["choices"][0]["logprobs"]
    assert "".join(found["tokens"]) == text
    assert found["token_logprobs"] == [-9999.0] * len(tokens)
    assert found["top_logprobs"][0] == {
        world.text.table.raw[5].decode(): -0.25,
        found["tokens"][0]: -9999.0,
    }
    assert found["text_offset"][-1] == len(text) - len(found["tokens"][-1])


@pytest.mark.parametrize("per_event", [1, 9])
async def test_a_token_that_ends_the_text_has_no_logprobs(world, tools, per_event):
    tokens = [*world.ids("Hi"), 2]

    def script(request):
        made = tools.events(request, tokens, FinishReason.STOP, per_event)
        for event in made:
            event.logprobs = [Logprobs(-0.5, ()) for _ in event.tokens]
        return made

    world.generator.script = script
    _, _, answer = await world.post("/v1/completions", TEXT | {"logprobs": 0})
    assert "".join(answer["choices"][0]["logprobs"]["tokens"]) == "Hi"
    assert answer["usage"]["completion_tokens"] == len(tokens)
    body = CHAT | {"logprobs": True}
    _, _, answer = await world.post("/v1/chat/completions", body)
    content = answer["choices"][0]["logprobs"]["content"]
    assert "".join(item["token"] for item in content) == "Hi"
    *chunks, _ = await stream(world, tools, "/v1/chat/completions", body)
    found = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [item for part in found if part for item in part["content"]] == content
    if per_event == 1:
        assert found[-1] is None
    _, _, answer = await world.post("/v1/completions", TEXT | {"logprobs": 0, "stop": "i"})
    assert answer["choices"][0]["text"] == "H"


async def test_token_ids_come_back_where_asked(world, tools):
    _, tokens = say(world, tools)
    ask = {"return_token_ids": True}
    _, _, answer = await world.post("/v1/completions", TEXT | ask)
    prompt = list(world.generator.last[0].tokens)
    assert answer["choices"][0]["token_ids"] == tokens
    assert answer["choices"][0]["prompt_token_ids"] == prompt
    *chunks, _ = await stream(world, tools, "/v1/completions", TEXT | ask)
    assert list(chain.from_iterable(c["choices"][0]["token_ids"] for c in chunks)) == tokens
    assert chunks[0]["choices"][0]["prompt_token_ids"] == prompt
    assert "prompt_token_ids" not in chunks[1]["choices"][0]
    *chunks, _ = await stream(world, tools, "/v1/chat/completions", CHAT | ask)
    assert chunks[0]["prompt_token_ids"] == list(world.generator.last[0].tokens)
    assert list(chain.from_iterable(c["choices"][0].get("token_ids", []) for c in chunks)) == tokens


async def test_refusals_before_the_first_token_are_statuses(world):
    world.generator.refusal = lambda r: Overloaded("full", retry_after_s=500.2)
    for streamed in (True, False):
        status, headers, body = await world.post("/v1/completions", TEXT | {"stream": streamed})
        assert status == 429
        assert headers["Retry-After"] == "120"
        assert headers["x-blitzgw-error-code"] == "overloaded"
        assert body["error"] == {
            "message": "full",
            "type": "RateLimitError",
            "param": None,
            "code": 429,
        }
    world.generator.refusal = None
    world.generator.script = lambda r: [Unavailable("none", retry_after_s=0.2)]
    for streamed in (True, False):
        status, headers, _ = await world.post("/v1/completions", TEXT | {"stream": streamed})
        assert (status, headers["Retry-After"]) == (503, "1")


async def test_who_is_turned_away_is_told_before_a_prompt_is_made(world, monkeypatch):
    monkeypatch.setattr(world.text, "render", None)
    monkeypatch.setattr(world.text, "encode_all", None)
    world.generator.full = Overloaded("full", retry_after_s=2.5)
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)):
        status, headers, answer = await world.post(path, body | {"stream": True})
        assert (status, headers["Retry-After"]) == (429, "3")
        assert headers["x-blitzgw-error-code"] == "overloaded"
        assert answer["error"]["message"] == "full"
    status, _, _ = await world.post("/v1/completions", TEXT | {"model": "nobody"})
    assert status == 404
    assert world.services.metrics.models["m"].rejections == {"overloaded": 2}
    assert not world.generator.requests


async def test_a_refused_choice_undoes_the_others(world):
    world.generator.refusal = lambda r: Overloaded("full") if r.choice == 2 else None
    status, _, _ = await world.post("/v1/completions", TEXT | {"n": 4})
    assert status == 429
    assert sorted(world.generator.aborted) == sorted(world.generator.requests)
    assert len(world.generator.requests) == 2
    assert world.server.active == 0


async def test_an_error_after_the_headers_is_an_event(world):
    world.generator.tick_s = 0.01
    world.generator.script = lambda r: [
        TokenEvent(r.id, 0, world.ids("Hi")),
        GenerationFailed("it broke"),
    ]
    async with world.http.post(
        world.url("/v1/completions"), json=TEXT | {"stream": True, "n": 2}
    ) as response:
        assert response.status == 200
        events = [json.loads(e[6:]) for e in (await response.read()).strip().split(b"\n\n")]
    assert events[-1]["error"] == {
        "message": "it broke",
        "type": "InternalServerError",
        "param": None,
        "code": 500,
    }
    assert len(world.generator.aborted) == 1  # the sibling


async def test_openai_client_async_and_streaming(world, tools):
    text, tokens = say(world, tools)
    async with openai.AsyncOpenAI(base_url=world.url("/v1"), api_key="none") as client:
        answer = await client.chat.completions.create(**CHAT, seed=1, temperature=0.5)
        assert answer.choices[0].message.content == text
        assert answer.usage.completion_tokens == len(tokens)
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(
                **CHAT, stream=True, stream_options={"include_usage": True}
            )
        ]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
        assert chunks[-1].usage.total_tokens > 0
        legacy = await client.completions.create(model="m", prompt=["a", "b"], max_tokens=5)
        assert [choice.index for choice in legacy.choices] == [0, 1]
        assert [model.id async for model in client.models.list()] == ["m", "alias"]
        assert (await client.models.retrieve("m")).id == "m"
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="other", messages=CHAT["messages"])
        assert caught.value.param == "model"
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(**CHAT, top_p=7)


async def test_openai_client_sync(world, tools):
    text, _ = say(world, tools)

    def use():
        with openai.OpenAI(base_url=world.url("/v1"), api_key="none") as client:
            answer = client.chat.completions.create(**CHAT)
            streamed = client.chat.completions.create(**CHAT, stream=True)
            parts = [chunk.choices[0].delta.content or "" for chunk in streamed]
            return answer.choices[0].message.content, "".join(parts)

    assert await asyncio.to_thread(use) == (text, text)


async def test_openai_client_sees_an_error_in_a_stream(world):
    world.generator.script = lambda r: [
        TokenEvent(r.id, 0, world.ids("Hi")),
        GenerationFailed("it broke"),
    ]
    world.generator.tick_s = 0.01
    async with openai.AsyncOpenAI(base_url=world.url("/v1"), api_key="none") as client:
        with pytest.raises(openai.APIError, match="it broke"):
            async for _ in await client.chat.completions.create(**CHAT, stream=True):
                pass


async def test_a_token_that_cannot_be_meant_fails_its_own_request_only(world):
    world.generator.script = lambda r: [TokenEvent(r.id, 0, [10**6])]
    for streamed in (True, False):
        status, _, body = await world.post("/v1/completions", TEXT | {"stream": streamed})
        assert (status, body["error"]["message"]) == (500, "internal error")
    assert len(world.generator.aborted) == 2
    assert world.server.active == 0
