"""LlamaIndex's chat messages as ours: roles, text, calls of tools and their replies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from llama_index.core.base.llms.types import (
    BaseContentBlock,
    CachePoint,
    CitableBlock,
    CitationBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms import ChatMessage, MessageRole

from rain_llm import Message, PromptError
from rain_llm.chat import left_out
from rain_llm.types import ToolCall

ROLES: dict[MessageRole, Literal["system", "user", "assistant", "tool"]] = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}


def from_llama_index(messages: Sequence[ChatMessage]) -> list[Message]:
    """Return the same chat in our types.

    A tool's reply names its call by ``additional_kwargs["tool_call_id"]``; the tool's name is that of the
    call.

    Raises:
        PromptError: a message holds something else than text and calls, or calls that cannot be read.
    """
    names: dict[str, str] = {}
    said = []
    for message in messages:
        calls = calls_of(message)
        names |= {call.id: call.name for call in calls}
        role = ROLES[message.role]
        id = str(message.additional_kwargs.get("tool_call_id") or "") if role == "tool" else ""
        said.append(Message(role, text_of(message), calls, names.get(id, ""), id))
    return said


def text_of(message: ChatMessage) -> str:
    """Return what a message says, and what it cites; marks, calls and thoughts are no text of it.

    In a tool's reply a marker stands for an image, say, and an agent goes on with the rest.

    Raises:
        PromptError: another message holds an image, say.
    """
    replied = ROLES[message.role] == "tool"
    return "\n".join(text for block in message.blocks for text in _texts(block, replied))


def calls_of(message: ChatMessage) -> tuple[ToolCall, ...]:
    """Return the calls in a message: its blocks', or those that older models put beside them.

    Raises:
        PromptError: a call cannot be read.
    """
    if blocks := [block for block in message.blocks if isinstance(block, ToolCallBlock)]:
        return tuple(_call(block.tool_name, block.tool_kwargs, block.tool_call_id) for block in blocks)
    return tuple(_older_call(call) for call in message.additional_kwargs.get("tool_calls") or ())


def to_llama_index(text: str, calls: Sequence[ToolCall]) -> ChatMessage:
    """Return an answer as a chat message: text, and a block for each call.

    Without calls nothing stands in ``additional_kwargs``, which LlamaIndex writes into later prompts. With
    calls, the older form stands there too: LlamaIndex's own programs look for it.
    """
    blocks = [
        ToolCallBlock(tool_call_id=c.id, tool_name=c.name, tool_kwargs=dict(c.arguments)) for c in calls
    ]
    older = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments))},
        }
        for call in calls
    ]
    return ChatMessage(
        role=MessageRole.ASSISTANT,
        blocks=[TextBlock(text=text), *blocks],
        additional_kwargs={"tool_calls": older} if older else {},
    )


def _texts(block: BaseContentBlock, replied: bool) -> list[str]:
    match block:
        case TextBlock():
            return [block.text]
        case CitableBlock():
            return [text for part in block.content for text in _texts(part, replied)]
        case CitationBlock():
            return _texts(block.cited_content, replied)
        case CachePoint() | ThinkingBlock() | ToolCallBlock():
            return []
    if replied:
        return [left_out(type(block).__name__.removesuffix("Block").lower())]
    raise PromptError(f"a message holds a {type(block).__name__}: only text is understood")


def _older_call(call: Any) -> ToolCall:
    told: dict[str, Any] = call if isinstance(call, dict) else call.model_dump()
    match told:
        case {"function": {"name": str(name), "arguments": arguments}}:
            return _call(name, arguments, told.get("id"))
        case {"tool_name": str(name), "tool_kwargs": arguments}:  # LlamaIndex's ToolSelection
            return _call(name, arguments, told.get("tool_id"))
    raise PromptError(f"a message holds a call of a tool that cannot be read: a {type(call).__name__}")


def _call(name: str, arguments: dict[str, Any] | str, id: str | None) -> ToolCall:
    try:
        read = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError as error:
        raise PromptError(
            f"a message holds a call of {name!r:.140} whose arguments are no JSON: {error}"
        ) from error
    return ToolCall(name, read, id or "")
