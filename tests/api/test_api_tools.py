"""Tools over HTTP: what templates get, what clients get, streamed and not, and what is refused."""

import json

import openai
import pytest
from tokenizers import AddedToken

from blitzgw.api.dialects import HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, ask
from blitzgw.api.template import ChatTemplate
from blitzgw.core.request import FinishReason, Logprobs

QWEN_LIKE = """
{%- if tools %}<|im_start|>system
You may call:{% for t in tools %} {{ t | tojson }}{% endfor %}
so: <tool_call>
{"name": a name, "arguments": an object}
</tool_call><|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for c in m.tool_calls %}
<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LLAMA_LIKE = """{{ bos_token }}
{%- for m in messages %}<|im_start|>{{ m.role }}
{% if loop.first and tools is not none %}Answer with a call such as {"name": n, "parameters": p}.
{% for t in tools %}{{ t | tojson(indent=4) }}
{% endfor %}{% endif %}
{%- if 'tool_calls' in m %}
{%- if m.tool_calls | length != 1 %}{{ raise_exception("one call at a time") }}{% endif %}
{%- set f = m.tool_calls[0].function -%}
{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}
{%- else %}{{ m.content | trim }}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
MISTRAL_LIKE = """{{ bos_token }}
{%- for m in messages %}
{%- if m.role == "user" %}
{%- if tools is not none and loop.last %}[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}
{{- "[INST]" + m.content + "[/INST]" }}
{%- elif m.tool_calls is defined %}[TOOL_CALLS][
{%- for c in m.tool_calls %}
{%- if c.id | length != 9 %}{{ raise_exception("an id has nine characters") }}{% endif %}
{{- (c.function | tojson)[:-1] + ', "id": "' + c.id + '"}' }}{{ "" if loop.last else ", " }}
{%- endfor %}]{{ eos_token }}
{%- elif m.role == "tool" %}[RESULT]{{ m.tool_call_id }}:{{ m.content }}
{%- else %}{{ m.content + eos_token }}{% endif %}
{%- endfor %}"""
NAMED_LIKE = """
{%- for m in messages %}
{%- if m.role == "user" %}
{%- if tools is not none %}[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}[INST]{{ m.content }}
{%- elif m.tool_calls is defined %}
{%- for c in m.tool_calls %}{% set f = c.function -%}
[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}
{%- endfor %}
{%- else %}{{ m.content }}{% endif %}
{%- endfor %}"""
XML_LIKE = QWEN_LIKE.replace('{"name": a name, "arguments": an object}', "<function=n>").replace(
    """{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}""",
    "<function={{ c.function.name }}>",
)
NO_TOOLS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer"}},
            "required": ["city"],
            "additionalProperties": False,
            "$defs": {"city": {"enum": ["Köln", "東京"]}},
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
TOOLS = CHAT | {"tools": [WEATHER, CLOCK]}
KOELN = '{"city": "Köln"}'


def text_model(tools, folder, template, special):
    """Return a text model whose words for calls are tokens, special ones or not."""
    tokenizer = tools.byte_level()
    words = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>"]
    tokenizer.add_tokens([AddedToken(word, special=special) for word in words])
    return tools.text_model(tokenizer, folder, template, vocab=600)


@pytest.fixture(params=[True, False], ids=["special", "plain"])
def start(request, make_world, tools, tmp_path):
    """Start a server of a template; `say(text)` sets what its model answers."""

    async def make(template):
        text = text_model(tools, tmp_path, template, request.param)
        world = await make_world(text=text, max_model_len=1 << 18)

        def say(text, per_event=1, finish=FinishReason.STOP, **first):
            tokens = [*world.ids(text), 2]
            world.generator.script = lambda r: tools.events(r, tokens, finish, per_event, **first)
            return tokens

        world.say = say
        return world

    return make


