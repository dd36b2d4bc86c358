"""Answers as LlamaIndex's responses, and chat responses as completions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import asdict

from llama_index.core.base.llms.types import TextBlock, ToolCallBlock
from llama_index.core.llms import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    MessageRole,
)
from llama_index.llms.rain.context import of_task

from rain_llm import Step, Task, ToolCall
from rain_llm.chat import about, call_of, usage_of


def chat_response(task: Task, text: str, step: Step) -> ChatResponse:
    """Return the response for a step, after which ``text`` is the answer so far; calls come with its end.

    The counts stay out of the message, which chat histories keep.
    """
    result = step.result
    if result is None:
        raw = {"verdict": step.verdict and asdict(step.verdict), "accepted": step.accepted}
        return ChatResponse(message=_message(text, ()), delta=step.text, raw=raw)
    calls = {"tool_calls": [asdict(call) for call in result.tool_calls]}
    return ChatResponse(
        message=_message(text, result.tool_calls),
        delta=step.text,
        raw=about(result) | calls | of_task(task),
        additional_kwargs=usage_of(result.usage),
    )


def last(chunks: Iterable[ChatResponse]) -> ChatResponse:
    """Return the answer that a stream ends with."""
    *_, answer = chunks
    return answer.model_copy(update={"delta": None})


def completion(chunk: ChatResponse) -> CompletionResponse:
    """Return a chat's response, or a chunk of one, as a completion's."""
    return CompletionResponse(
        text=chunk.message.content or "",
        delta=chunk.delta,
        raw=chunk.raw,
        additional_kwargs=chunk.additional_kwargs,
    )


async def completions(chunks: ChatResponseAsyncGen) -> CompletionResponseAsyncGen:
    """Return the chunks of a chat as those of a completion."""
    async with aclosing(chunks):  # left early, it ends the search at once
        async for chunk in chunks:
            yield completion(chunk)


def _message(text: str, calls: Sequence[ToolCall]) -> ChatMessage:
    """Return a message with text, and a block for each call.

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
