"""The official client against a real node with a real model."""

import asyncio
import random
from pathlib import Path

import openai
import pytest
import torch
import transformers

from tests.support.nodes import MODEL, cpu, running

PROMPT = "The capital of France is"
CHAT = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    with running(tmp_path_factory.mktemp("openai"), cpu()) as node:
        yield node


@pytest.fixture(scope="module")
def api(node):
    with openai.OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0) as api:
        yield api


@pytest.fixture(scope="module")
def plain(api):
    return api.completions.create(model=MODEL, prompt=PROMPT, max_tokens=12, temperature=0)


def test_models(api):
    (model,) = api.models.list().data
    assert model.id == api.models.retrieve(MODEL).id == MODEL
    assert model.max_model_len == 2048


def test_a_completion(plain):
    choice = plain.choices[0]
    assert choice.text.startswith(" Paris")
    assert choice.finish_reason == "length"
    assert (plain.usage.prompt_tokens, plain.usage.completion_tokens) == (5, 12)


def test_a_streamed_completion_is_the_same(api, plain):
    chunks = list(
        api.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=12, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert "".join(c.choices[0].text for c in chunks if c.choices) == plain.choices[0].text
    assert chunks[-1].usage.completion_tokens == 12
    assert {c.id for c in chunks} == {chunks[0].id}


def test_a_chat(api):
    answer = api.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=24, temperature=0)
    choice = answer.choices[0]
    assert "Paris" in choice.message.content
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")


def test_a_streamed_chat_is_the_same(api):
    asked = {"model": MODEL, "messages": CHAT, "max_tokens": 24, "temperature": 0}
    whole = api.chat.completions.create(**asked)
    with api.chat.completions.stream(**asked) as events:
        for _ in events:
            pass
        streamed = events.get_final_completion()
    assert streamed.choices[0].message.content == whole.choices[0].message.content
    assert streamed.choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_client_that_closes_early(api, node):
    streamed = api.completions.create(model=MODEL, prompt=PROMPT, max_tokens=1500, stream=True)
    next(iter(streamed))
    streamed.close()


async def test_the_async_client(node, plain):
    async with openai.AsyncOpenAI(base_url=f"{node.url}/v1", api_key="none") as api:

        async def one():
            text = ""
            async for chunk in await api.completions.create(
                model=MODEL, prompt=PROMPT, max_tokens=12, temperature=0, stream=True
            ):
                text += chunk.choices[0].text
            return text

        assert await asyncio.gather(*(one() for _ in range(4))) == [plain.choices[0].text] * 4


def test_several_choices(api):
    asked = {"model": MODEL, "prompt": PROMPT, "max_tokens": 8, "n": 3, "seed": 5}
    asked["extra_body"] = {"ignore_eos": True}
    first, again = api.completions.create(**asked), api.completions.create(**asked)
    texts = [choice.text for choice in first.choices]
    assert len(set(texts)) > 1
    assert texts == [choice.text for choice in again.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert (first.usage.prompt_tokens, first.usage.completion_tokens) == (5, 24)


def test_several_prompts(api, plain):
    prompts = [PROMPT, "One, two, three,", PROMPT]
    answer = api.completions.create(model=MODEL, prompt=prompts, max_tokens=12, temperature=0)
    assert answer.choices[0].text == answer.choices[2].text == plain.choices[0].text
    assert answer.choices[1].text != plain.choices[0].text


async def test_a_seed_gives_the_same_in_any_company(node):
    async with openai.AsyncOpenAI(base_url=f"{node.url}/v1", api_key="none") as api:

        async def one(seed, prompt=PROMPT):
            answer = await api.completions.create(
                model=MODEL, prompt=prompt, max_tokens=16, temperature=0.9, top_p=0.95, seed=seed
            )
            return answer.choices[0].text

        alone = await one(1)
        crowd = await asyncio.gather(one(1), one(2), one(3, "Once upon a time"), one(1))
    assert crowd[0] == crowd[3] == alone
    assert crowd[1] != alone


def test_token_ids_as_a_prompt(api, node, plain):
    tokens = node.post("/tokenize", {"model": MODEL, "prompt": PROMPT}).json
    assert tokens["count"] == len(tokens["tokens"]) == 5
    text = node.post("/detokenize", {"model": MODEL, "tokens": tokens["tokens"]}).json
    assert text == {"prompt": PROMPT}
    answer = api.completions.create(
        model=MODEL, prompt=tokens["tokens"], max_tokens=12, temperature=0
    )
    assert answer.choices[0].text == plain.choices[0].text


def test_stop_strings(api, plain):
    stop = plain.choices[0].text[3:8]
    answer = api.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=12, temperature=0, stop=[stop]
    )
    assert answer.choices[0].text == plain.choices[0].text[:3]
    assert answer.choices[0].finish_reason == "stop"