@pytest.mark.parametrize(("template", "dialect", "shows_tools", "shows_calls"), [
    (QWEN_LIKE, HERMES, True, True),
    (LLAMA_LIKE, LLAMA, True, True),
    (MISTRAL_LIKE, MISTRAL, True, True),
    (NAMED_LIKE, MISTRAL_NAMED, True, True),
    (XML_LIKE, None, True, True),
    (NO_TOOLS, None, False, False),
    ("{{ raise_exception('never') }}", None, False, False),
])  # fmt: skip
def test_a_template_shows_its_dialect(template, dialect, shows_tools, shows_calls):
    known = ask(ChatTemplate(template, "<s>", "</s>"))
    assert (known.dialect, known.shows_tools, known.shows_calls) == (
        dialect, shows_tools, shows_calls,
    )  # fmt: skip


ANSWERS = [
    (QWEN_LIKE, f'I look.\n<tool_call>\n{{"name": "get_weather", "arguments": {KOELN}}}\n'
     '</tool_call>\n<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>', "I look.\n"),
    (LLAMA_LIKE, f'{{"name": "get_weather", "parameters": {KOELN}}}; <|python_tag|>'
     '{"name": "clock", "parameters": {}}', None),
    (MISTRAL_LIKE, f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {KOELN}}}, '
     '{"name": "clock", "arguments": {}}]', None),
    (NAMED_LIKE, f"Da![TOOL_CALLS]get_weather[ARGS]{KOELN}[TOOL_CALLS]clock[ARGS]{{}}", "Da!"),
]  # fmt: skip


@pytest.mark.parametrize(("template", "answer", "content"), ANSWERS)
async def test_calls_reach_the_openai_client(start, template, answer, content):
    world = await start(template)
    tokens = world.say(answer)
    async with openai.AsyncOpenAI(base_url=world.url("/v1"), api_key="none") as client:
        given = await client.chat.completions.create(**TOOLS)
        async with client.chat.completions.stream(
            **TOOLS, stream_options={"include_usage": True}
        ) as stream:
            seen = [event async for event in stream]
            streamed = await stream.get_final_completion()
    for body in (given, streamed):
        (choice,) = body.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == content or (not content and not choice.message.content)
        calls = choice.message.tool_calls
        assert [(c.function.name, c.function.arguments) for c in calls] == [
            ("get_weather", KOELN), ("clock", "{}"),
        ]  # fmt: skip
        assert len({c.id for c in calls}) == 2
        assert all(len(c.id) == 9 and c.id.isalnum() for c in calls) or "TOOL_CALLS" not in answer
        assert body.usage.completion_tokens == len(tokens)
    assert given.choices[0].message.content == content
    pieces = [e for e in seen if e.type == "tool_calls.function.arguments.delta" and e.index == 0]
    assert "".join(piece.arguments_delta for piece in pieces) == KOELN
    assert len(pieces) > 3  # they came while the model wrote


@pytest.mark.parametrize(("template", "answer", "content"), ANSWERS)
async def test_chunks_are_openais(start, tools, template, answer, content):
    world = await start(template)
    world.say(answer, per_event=3)
    body = TOOLS | {"stream": True, "n": 2, "return_token_ids": True}
    async with world.http.post(world.url("/v1/chat/completions"), json=body) as response:
        *chunks, done = tools.stream_events(await response.read())
    assert done == "[DONE]"
    for index in (0, 1):
        deltas = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert deltas[0]["delta"] == {"role": "assistant", "content": ""}
        assert deltas[-1]["delta"] == {}
        assert [d["finish_reason"] for d in deltas] == [None] * (len(deltas) - 1) + ["tool_calls"]
        calls = [call for d in deltas for call in d["delta"].get("tool_calls", [])]
        heads = [call for call in calls if "id" in call]
        assert heads == [
            {"index": i, "id": call["id"], "type": "function",
             "function": {"name": name, "arguments": ""}}
            for i, (call, name) in enumerate(zip(heads, ["get_weather", "clock"], strict=True))
        ]  # fmt: skip
        for i, arguments in enumerate([KOELN, "{}"]):
            of_call = [call for call in calls if call["index"] == i]
            assert of_call[0] in heads
            assert all(set(call) == {"index", "function"} for call in of_call[1:])
            assert "".join(c["function"]["arguments"] for c in of_call) == arguments
        assert "".join(d["delta"].get("content", "") for d in deltas) == (content or "")
        sent = [token for d in deltas for token in d.get("token_ids") or []]
        assert sent == [*world.ids(answer), 2]
    ids = {call["id"] for c in chunks for call in c["choices"][0]["delta"].get("tool_calls", [])
           if "id" in call}  # fmt: skip
    assert len(ids) == 4


