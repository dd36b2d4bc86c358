"""LangChain's messages as the engine's, by way of OpenAI's form, and the engine's steps as message chunks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any, cast

import langchain_core.messages
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    message_chunk_to_message,
)
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk

from rain_llm import Message, RainResult, Step
from rain_llm.chat import about, finish_reason, left_out, messages_of

_ROLES = {"human": "user", "ai": "assistant", "model": "assistant"}
_KINDS: dict[type[BaseMessage], str] = {
    SystemMessage: "system",
    HumanMessage: "user",
    AIMessage: "assistant",
    ToolMessage: "tool",
}
_HAS_REFUSALS = hasattr(langchain_core.messages, "RefusalContentBlock")


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
    return [_traceable(m) if getattr(m, "role", m.type) in ("tool", "function") else m for m in messages]


def _traceable(message: BaseMessage) -> BaseMessage:
    if isinstance(message.content, str):
        return message
    content = [left_out("image") if _is_untyped_image(block) else block for block in message.content]
    return message.model_copy(update={"content": content})


def _is_untyped_image(block: str | dict[str, Any]) -> bool:
    is_image = isinstance(block, dict) and block.get("type") == "image"
    return is_image and not {"url", "file_id", "mime_type"} & set(block)


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


def chunk_of(step: Step, numbers: Iterator[int]) -> ChatGenerationChunk | None:
    """Return an accepted piece, or one that ``on_unsafe="best"`` lets through, marked; None: nothing new.

    Args:
        step: of the engine.
        numbers: for the answer's calls, from 1; LangChain's own number of its text is 0.
    """
    if not (step.text or step.tool_calls or step.result):
        return None
    message = AIMessageChunk(
        content=step.text,
        tool_call_chunks=[
            tool_call_chunk(
                name=call.name,
                args=json.dumps(dict(call.arguments), ensure_ascii=False),
                id=call.id,
                index=next(numbers),
            )
            for call in step.tool_calls
        ],
    )
    if step.refusal and _HAS_REFUSALS:
        message.content = [{"type": "text", "text": step.text}, {"type": "refusal", "refusal": step.text}]
    elif step.refusal:
        message.additional_kwargs["refusal"] = step.text
    elif step.text and not step.accepted:
        message.response_metadata["accepted"] = False
    if step.result is not None:
        message.chunk_position = "last"
        usage = step.result.usage
        message.usage_metadata = UsageMetadata(
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.output_tokens,
            total_tokens=usage.prompt_tokens + usage.output_tokens,
            input_token_details=InputTokenDetails(cache_read=usage.cached_tokens),
        )
        message.response_metadata = {
            **about(step.result),
            "finish_reason": finish_reason(step.result),
            "model_name": step.result.trace.model,
            "model_provider": "rain",
        }
    return ChatGenerationChunk(message=message)


def unfinished(result: RainResult) -> AIMessage:
    """Return an answer that did not fit into its limits as a message."""
    step = Step(result.text, accepted=result.accepted, verdict=result.verdict, result=result)
    chunk = cast("ChatGenerationChunk", chunk_of(step, itertools.count(1)))
    return cast("AIMessage", message_chunk_to_message(cast("AIMessageChunk", chunk.message)))
