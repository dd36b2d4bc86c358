"""LangChain's messages as the engine's.

Only text can be judged. An image in a user's message is an error, for an answer to it would depend on what no
judge has read. What a tool replies beside text is left out, with a marker in its place, so that an agent goes
on; of an assistant's turn, its words and its calls are kept.
"""

from __future__ import annotations

import json
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

_BYTES = ("base64", "blob", "data", "file_data")
"""Where blocks of one API or another hold what is no text."""

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
        case ChatMessage(role="assistant" | "ai"):
            return Message("assistant", text)
        case ToolMessage(tool_call_id=replied):
            return Message("tool", text, name=message.name or names.get(replied, ""), tool_call_id=replied)
        case FunctionMessage():
            return Message("tool", text, name=message.name)
    role = getattr(message, "role", message.type)
    raise PromptError(f"a message of the role {role!r} cannot be told: use system, user, assistant or tool")


def _text(message: BaseMessage) -> str:
    """Return what a message says: of an assistant's turn its words, of a tool's reply all data as JSON.

    Raises:
        PromptError: a user's turn holds an image, say: what this model cannot read.
    """
    blocks = [message.content] if isinstance(message.content, str) else message.content
    is_reply = isinstance(message, ToolMessage | FunctionMessage)
    said: list[str] = []
    for block in blocks:
        kind = "text" if isinstance(block, str) else block.get("type")
        if isinstance(block, str):
            said.append(block)
        elif kind in (None, "text", "text-plain") and isinstance(block.get("text"), str):
            said.append(block["text"])
        elif kind == "refusal":
            if block["refusal"] not in said:  # ours stands there as text, too
                said.append(block["refusal"])
        elif kind is None or message.type == "ai":
            continue  # a cache mark; what other models' turns hold beside words: calls, thoughts, searches
        elif is_reply:
            said.append(_data(block))
        else:
            raise PromptError(
                f"a {message.type} message holds a block of the type {kind!r}: this model reads text only, "
                "and nothing else can be judged; leave it out, or describe it in words"
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
    is_long = isinstance(value, str) and len(value) > _LONGEST_SHORT and " " not in value
    return left_out("data") if key in _BYTES and is_long else value