async def test_logprobs_and_running_usage_miss_no_token(start, tools):
    world = await start(QWEN_LIKE)
    tokens = world.say(ANSWERS[0][1])
    script = world.generator.script

    def with_logprobs(request):
        for event in script(request):
            event.logprobs = [Logprobs(-0.5) for _ in event.tokens]
            yield event

    world.generator.script = with_logprobs
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = TOOLS | {"stream": True, "stream_options": options, "logprobs": True}
    async with world.http.post(world.url("/v1/chat/completions"), json=body) as response:
        *chunks, last, _ = tools.stream_events(await response.read())
    assert last["choices"] == []
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == last["usage"]["completion_tokens"] == len(tokens)
    known = [c["choices"][0]["logprobs"] for c in chunks]
    assert sum(len(one["content"]) for one in known if one) == len(tokens) - 1  # not the end's
    status, _, whole = await world.post("/v1/chat/completions", TOOLS | {"logprobs": True})
    assert status == 200
    assert len(whole["choices"][0]["logprobs"]["content"]) == len(tokens) - 1


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("text", [
    "Just 1 < 2 words, 世界 😀 <tool",
    '<tool_call>\n{"name": oops}\n</tool_call>',
    "[TOOL_CALLS] and <|python_tag|> mean nothing here",
])  # fmt: skip
async def test_what_is_no_call_is_content(start, tools, text, streamed):
    world = await start(QWEN_LIKE)
    world.say(text, finish=FinishReason.LENGTH)
    shown = world.text.decode(world.ids(text), skip_special_tokens=True)
    if "<tool_call>" in text:
        shown = text
    body = TOOLS | {"stream": streamed}
    async with world.http.post(world.url("/v1/chat/completions"), json=body) as response:
        if streamed:
            *chunks, _ = tools.stream_events(await response.read())
            choices = [chunk["choices"][0] for chunk in chunks]
            assert "".join(c["delta"].get("content", "") for c in choices) == shown
            assert choices[-1]["finish_reason"] == "length"
        else:
            (choice,) = (await response.json())["choices"]
            assert choice["message"] == {"role": "assistant", "content": shown, "refusal": None}
            assert choice["finish_reason"] == "length"


async def test_cut_calls_say_so(start):
    world = await start(QWEN_LIKE)
    world.say('<tool_call>{"name": "clock", "arguments": {"a": "b', finish=FinishReason.STOP)
    _, _, body = await world.post("/v1/chat/completions", TOOLS)
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"a": "b'
    world.say(ANSWERS[0][1])
    _, _, body = await world.post("/v1/chat/completions", TOOLS | {"stop": ["</tool_call>"]})
    (choice,) = body["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("tool_calls", "</tool_call>")
    assert [c["function"]["name"] for c in choice["message"]["tool_calls"]] == ["get_weather"]


@pytest.mark.parametrize("streamed", [True, False])
async def test_one_call_where_more_are_not_wanted(start, tools, streamed):
    world = await start(QWEN_LIKE)
    world.say(ANSWERS[0][1], per_event=500)
    body = TOOLS | {"parallel_tool_calls": False, "stream": streamed}
    async with world.http.post(world.url("/v1/chat/completions"), json=body) as response:
        raw = (await response.read()).decode()
    assert "get_weather" in raw
    assert "clock" not in raw
    assert '"tool_calls"' in raw


async def test_without_tools_nothing_is_read_as_a_call(start):
    world = await start(QWEN_LIKE)
    text = ANSWERS[0][1]
    for body in (CHAT, TOOLS | {"tool_choice": "none"}, CHAT | {"tools": []}):
        world.say(text)
        _, _, answer = await world.post(
            "/v1/chat/completions", body | {"skip_special_tokens": False}
        )
        (choice,) = answer["choices"]
        assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
        assert choice["finish_reason"] == "stop"
        request, _ = world.generator.last
        assert "get_weather" not in world.text.decode(request.tokens, skip_special_tokens=False)


HISTORY = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "abcdefgh1", "type": "function",
         "function": {"name": "get_weather", "arguments": KOELN}},
    ]},
    {"role": "tool", "tool_call_id": "abcdefgh1", "content": [{"type": "text", "text": "rain"}]},
]  # fmt: skip


