"""From a conversation as clients write it to the one that a chat template gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from blitzgw.api.bodies import Message, ToolCall
from blitzgw.api.nesting import MAX_LEVELS, too_deep
from blitzgw.api.text import TextModel
from blitzgw.errors import InvalidRequest


def template_messages(messages: Sequence[Message] | None, text: TextModel) -> list[dict[str, Any]]:
    """Return the messages for a model's template; raises InvalidRequest, which says what is wrong.

    Every message has a text, an empty one beside tool calls. Calls a template would leave out are
    refused: an answer would not know of them.
    """
    if not messages:
        raise _wrong("messages must not be empty")
    rendered = [_message(f"messages[{i}]", message) for i, message in enumerate(messages)]
    called = [i for i, message in enumerate(rendered) if "tool_calls" in message]
    if called and text.template is not None and not text.tools.shows_calls:
        raise _wrong(f"messages[{called[0]}]: the chat template of this model shows no tool_calls")
    return rendered


def _message(where: str, message: Message) -> dict[str, Any]:
    if message.function_call:
        raise _wrong(f"{where}: function_call is not supported, use tool_calls")
    content = message.content
    if isinstance(content, list):
        if any(part.type != "text" or part.text is None for part in content):
            raise _wrong(f"{where}: only parts of type text are accepted")
        content = "\n".join(part.text or "" for part in content)
    if content is None:
        if not message.tool_calls:
            raise _wrong(f"{where}: content is missing")
        content = ""
    rendered: dict[str, Any] = {"role": message.role, "content": content}
    if message.name is not None:
        rendered["name"] = message.name
    if message.tool_call_id is not None:
        rendered["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        if message.role != "assistant":
            raise _wrong(f"{where}: tool_calls belong to messages of the assistant")
        rendered["tool_calls"] = [
            _call(f"{where}.tool_calls[{i}]", call) for i, call in enumerate(message.tool_calls)
        ]
    return rendered


def _call(where: str, call: ToolCall) -> dict[str, Any]:
    """Return a call whose arguments are a mapping, as templates expect them."""
    if call.type not in (None, "function"):
        raise _wrong(f"{where}: only calls of type function are accepted")
    given = call.function.arguments or "{}"
    try:
        arguments = msgspec.json.decode(given, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):  # ValidationError is one, too
        raise _wrong(f"{where}.function.arguments is not the text of a JSON object") from None
    if too_deep(arguments):
        raise _wrong(f"{where}.function.arguments has more than {MAX_LEVELS} levels of objects")
    rendered: dict[str, Any] = {
        "type": "function",
        "function": {"name": call.function.name, "arguments": arguments},
    }
    return rendered if call.id is None else rendered | {"id": call.id}


def _wrong(what: str) -> InvalidRequest:
    return InvalidRequest(what, param="messages")
