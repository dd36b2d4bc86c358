"""LlamaIndex's chat messages as ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.llms import ChatMessage, MessageRole

from rain_llm import Message
from rain_llm.chat import messages_of

_ROLES = {MessageRole.CHATBOT: "assistant", MessageRole.MODEL: "assistant"}
"""Roles of LlamaIndex's own; the others are those of OpenAI's API."""


def from_llama_index(messages: Sequence[ChatMessage]) -> list[Message]:
    """Return the same chat in our types: text, what it cites, and calls; no cache marks and no thoughts.

    Raises:
        PromptError: a message holds something else, such as an image, or calls that cannot be read.
    """
    return messages_of(
        [
            {
                "role": _ROLES.get(message.role, message.role.value),
                "content": _lines([part for block in message.blocks for part in _parts(block)]),
                "tool_calls": _calls(message),
                "tool_call_id": str(message.additional_kwargs.get("tool_call_id") or ""),
            }
            for message in messages
        ]
    )


def text_of(message: ChatMessage) -> str:
    """Return the text of a message; raises as :func:`from_llama_index` does."""
    return from_llama_index([message])[0].content


def _parts(block: Any) -> list[Any]:
    """Return a block as parts of a message's content in OpenAI's form."""
    match block.block_type:
        case "citable":
            return [part for cited in block.content for part in _parts(cited)]
        case "citation":
            return _parts(block.cited_content)
        case "cache" | "thinking" | "tool_call":
            return []
    return [{"type": block.block_type, "text": getattr(block, "text", None)}]


def _lines(parts: Sequence[Any]) -> list[Any]:
    """Return parts with line breaks between them, as LlamaIndex joins blocks."""
    return [piece for part in parts for piece in ("\n", part)][1:]


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