def test_log_probabilities(api):
    answer = api.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=4, temperature=0, logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert "".join(logprobs.tokens) == answer.choices[0].text
    for token, chosen, top in zip(
        logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
    ):
        assert chosen <= 0
        assert len(top) == 3
        assert max(top, key=top.get) == token
    chat = api.chat.completions.create(
        model=MODEL, messages=CHAT, max_tokens=4, temperature=0, logprobs=True, top_logprobs=2
    )
    content = chat.choices[0].logprobs.content
    assert "".join(entry.token for entry in content) == chat.choices[0].message.content
    assert all(entry.top_logprobs[0].token == entry.token for entry in content)


def test_log_probabilities_of_a_prompt_are_those_of_transformers(api, smollm2):
    """As harnesses of benchmarks ask for them: to compare continuations, none is generated."""
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    ).eval()
    tokens = [random.Random(1).randrange(49152) for _ in range(300)]
    asked = {"model": MODEL, "prompt": tokens, "echo": True, "logprobs": 2, "temperature": 0}
    answer = api.completions.create(max_tokens=0, **asked)
    with torch.inference_mode():
        logits = reference(torch.tensor([tokens])).logits[0, :-1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    told = answer.choices[0].logprobs.token_logprobs
    assert told[0] is None
    assert told[1:] == pytest.approx(expected.tolist(), abs=2e-3)
    assert answer.usage.completion_tokens == 0
    (other,) = api.completions.create(max_tokens=3, **asked).choices
    assert other.logprobs.token_logprobs[:300] == told
    assert len(other.logprobs.tokens) == 303
    best = {max(top, key=top.get) for top in other.logprobs.top_logprobs[-3:]}
    assert best == set(other.logprobs.tokens[-3:])


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"model": "gpt-5"}, openai.NotFoundError, "model"),
        ({"max_tokens": -1}, openai.BadRequestError, "max_tokens"),
        ({"temperature": "warm"}, openai.BadRequestError, "temperature"),
        ({"prompt": [0] * 2048}, openai.BadRequestError, "prompt"),
        ({"prompt": []}, openai.BadRequestError, "prompt"),
        ({"prompt": [10**9]}, openai.BadRequestError, "prompt"),
        ({"stop": ["x"] * 10_000}, openai.BadRequestError, "stop"),
        ({"n": 0}, openai.BadRequestError, "n"),
        ({"extra_body": {"stream_options": {}}}, openai.BadRequestError, "stream_options"),
    ],
)
def test_mistakes_are_told(api, fields, error, param):
    with pytest.raises(error) as raised:
        api.completions.create(**{"model": MODEL, "prompt": PROMPT} | fields)
    assert raised.value.body["param"] == param
    assert raised.value.body["message"]


def test_mistakes_of_a_chat_are_told(api):
    with pytest.raises(openai.BadRequestError) as raised:
        api.chat.completions.create(model=MODEL, messages=[])
    assert raised.value.body["param"] == "messages"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[]", 400),
        (b"[{}]", 400),
        (b"\xff\xfe", 400),
        (b'{"model": "smollm2-135m", "prompt": "\xff"}', 400),
        (b'{"model": "smollm2-135m", "prompt": "x", "temperature": NaN}', 400),
        (b'{"model": "smollm2-135m", "prompt": "x", "max_tokens": 1e400}', 400),
        (b"[" * 100_000, 400),
        (b" " * (50 << 20), 413),
    ],
)
def test_broken_bodies_are_refused(node, body, status):
    reply = node.post("/v1/completions", body)
    assert reply.status == status
    assert reply.error["code"] == status


def test_who_served_is_told(node):
    reply = node.post("/v1/completions", {"model": MODEL, "prompt": PROMPT, "max_tokens": 1})
    assert reply.headers["x-blitzgw-node"] == "test"
    assert reply.headers["x-blitzgw-instance"] == f"{MODEL}@test/cpu0"


def test_the_gateway_stays_small(api, node, plain):
    """Last in this file: it has served all of the above, 50 MB bodies included."""
    assert node.resident_mib() <= 190  # some 35 of it are the tables of fastokens
    assert "libtorch" not in Path(f"/proc/{node.pid}/maps").read_text()
    assert "libtorch" in Path(f"/proc/{node.worker()}/maps").read_text()
