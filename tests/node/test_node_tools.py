"""Calls that a real model is made to write, and what comes of them through the whole node."""

import json
import os

import openai
import pytest

from tests.support.nodes import MODEL, cpu, running

pytestmark = pytest.mark.skipif("BLITZGW_LONG" not in os.environ, reason="takes minutes")

TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20},
            "unit": {"enum": ["°C", "°F"]},
        },
        "required": ["city", "unit"],
        "additionalProperties": False,
    }}},
    {"type": "function", "function": {"name": "clock"}},
]  # fmt: skip
MESSAGES = [{"role": "user", "content": "What is the weather like in Paris?"}]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    small = cpu().replace("float32", "bfloat16").replace("= 2048", "= 256")
    with running(tmp_path_factory.mktemp("real"), small) as node:
        yield node


def test_the_real_model_calls_what_it_must(real):
    with openai.OpenAI(base_url=f"{real.url}/v1", api_key="none") as api:
        named = {"type": "function", "function": {"name": "get_weather"}}
        for choice in ("required", named):
            for temperature in (0, 1.5):
                body = {
                    "model": MODEL,
                    "messages": MESSAGES,
                    "tools": TOOLS,
                    "seed": 5,
                    "tool_choice": choice,
                    "temperature": temperature,
                    "max_tokens": 90,
                }
                whole = api.chat.completions.create(**body).choices[0]
                with api.chat.completions.stream(**body) as stream:
                    streamed = stream.get_final_completion().choices[0]
                for answer in (whole, streamed):
                    assert answer.finish_reason == "tool_calls"
                    (call,) = answer.message.tool_calls
                    arguments = json.loads(call.function.arguments)
                    print(temperature, call.function)
                    if call.function.name == "get_weather":
                        assert set(arguments) == {"city", "unit"}
                        assert arguments["unit"] in ("°C", "°F")
                    else:
                        assert choice == "required"
                first, again = (a.message.tool_calls[0].function for a in (whole, streamed))
                assert (first.name, first.arguments) == (again.name, again.arguments)
        with pytest.raises(openai.BadRequestError, match="knows no tools"):
            api.chat.completions.create(model=MODEL, messages=MESSAGES, tools=TOOLS)
        with pytest.raises(openai.BadRequestError, match="exclude each other"):
            api.chat.completions.create(**body, response_format={"type": "json_object"})