@pytest.mark.parametrize(("template", "shown"), [
    (QWEN_LIKE, '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_'),
    (LLAMA_LIKE, 'assistant\n{"name": "get_weather", "parameters": {"city": "Köln"}}<|im_end|>'),
    (MISTRAL_LIKE, '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Köln"}, '
     '"id": "abcdefgh1"}]'),
    (NAMED_LIKE, '[TOOL_CALLS]get_weather[ARGS]{"city": "Köln"}'),
])  # fmt: skip
async def test_calls_and_results_reach_the_template(start, template, shown):
    world = await start(template)
    world.say("It rains.")
    status, _, answer = await world.post("/v1/chat/completions", TOOLS | {"messages": HISTORY})
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == "It rains."
    request, _ = world.generator.last
    prompt = world.text.decode(request.tokens, skip_special_tokens=False)
    assert shown in prompt
    assert "rain" in prompt
    asked = {"model": "m", "messages": HISTORY[:1], "tools": [WEATHER]}
    _, _, tokens = await world.post("/tokenize", asked)
    prompt = world.text.decode(tokens["tokens"], skip_special_tokens=False)
    assert '"name": "get_weather",' in prompt
    assert '"description": "Weather of a city"' in prompt
    assert '"$ref": "#/$defs/city"' in prompt


def call(**changes):
    function = {"name": "f", "arguments": "{}"} | changes
    return {"role": "assistant", "content": None, "tool_calls": [{"function": function}]}


def function(**changes):
    return {"type": "function", "function": {"name": "f"} | changes}


NAMED = {"type": "function", "function": {"name": "f"}}
DEEP = json.loads('{"items":' * 80 + "{}" + "}" * 80)


