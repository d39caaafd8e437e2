"""Every field that can be wrong, and what its sender is told."""

import json

import pytest

from blitzgw.core.request import SamplingParams

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
TEXT = {"model": "m", "prompt": "Hello"}

BAD_COMMON = [
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_tokens": 5000}, "max_tokens"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 1.5}, "min_p"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": -2.5}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"stop": [f"s{i}" for i in range(17)]}, "stop"),
    ({"stop": [f"s{i}" for i in range(10_000)]}, "stop"),
    ({"stop": ["x" * 1025]}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": [1]}, "stop"),
    ({"stop_token_ids": [600]}, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ({"stop_token_ids": [1] * 1025}, "stop_token_ids"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"600": 1}}, "logit_bias"),
    ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"1": "a"}}, "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
    ({"min_tokens": 5000}, "min_tokens"),
    ({"seed": 2**64}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"priority": 2**40}, "priority"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options"),
    ({"best_of": 3}, "best_of"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {}}, "response_format"),
    ({"response_format": "json_object"}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"guided_json": {}}, "guided_json"),
    ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs"),
    ({"structured_outputs": {"json": {}, "choice": ["a"]}}, "structured_outputs"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs"),
    ({"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs"),
    (
        {"structured_outputs": {"json": {}}, "response_format": {"type": "json_object"}},
        "structured_outputs",
    ),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"prompt_logprobs": 0}, "prompt_logprobs"),
    ({"logits_processors": ["x"]}, "logits_processors"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"suffix": "x"}, "suffix"),
    ({"store": True}, "store"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"cache_salt": "x"}, "cache_salt"),
    ({"moderation": {"model": "x"}}, "moderation"),
    ({"model": "m:adapter"}, "model"),
    ({"lora_path": "adapter"}, "lora_path"),
    ({"lora_request": {"lora_name": "adapter"}}, "lora_request"),
    ({"adapter_id": "adapter"}, "adapter_id"),
]
IMAGE = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
BAD_CHAT = [
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"content": "x"}]}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages"),
    ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x " * 5000}]}, "messages"),
    ({"logprobs": 3}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tools": [{"type": "function"}], "tool_choice": "auto"}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"echo": True}, "echo"),
    ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
    ({"chat_template_kwargs": {"messages": "x"}}, "chat_template_kwargs"),
]  # fmt: skip
BAD_TEXT = [
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": [1.5]}, "prompt"),
    ({"prompt": {"x": 1}}, "prompt"),
    ({"prompt": [600]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [[1], [10**30]]}, "prompt"),
    ({"prompt": ["a"] * 1025}, "prompt"),
    ({"prompt": ["a"] * 100, "n": 100}, "n"),
    ({"prompt": [1] * 4096}, "prompt"),
    ({"prompt": [1] * 4095, "max_tokens": 2}, "max_tokens"),
    ({"prompt": "a" * 1_000_000}, "prompt"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"prompt": [1] * 4000, "logprobs": 20, "echo": True}, "logprobs"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1, "echo": True}, "max_tokens"),
]


def check(status, headers, answer, param):
    assert status == 400
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["code"] == 400
    assert answer["error"]["type"] == "BadRequestError"
    assert answer["error"]["param"] == param
    assert len(answer["error"]["message"]) < 400
    assert headers["x-blitzgw-error-code"]


@pytest.mark.parametrize(("path", "base", "cases"), [
    ("/v1/chat/completions", CHAT, BAD_COMMON + BAD_CHAT),
    ("/v1/completions", TEXT, BAD_COMMON + BAD_TEXT),
])  # fmt: skip
async def test_bad_fields_are_named(world, path, base, cases):
    for wrong, param in cases:
        status, headers, answer = await world.post(path, base | wrong)
        check(status, headers, answer, param)
    assert world.generator.requests == {}


