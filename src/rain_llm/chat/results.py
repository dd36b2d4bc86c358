"""Write results as plain data: OpenAI's finish reasons, usage and messages, and the verdict."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rain_llm.types import RainResult, StopReason, ToolCall, Usage

_FINISH = {
    StopReason.EOS: "stop",
    StopReason.STOP: "stop",
    StopReason.TOOL_CALLS: "tool_calls",
    StopReason.REFUSED: "content_filter",
}


def finish_reason(result: RainResult) -> str:
    """Return OpenAI's ``finish_reason``: "stop", "tool_calls", "content_filter" (refused) or "length".

    "length" stands for every limit: of tokens, of time, of the budget.
    """
    return _FINISH.get(result.stop_reason, "length")


def usage_of(usage: Usage) -> dict[str, int]:
    """Return OpenAI's ``usage``, tokens: the prompt and the answer alone, without what the judge read."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
    }


def call_of(call: ToolCall) -> dict[str, Any]:
    """Return a call as OpenAI's API has it; its arguments are JSON text."""
    arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def message_of(result: RainResult) -> dict[str, Any]:
    """Return an answer as OpenAI's assistant message; a refusal stands in ``refusal``, not in ``content``."""
    refused = result.stop_reason is StopReason.REFUSED
    calls = [call_of(call) for call in result.tool_calls]
    return {
        "role": "assistant",
        "content": None if refused or (calls and not result.text) else result.text,
        "refusal": result.text if refused else None,
        **({"tool_calls": calls} if calls else {}),
    }


def about(result: RainResult) -> dict[str, Any]:
    """Return the verdict, the cost and the trace of an answer as plain data.

    Returns:
        ``usage`` (the whole cost, with the judge's), ``verdict``, ``accepted``, ``stop_reason``,
        ``settings_hash``, and ``trace`` without what was rewound. ``sentences`` only for an answer with
        passages that did not pass: which one failed, with its probability and the nearest passage; the
        words of a rejected one are withheld, unless the settings' ``evaluation.sentences`` is "texts".
    """
    sentences = [sentence.to_dict() for sentence in result.sentences]
    return {
        "usage": asdict(result.usage),
        "verdict": asdict(result.verdict) if result.verdict else None,
        "accepted": result.accepted,
        "stop_reason": str(result.stop_reason),
        "settings_hash": result.settings_hash,
        "trace": result.trace.summary(),
        **({"sentences": sentences} if sentences else {}),
    }