@pytest.mark.parametrize(("wrong", "param", "told"), [
    ({"tools": [function()] * 129}, "tools", "128"),
    ({"tools": [function(), function()]}, "tools", "tools[1].function.name"),
    ({"tools": [function(name="a b")]}, "tools", "tools[0].function.name"),
    ({"tools": [function(name="x" * 129)]}, "tools", "tools[0].function.name"),
    ({"tools": [{"type": "web_search", "function": {"name": "f"}}]}, "tools", "tools[0]"),
    ({"tools": [function(parameters="x")]}, "tools", "tools[0].function.parameters"),
    ({"tools": [function(description="x" * 300_000)]}, "tools", "262144"),
    ({"tools": "f"}, "tools", "tools"),
    ({"tool_choice": "any"}, "tool_choice", "required"),
    ({"tool_choice": NAMED}, "tool_choice", "not among tools"),
    ({"tools": [function()], "tool_choice": {"type": "allowed_tools"}}, "tool_choice", "function"),
    ({"tools": [function(parameters={"type": "array"})], "tool_choice": "required"}, "tools",
     "tools[0].function.parameters: its type must be object"),
    ({"tools": [CLOCK, function(parameters={"type": "object", "properties": {"a": {"type": 5}}})],
      "tool_choice": NAMED}, "tools", "tools[1].function.parameters"),
    ({"tools": [function(parameters=DEEP)]}, "tools", "tools[0].function.parameters has more than"),
    ({"messages": [call(arguments=json.dumps(DEEP))]}, "messages", "more than 64 levels"),
    ({"messages": [call(arguments='{"a":' * 5000 + "1" + "}" * 5000)]}, "messages", "JSON object"),
    ({"tools": [function(parameters={"description": "x" * 70_000})], "tool_choice": NAMED}, "tools",
     "65536"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls", "parallel_tool_calls"),
    ({"messages": [call(arguments="{")]}, "messages", "messages[0].tool_calls[0].function.argum"),
    ({"messages": [call(arguments="[]")]}, "messages", "JSON object"),
    ({"messages": [call() | {"role": "user"}]}, "messages", "messages[0]"),
    ({"messages": [{"role": "tool", "tool_call_id": "x"}]}, "messages", "content"),
    ({"messages": [call() | {"function_call": {"name": "f"}}]}, "messages", "function_call"),
])  # fmt: skip
async def test_mistakes_are_named(start, wrong, param, told):
    world = await start(QWEN_LIKE)
    status, _, answer = await world.post("/v1/chat/completions", CHAT | wrong)
    assert status == 400
    assert answer["error"]["param"] == param
    assert told in answer["error"]["message"]
    assert len(answer["error"]["message"]) < 400
    assert not world.generator.requests


@pytest.mark.parametrize(("choice", "forced"), [
    ("required", ["clock", "get_weather"]),
    ({"type": "function", "function": {"name": "clock"}}, ["clock"]),
    ("auto", []),
    (None, []),
])  # fmt: skip
async def test_a_choice_becomes_a_grammar(start, choice, forced):
    world = await start(QWEN_LIKE)
    world.say("Well, no.")
    status, _, _ = await world.post("/v1/chat/completions", TOOLS | {"tool_choice": choice})
    assert status == 200
    grammar = world.generator.last[0].sampling.grammar
    assert [name for name in ("clock", "get_weather") if name in grammar] == forced
    if forced:
        assert f"<[{world.text.added['<tool_call>']}]>" in grammar
        assert '"properties": {}, "additionalProperties": false' in grammar  # of the clock
        assert ("{0,15}" in grammar) == (choice == "required")


async def test_a_form_is_for_answers_that_need_not_be_calls(start):
    world = await start(QWEN_LIKE)
    world.say('{"age": 5}')
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}}
    form = {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    for choice, parts in {
        "auto": {"age", "clock"},
        "required": {"clock"},
        "none": {"age"},
    }.items():
        body = TOOLS | form | {"tool_choice": choice}
        status, _, answer = await world.post("/v1/chat/completions", body)
        assert status == 200
        assert answer["choices"][0]["message"]["content"] == '{"age": 5}'
        grammar = world.generator.last[0].sampling.grammar
        assert {part for part in ("age", "clock") if part in grammar} == parts


async def test_no_form_where_calls_look_like_one(start):
    world = await start(LLAMA_LIKE)
    body = TOOLS | {"response_format": {"type": "json_object"}}
    status, _, answer = await world.post("/v1/chat/completions", body)
    assert (status, answer["error"]["param"]) == (400, "tools")
    assert 'tool_choice "none" or "required"' in answer["error"]["message"]


async def test_templates_refuse_in_their_own_words(start):
    world = await start(MISTRAL_LIKE)
    wrong = json.loads(json.dumps(HISTORY).replace("abcdefgh1", "call_1"))
    status, _, answer = await world.post("/v1/chat/completions", TOOLS | {"messages": wrong})
    assert status == 400
    assert "nine characters" in answer["error"]["message"]


@pytest.mark.parametrize(("template", "why"), [
    (NO_TOOLS, "knows no tools"),
    (XML_LIKE, "calls them in an unknown way"),
])  # fmt: skip
async def test_a_template_without_tools_says_so_unless_calls_are_forced(start, template, why):
    world = await start(template)
    status, _, answer = await world.post("/v1/chat/completions", TOOLS)
    assert (status, answer["error"]["param"]) == (400, "tools")
    assert why in answer["error"]["message"]
    world.say('{"name": "clock", "parameters": {}}')
    status, _, answer = await world.post(
        "/v1/chat/completions", TOOLS | {"tool_choice": "required"}
    )
    assert status == 200
    (choice,) = answer["choices"]
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "clock", "arguments": "{}"}
    assert choice["message"]["content"] is None
    status, _, answer = await world.post("/v1/chat/completions", CHAT | {"messages": HISTORY})
    assert status == (400 if template is NO_TOOLS else 200)
    if status == 400:
        assert "messages[1]" in answer["error"]["message"]
