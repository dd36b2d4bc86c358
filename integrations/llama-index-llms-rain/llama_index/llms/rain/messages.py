"""LlamaIndex's chat messages as ours, and answers as LlamaIndex's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    BaseContentBlock,
    CachePoint,
    CitableBlock,
    CitationBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.llms import ChatMessage, MessageRole

from rain_llm import Message, PromptError, ToolCall
from rain_llm.chat import call_of, left_out, messages_of

_REPLIES = (MessageRole.TOOL, MessageRole.FUNCTION)
_ROLES = {MessageRole.CHATBOT: "assistant", MessageRole.MODEL: "assistant"}
"""Roles of LlamaIndex's own; the others are those of OpenAI's API."""


def from_llama_index(messages: Sequence[ChatMessage]) -> list[Message]:
    """Return the same chat in our types.

    Raises:
        PromptError: a message holds something else than text and calls, or calls that cannot be read.
    """
    return messages_of(
        [
            {
                "role": _ROLES.get(message.role, message.role.value),
                "content": text_of(message),
                "tool_calls": _calls(message),
                "tool_call_id": str(message.additional_kwargs.get("tool_call_id") or ""),
            }
            for message in messages
        ]
    )


def text_of(message: ChatMessage) -> str:
    """Return a message's text and what it cites, without cache marks, calls and thoughts.

    In a tool's reply a marker replaces an image, say, so that an agent can go on.

    Raises:
        PromptError: another message holds an image, say.
    """
    return "\n".join(text for block in message.blocks for text in _texts(block, message.role))


def to_llama_index(text: str, calls: Sequence[ToolCall]) -> ChatMessage:
    """Return an answer as a chat message: text, and a block for each call.

    Calls stand in ``additional_kwargs``, too: LlamaIndex's own programs look for them there. Nothing else
    does, for LlamaIndex writes it into later prompts.
    """
    blocks = [
        ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=dict(call.arguments))
        for call in calls
    ]
    return ChatMessage(
        role=MessageRole.ASSISTANT,
        blocks=[TextBlock(text=text), *blocks],
        additional_kwargs={"tool_calls": [call_of(call) for call in calls]} if calls else {},
    )


def _texts(block: BaseContentBlock, role: MessageRole) -> list[str]:
    match block:
        case TextBlock():
            return [block.text]
        case CitableBlock():
            return [text for part in block.content for text in _texts(part, role)]
        case CitationBlock():
            return _texts(block.cited_content, role)
        case CachePoint() | ThinkingBlock() | ToolCallBlock():
            return []
    if role in _REPLIES:
        return [left_out(type(block).__name__.removesuffix("Block").lower())]
    raise PromptError(
        f"a message of the role {role.value!r} holds a {type(block).__name__}: only text can be judged; "
        "leave it out, or describe it in words"
    )


def _calls(message: ChatMessage) -> list[Any]:
    """Return a message's calls in OpenAI's form: its blocks, or those that older models put beside them."""
    blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    return [_call(call) for call in blocks or message.additional_kwargs.get("tool_calls") or ()]


def _call(call: object) -> object:
    match call.model_dump() if isinstance(call, BaseModel) else call:
        case {"tool_name": name, "tool_kwargs": arguments, **more}:  # a ToolCallBlock, or a ToolSelection
            id = more.get("tool_call_id") or more.get("tool_id")
            return {"id": id, "function": {"name": name, "arguments": arguments}}
        case other:
            return other
