"""LiteLLM, as a library: its providers for servers that speak OpenAI's API."""

from __future__ import annotations

import asyncio
import os
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it asks the network at import

import litellm
from finding import Wrong, arguments, check, need

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
PROMPT = "The capital of France is"


def content(answer: Any) -> str:
    return str(answer.choices[0].message.content)


def main() -> None:
    url, model = arguments()
    base: dict[str, Any] = {"api_base": url, "api_key": "none", "max_retries": 0}
    sampling: dict[str, Any] = {"temperature": 0, "max_tokens": 32}

    def drive(provider: str) -> None:
        asked = base | sampling | {"model": f"{provider}/{model}", "messages": MESSAGES}
        whole = litellm.completion(**asked)

        def completion() -> str:
            need("Paris" in content(whole), content(whole))
            need(whole.usage.completion_tokens > 0, whole.usage)
            return str(whole.usage.total_tokens)

        def stream() -> str:
            options = {"include_usage": True}
            chunks = list(litellm.completion(**asked, stream=True, stream_options=options))
            built = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
            need(content(built) == content(whole), content(built))
            need(built.usage.completion_tokens == whole.usage.completion_tokens, built.usage)
            return f"{len(chunks)} chunks"

        async def asynchronous() -> None:
            need(content(await litellm.acompletion(**asked)) == content(whole), "another text")
            streamed = await litellm.acompletion(**asked, stream=True)
            parts = [chunk.choices[0].delta.content or "" async for chunk in streamed]
            need("".join(parts) == content(whole), parts)

        def several() -> None:
            answer = litellm.completion(**asked | {"n": 2, "seed": 1, "temperature": 1})
            need(len(answer.choices) == 2, answer.choices)

        def logprobs() -> None:
            answer = litellm.completion(**asked, logprobs=True, top_logprobs=2)
            need(answer.choices[0].logprobs.content, answer.choices[0])

        check(f"{provider}: completion", completion)
        check(f"{provider}: stream", stream)
        check(f"{provider}: async", lambda: asyncio.run(asynchronous()))
        check(f"{provider}: n", several)
        check(f"{provider}: logprobs", logprobs)

    def text() -> None:
        asked = base | sampling | {"model": f"text-completion-openai/{model}", "prompt": PROMPT}
        answer = litellm.text_completion(**asked)
        parts = [c.choices[0].text or "" for c in litellm.text_completion(**asked, stream=True)]
        need("".join(parts) == answer.choices[0].text, parts)

    def unknown() -> None:
        try:
            litellm.completion(**base, model="openai/nobody", messages=MESSAGES)
        except litellm.NotFoundError:
            return
        raise Wrong("no NotFoundError")

    drive("openai")
    drive("hosted_vllm")
    check("text-completion-openai: completion and stream", text)
    check("an unknown model", unknown)


if __name__ == "__main__":
    main()
