"""LangChain's messages as the engine's.

Only text can be judged. An image in a user's message is an error, for an answer to it would depend on what no
judge has read. What a tool replies beside text is left out, with a marker in its place, so that an agent goes
on; of an assistant's turn, its words and its calls are kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from rain_llm import Message, PromptError, ToolCall
from rain_llm.chat import left_out, media_kind

_BYTES = ("base64", "blob", "bytes", "data", "file_data")
"""Where blocks of one API or another hold what is no text."""

_MARKS = {"cachePoint", "cache_control"}
"""Blocks of these alone say nothing: they end what a provider is to cache."""

_DATA_URL = re.compile(r"data:[^,\s]{0,200};base64,")
_LONGEST_SHORT = 64  # characters of what may stand there and be text


def chat_of(messages: Sequence[BaseMessage]) -> list[Message]:
    """Return messages as the engine's.

    Raises:
        PromptError: one has a role that is none, or holds something else than text.
    """
    chat: list[Message] = []
    names: dict[str, str] = {}  # a tool's reply may name the call alone
    for message in messages:
        made = _message(message, names)
        names |= {call.id: call.name for call in made.tool_calls}
        chat.append(made)
    return chat


def traceable(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Return messages that LangChain can trace, which it does before a model sees them.

    It cannot where an image says neither where it is nor of which type: one that a tool replied is left out.
    """
    return [_traceable(m) if _is_reply(m) and isinstance(m.content, list) else m for m in messages]


def _traceable(message: BaseMessage) -> BaseMessage:
    content = [
        {"type": "text", "text": left_out("image")} if _is_untyped_image(block) else block
        for block in message.content
    ]
    return message if content == message.content else message.model_copy(update={"content": content})


def _is_untyped_image(block: object) -> bool:
    is_image = isinstance(block, Mapping) and block.get("type") == "image"
    return is_image and not {"url", "file_id", "mime_type"} & block.keys()  # type: ignore[attr-defined]


def _is_reply(message: BaseMessage) -> bool:
    return getattr(message, "role", message.type) in ("tool", "function")


def is_readable(block: str | Mapping[str, Any]) -> bool:
    """Whether a block of a user's turn is text, or says nothing at all."""
    return isinstance(block, str) or isinstance(block.get("text"), str) or block.keys() <= _MARKS


def _message(message: BaseMessage, names: Mapping[str, str]) -> Message:
    text = _text(message)
    match message:
        case SystemMessage() | ChatMessage(role="system" | "developer"):
            return Message("system", text)
        case HumanMessage() | ChatMessage(role="user" | "human"):
            return Message("user", text)
        case AIMessage():
            calls = (ToolCall(call["name"], call["args"], call["id"] or "") for call in message.tool_calls)
            return Message("assistant", text, tuple(calls))
        case ChatMessage(role="assistant" | "ai" | "model"):
            return Message("assistant", text)
        case ToolMessage(tool_call_id=replied):
            return Message("tool", text, name=message.name or names.get(replied, ""), tool_call_id=replied)
        case FunctionMessage():
            return Message("tool", text, name=message.name)
        case ChatMessage(role="tool" | "function"):
            return Message("tool", text)
    role = getattr(message, "role", message.type)
    raise PromptError(f"a message has the role {role!r:.40}: use system, user, assistant or tool")


def _text(message: BaseMessage) -> str:
    """Return what a message says: of an assistant's turn its words, of a tool's reply all data as JSON.

    Raises:
        PromptError: a user's turn holds an image, say: what this model cannot read.
    """
    blocks = [message.content] if isinstance(message.content, str) else message.content
    said: list[str] = []
    for block in blocks:
        kind = "text" if isinstance(block, str) else block.get("type")
        if isinstance(block, str):
            said.append(block)
        elif kind in (None, "text", "text-plain") and isinstance(block.get("text"), str):
            said.append(block["text"])
        elif kind == "refusal" and isinstance(block.get("refusal"), str):
            if block["refusal"] not in said:  # ours stands there as text, too
                said.append(block["refusal"])
        elif block.keys() <= _MARKS or message.type == "ai":
            continue  # of other models' turns, all beside words: calls, thoughts, searches
        elif _is_reply(message):
            said.append(_data(block))
        else:
            raise PromptError(
                f"a {message.type} message holds a block of the type {kind!r:.40}: this model reads text "
                "only, and nothing else can be judged; leave it out, or describe it in words"
            )
    return "".join(said)


def _data(block: Mapping[str, Any]) -> str:
    """Return data of a tool's reply as JSON, without what is no text."""
    try:
        readable = _readable(block)
        return (
            readable if isinstance(readable, str) else json.dumps(readable, ensure_ascii=False, default=str)
        )
    except RecursionError:
        return left_out(str(block.get("type")))


def _readable(value: Any) -> Any:
    if isinstance(value, Mapping):
        if kind := media_kind(value):
            return left_out(kind)
        return {key: _bytes_out(key, _readable(part)) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(part) for part in value]
    return left_out("data") if isinstance(value, bytes | bytearray) else value


def _bytes_out(key: object, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    is_long = len(value) > _LONGEST_SHORT and " " not in value
    return left_out("data") if (key in _BYTES and is_long) or _DATA_URL.match(value) else value
