"""LangChain through langchain-openai: chat model and text model, each way of asking."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
from finding import arguments, check, need
from langchain_openai import ChatOpenAI, OpenAI

QUESTION = "What is the capital of France?"
PROMPT = "The capital of France is"


def structured(model: ChatOpenAI) -> str:
    """Ask for JSON by a schema: done, or refused by a 400 that names the field."""
    schema = {
        "title": "answer",
        "type": "object",
        "properties": {"capital": {"enum": ["Paris", "Rome"]}},
        "required": ["capital"],
        "additionalProperties": False,
    }
    try:
        answer = model.with_structured_output(schema, method="json_schema").invoke(QUESTION)
    except openai.BadRequestError as error:
        need("response_format" in str(error), error)
        return "400: response_format"
    need(answer["capital"] in ("Paris", "Rome"), answer)
    return "works"


def tools(model: ChatOpenAI) -> str:
    """Bind a tool and insist on it: done, or refused by a 400 that names the field."""

    def weather(city: str) -> str:
        """Tell the weather of a city."""
        return city

    try:
        answer = model.bind_tools([weather], tool_choice="weather").invoke("The weather in Rome?")
    except openai.BadRequestError as error:
        need("tool" in str(error), error)
        return "400: tools"
    need(answer.tool_calls[0]["name"] == "weather", answer)
    return "works"


def main() -> None:
    url, name = arguments()
    options: dict[str, Any] = {"base_url": url, "api_key": "none", "max_retries": 0}
    chat = ChatOpenAI(model=name, temperature=0, max_tokens=64, stream_usage=True, **options)
    text = OpenAI(model=name, temperature=0, max_tokens=8, **options)
    whole = chat.invoke(QUESTION)

    def invoke() -> object:
        need("Paris" in whole.content, whole.content)
        need(whole.usage_metadata["output_tokens"] > 0, whole.usage_metadata)
        return whole.usage_metadata

    def stream() -> str:
        chunks = list(chat.stream(QUESTION))
        need("".join(chunk.content for chunk in chunks) == whole.content, chunks)
        usages = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
        need(usages[-1]["output_tokens"] == whole.usage_metadata["output_tokens"], usages)
        return f"{len(chunks)} chunks"

    def batch() -> None:
        need(all(answer.content for answer in chat.batch([QUESTION] * 4)), "an empty answer")

    async def asynchronous() -> None:
        need((await chat.ainvoke(QUESTION)).content == whole.content, "another text")
        parts = [chunk.content async for chunk in chat.astream(QUESTION)]
        need("".join(parts) == whole.content, parts)

    def logprobs() -> None:
        answer = chat.bind(logprobs=True, top_logprobs=2).invoke(QUESTION)
        content = answer.response_metadata["logprobs"]["content"]
        need("".join(entry["token"] for entry in content) == answer.content, content)

    def conversation() -> None:
        turns = [("system", "Be brief."), ("human", "Hi"), ("ai", "Hello"), ("human", QUESTION)]
        need(chat.invoke(turns).content, "nothing")

    def completes() -> None:
        answer = text.invoke(PROMPT)
        need("".join(text.stream(PROMPT)) == answer, answer)
        need(len(text.batch([PROMPT, "One, two,"])) == 2, "not two")

    check("chat: invoke", invoke)
    check("chat: stream with usage", stream)
    check("chat: batch", batch)
    check("chat: ainvoke and astream", lambda: asyncio.run(asynchronous()))
    check("chat: logprobs", logprobs)
    check("chat: several turns", conversation)
    check("chat: structured output", lambda: structured(chat))
    check("chat: tools", lambda: tools(chat))
    check("text: invoke, stream and batch", completes)


if __name__ == "__main__":
    main()