BAD_BODIES = [
    b"", b" ", b"null", b"5", b'"x"', b"[]", b'[{"model":"m"}]', b"{", b'{"model":"m"}x',
    b'{"temperature":NaN}', b'{"temperature":Infinity}', b'{"temperature":1e999}',
    b'{"x":NaN}', b'{"model":"\xff"}', b'{"x":"\xff"}', b'{"model":"\\ud800"}',
    b'{"model":"\\udc00"}', b"{'model':1}", b"\xef\xbb\xbf{}", b"model=m",
    b'{"x":' + b"[" * 100_000, b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"messages":' + b'[{"content":' * 50_000,
    b'{"max_tokens":' + b"9" * 10_000 + b"}",
]  # fmt: skip


async def test_bad_bodies_are_400(world):
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
        for body in BAD_BODIES:
            status, _, answer = await world.post(path, body)
            assert status == 400, body[:40]
            assert answer["error"]["code"] == 400
            assert len(answer["error"]["message"]) < 300


HARMLESS = {
    "unknown": {"deep": [1, 2]}, "user": "u", "metadata": {"a": "b"}, "store": False,
    "tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "best_of": 1,
    "suffix": None, "functions": None, "modalities": ["text"], "logit_bias": {}, "stop": None,
    "stop_token_ids": [], "top_k": -1, "seed": -5, "stream": False, "stream_options": None,
    "guided_json": None, "use_beam_search": False, "parallel_tool_calls": True, "n": None,
    "service_tier": "auto", "logprobs": None, "top_logprobs": None, "echo": False,
    "presence_penalty": 0, "length_penalty": 1, "max_tokens": None,
}  # fmt: skip


async def test_harmless_values_pass(world, tools):
    world.generator.script = lambda r: tools.events(r, world.ids("Hi"))
    for path, base in (("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)):
        status, _, answer = await world.post(path, base | HARMLESS)
        assert status == 200, answer
        assert world.generator.last[0].sampling.seed == 2**63 - 5
    tool = {"type": "function", "function": {"name": "f"}}
    body = CHAT | {"tools": [tool], "tool_choice": "none", "parallel_tool_calls": True}
    assert (await world.post("/v1/chat/completions", body))[0] == 200


async def test_fields_arrive(world, tools):
    world.generator.script = lambda r: tools.events(r, world.ids("Hi"))
    body = TEXT | {
        "max_tokens": 20, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05,
        "presence_penalty": 1, "frequency_penalty": -1, "repetition_penalty": 1.1,
        "stop_token_ids": [7, 7, 8], "ignore_eos": True, "min_tokens": 3, "seed": 11,
        "logprobs": 4, "logit_bias": {"9": -100, "3": 2.5}, "priority": -4,
    }  # fmt: skip
    assert (await world.post("/v1/completions", body))[0] == 200
    request = world.generator.last[0]
    assert request.priority == -4
    assert request.sampling == SamplingParams(
        max_tokens=20, temperature=0.5, top_p=0.9, top_k=40, min_p=0.05, presence_penalty=1,
        frequency_penalty=-1, repetition_penalty=1.1, stop_token_ids=(7, 8), ignore_eos=True,
        min_tokens=3, seed=11, logprobs=4, logit_bias=((3, 2.5), (9, -100)),
    )  # fmt: skip


async def test_defaults(world, tools):
    world.generator.script = lambda r: tools.events(r, world.ids("Hi"))
    await world.post("/v1/completions", TEXT)
    assert world.generator.last[0].sampling == SamplingParams(max_tokens=16, seed=7)
    await world.post("/v1/completions", {"model": "m", "prompt": [1] * 4090})
    assert world.generator.last[0].sampling.max_tokens == 6
    await world.post("/v1/chat/completions", CHAT | {"max_tokens": 5, "max_completion_tokens": 6})
    assert world.generator.last[0].sampling.max_tokens == 6


async def test_parts_and_names_reach_the_template(make_world, tools, tmp_path):
    source = (
        "{% for m in messages %}{{ m.role }}/{{ m.name }}:{{ m.content }}{% endfor %}|{{ mode }}"
    )
    text = tools.text_model(tools.byte_level(), tmp_path, source)
    world = await make_world(text=text)
    world.generator.script = lambda r: tools.events(r, world.ids("Hi"))
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = {
        "messages": [{"role": "user", "name": "bob", "content": parts}],
        "chat_template_kwargs": {"mode": "fast"},
    }
    assert (await world.post("/v1/chat/completions", body))[0] == 200
    prompt = text.decode(world.generator.last[0].tokens, skip_special_tokens=False)
    assert prompt == "user/bob:a\nb|fast"


async def test_without_a_template_chat_points_to_completions(make_world, tools, tmp_path):
    world = await make_world(text=tools.text_model(tools.byte_level(), tmp_path, None))
    status, _, answer = await world.post("/v1/chat/completions", CHAT)
    assert status == 400
    assert "/v1/completions" in answer["error"]["message"]


async def test_models_are_found_by_name_and_alias_only(make_world, tools):
    world = await make_world()
    world.generator.script = lambda r: tools.events(r, world.ids("Hi"))
    for name in ("alias", None, "m"):
        status, _, answer = await world.post("/v1/completions", TEXT | {"model": name})
        assert (status, answer["model"]) == (200, "m")
    for name in ("M", "../m", "/etc/passwd", "x" * 5000, ""):
        status, headers, answer = await world.post("/v1/completions", TEXT | {"model": name})
        assert status == 404
        assert headers["x-blitzgw-error-code"] == "model_not_found"
        assert (answer["error"]["type"], answer["error"]["param"]) == ("NotFoundError", "model")
        assert "known models: m" in answer["error"]["message"]
        assert len(answer["error"]["message"]) < 200
    other = await make_world(aliases=("*",))
    other.generator.script = lambda r: tools.events(r, world.ids("Hi"))
    assert (await other.post("/v1/completions", TEXT | {"model": "gpt-4"}))[0] == 200


async def test_tokenize_and_detokenize(world):
    status, _, answer = await world.post("/tokenize", {"model": "m", "prompt": "Köln 😀"})
    assert status == 200
    assert answer == {
        "tokens": world.ids("Köln 😀"),
        "count": len(world.ids("Köln 😀")),
        "max_model_len": 4096,
    }
    _, _, back = await world.post("/detokenize", {"model": "m", "tokens": answer["tokens"]})
    assert back == {"prompt": "Köln 😀"}
    _, _, chat = await world.post("/tokenize", {"messages": CHAT["messages"]})
    _, _, back = await world.post("/detokenize", {"tokens": chat["tokens"]})
    assert back["prompt"].startswith("<|im_start|>user\nHello")
    for body in ({}, {"prompt": "a", "messages": []}, {"prompt": 5}):
        assert (await world.post("/tokenize", body))[0] == 400
    for body in ({}, {"tokens": [600]}, {"tokens": [-1]}, {"tokens": ["a"]}):
        assert (await world.post("/detokenize", body))[0] == 400
    assert (await world.post("/detokenize", {"tokens": []}))[2] == {"prompt": ""}


async def test_errors_do_not_quote_secrets(world):
    body = json.dumps(TEXT | {"temperature": "SECRET PROMPT"}).encode()
    _, _, answer = await world.post("/v1/completions", body)
    assert "SECRET" not in json.dumps(answer)
