"""LangChain's messages as the engine's: in the form of OpenAI's API, which ``rain_llm.chat`` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from rain_llm import Message
from rain_llm.chat import left_out, messages_of

_ROLES = {"human": "user", "ai": "assistant", "model": "assistant"}
_KINDS: dict[type[BaseMessage], str] = {
    SystemMessage: "system",
    HumanMessage: "user",
    AIMessage: "assistant",
    ToolMessage: "tool",
}


def chat_of(messages: Sequence[BaseMessage]) -> list[Message]:
    """Return messages as the engine's.

    Raises:
        PromptError: a role is unknown, or a user's message holds something other than text.
    """
    return messages_of([_openai(message) for message in messages])


def traceable(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Return messages that LangChain can trace, which it does before the model is called.

    It fails on an image without a source and a type: in a tool's reply, a marker takes its place.
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


def _openai(message: BaseMessage) -> dict[str, Any]:
    kinds = (role for kind, role in _KINDS.items() if isinstance(message, kind))
    role = getattr(message, "role", None) or next(kinds, message.type)
    turn: dict[str, Any] = {"role": _ROLES.get(role, role), "content": message.content}
    match message:
        case AIMessage():
            turn["tool_calls"] = [
                {"id": call["id"], "function": {"name": call["name"], "arguments": call["args"]}}
                for call in message.tool_calls
            ]
        case ToolMessage():
            turn |= {"name": message.name, "tool_call_id": message.tool_call_id}
        case FunctionMessage():
            turn["name"] = message.name
    return turn
