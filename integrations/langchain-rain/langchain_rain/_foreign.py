"""Read another model's messages: every text and every call in them, of whatever provider.

What is not found here is returned to the user without having been judged.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from langchain_core.messages import AIMessage

from rain_llm import ToolCall

_NO_WORDS = {
    *("type", "id", "call_id", "tool_call_id", "index", "format", "detail", "mime_type", "media_type"),
    *("url", "data", "base64", "file_data", "signature", "thought_signature", "encrypted_content"),
}
"""Parts of a block that are no words."""


def text_and_calls(messages: Sequence[AIMessage], structured: Collection[str]) -> tuple[str, list[ToolCall]]:
    """Return all text of messages, and their tool calls, also the invalid ones.

    Args:
        messages: of another model.
        structured: names of calls that hold a structured answer and do nothing; their arguments are text.
    """
    words: list[str] = []
    calls: list[ToolCall] = []
    for message in messages:
        words += [message.text, *_texts_beside(message)]
        for call in message.tool_calls:
            if call["name"] in structured:
                words.append(str(call["args"]))
            else:
                calls.append(_plain_call(call["name"], call["args"]))
        calls += [_plain_call(invalid["name"], invalid["args"]) for invalid in message.invalid_tool_calls]
    return "\n\n".join(filter(None, words)), calls


def _texts_beside(message: AIMessage) -> list[str]:
    """Return every text of a message beside its content and its calls, of whatever provider."""
    calls = [*message.tool_calls, *message.invalid_tool_calls]
    parts: list[Any] = list(message.content_blocks)
    for key, part in message.additional_kwargs.items():
        if not key.startswith("__"):  # internal data of a provider, such as signatures
            parts += part if isinstance(part, list) else [part]
    texts: list[str] = []
    for part in parts:
        block = part["value"] if isinstance(part, dict) and part.get("type") == "non_standard" else part
        if isinstance(block, dict) and block.get("type") == "text":
            texts += _texts({key: more for key, more in block.items() if key != "text"})
        elif not (isinstance(block, dict) and _is_one_of(block, calls)):
            texts += _texts(block)
    return texts


def _is_one_of(block: Mapping[str, Any], calls: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a block is one of these calls, in the form of some provider."""
    function = block.get("function", block)
    if not isinstance(function, Mapping):
        return False
    arguments: Any = next((function[key] for key in ("args", "input", "arguments") if key in function), None)
    with suppress(TypeError, ValueError):  # OpenAI has them as text; those of invalid calls are no JSON
        arguments = json.loads(arguments)
    return any(function.get("name") == call["name"] and arguments == call["args"] for call in calls)


def _texts(part: object) -> list[str]:
    """Return every text within a part of a block."""
    if isinstance(part, str):
        return [part]
    if isinstance(part, Mapping):
        return [text for key, one in part.items() if key not in _NO_WORDS for text in _texts(one)]
    return [text for one in part for text in _texts(one)] if isinstance(part, list | tuple) else []


def _plain_call(name: str | None, arguments: object) -> ToolCall:
    """Return a call as it is judged; arguments that are no JSON object as they are written."""
    try:
        plain = json.loads(json.dumps(arguments, allow_nan=False))
    except (TypeError, ValueError):
        plain = str(arguments)
    return ToolCall(name or "", plain if isinstance(plain, dict) else {"arguments": plain})
