"""Request bodies as clients write them. None is a field that is absent or null.

Fields that nothing here reads are ignored, with one exception: the fields of `Unsupported` would
change the answer, so a value other than the harmless ones of `decode.HARMLESS` is refused.
"""

from __future__ import annotations

from typing import Any

import msgspec


class StreamOptions(msgspec.Struct, frozen=True):
    """`stream_options`."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Part(msgspec.Struct):
    """One part of a message's content; only `text` parts are accepted."""

    type: str | None = None
    text: str | None = None


class CalledFunction(msgspec.Struct):
    """Which function an assistant has called; `arguments` is the text of a JSON object."""

    name: str
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    """One call of an assistant's message."""

    function: CalledFunction
    id: str | None = None
    type: str | None = None


class Message(msgspec.Struct):
    """One message of a conversation."""

    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: Any = None


class SchemaFormat(msgspec.Struct):
    """`response_format.json_schema`; every schema is kept to strictly."""

    schema: Any = None


class ResponseFormat(msgspec.Struct):
    """`response_format`."""

    type: str
    json_schema: SchemaFormat | None = None


class StructuredOutputs(msgspec.Struct):
    """`structured_outputs`, vLLM's; of `json`, `json_object` and `choice` one is accepted."""

    json: Any = None
    json_object: bool | None = None
    choice: list[str] | None = None
    regex: Any = None
    grammar: Any = None
    structural_tag: Any = None


class Unsupported(msgspec.Struct, kw_only=True):
    """Fields that OpenAI's API or vLLM's knows and this server does not."""

    adapter_id: Any = None
    audio: Any = None
    allowed_token_ids: Any = None
    bad_words: Any = None
    cache_salt: Any = None
    chat_template: Any = None
    documents: Any = None
    early_stopping: Any = None
    function_call: Any = None
    functions: Any = None
    guided_choice: Any = None
    guided_decoding_backend: Any = None
    guided_grammar: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_whitespace_pattern: Any = None
    kv_transfer_params: Any = None
    length_penalty: Any = None
    logits_processors: Any = None
    lora_path: Any = None
    lora_request: Any = None
    mm_processor_kwargs: Any = None
    modalities: Any = None
    moderation: Any = None
    prediction: Any = None
    prompt_embeds: Any = None
    prompt_logprobs: Any = None
    reasoning_effort: Any = None
    return_tokens_as_token_ids: Any = None
    spaces_between_special_tokens: Any = None
    store: Any = None
    suffix: Any = None
    truncate_prompt_tokens: Any = None
    use_beam_search: Any = None
    verbosity: Any = None
    vllm_xargs: Any = None
    web_search_options: Any = None


class GenerationBody(Unsupported, kw_only=True):
    """What chat and text completions have in common."""

    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    seed: int | None = None
    n: int | None = None
    best_of: int | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    priority: int | None = None
    echo: bool | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None


class Function(msgspec.Struct):
    """What can be called; `parameters` is the JSON schema of its arguments."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(msgspec.Struct):
    """One of the `tools`; functions are the only kind."""

    function: Function
    type: str | None = None


class ChosenFunction(msgspec.Struct):
    """The function of a `tool_choice`."""

    name: str


class NamedChoice(msgspec.Struct):
    """A `tool_choice` that names what is to be called."""

    function: ChosenFunction | None = None
    type: str | None = None


class ChatBody(GenerationBody, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: list[Message] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, str | int | float | bool | None] | None = None
    tools: list[Tool] | None = None
    tool_choice: str | NamedChoice | None = None
    parallel_tool_calls: bool | None = None


class CompletionBody(GenerationBody, kw_only=True):
    """`POST /v1/completions`."""

    prompt: str | list[str | int | list[int]] | None = None
    logprobs: int | None = None


class TokenizeBody(msgspec.Struct, kw_only=True):
    """`POST /tokenize`."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: Any = None
    chat_template_kwargs: dict[str, str | int | float | bool | None] | None = None
    tools: list[Tool] | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: list[int] | None = None


class ScaleBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /admin/v1/models/NAME/scale`. A misspelt `dry_run` must not scale anything.

    `instances` may be the word `auto`.
    """

    instances: int | str | None = None
    dry_run: bool | None = None
    strategy: str | None = None
    policy: str | None = None


class ProbeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /admin/v1/probe`."""

    source: str | None = None
    target: str | None = None
    size_bytes: int | None = None
    seconds: float | None = None
    lane: str | None = msgspec.field(name="class", default=None)
    network: str | None = None
    rate_bytes_per_s: float | None = None
    encrypt: bool | None = None


class CancelBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /admin/v1/operations/ID/cancel`: nothing to say, as `{}` or as no body at all."""
