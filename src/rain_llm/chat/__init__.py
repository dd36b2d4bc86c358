"""Requests in the form of OpenAI's API in, results out: what LangChain, LlamaIndex and a server stand on."""

from rain_llm.chat.habits import ALIASES
from rain_llm.chat.messages import is_readable, left_out, media_kind, messages_of, replies_of
from rain_llm.chat.parameters import CALL, ENGINE, Parameters, Place, same_model, unknown
from rain_llm.chat.requests import (
    ASKED,
    document_of,
    format_of,
    function,
    function_of,
    rooted,
    task_of_chat,
    tool_choice_of,
    tool_name,
    tools_of,
)
from rain_llm.chat.results import about, call_of, finish_reason, message_of, usage_of
from rain_llm.redaction import Redacted
from rain_llm.settings import place_of

__all__ = [
    "ALIASES",
    "ASKED",
    "CALL",
    "ENGINE",
    "Parameters",
    "Place",
    "Redacted",
    "about",
    "call_of",
    "document_of",
    "finish_reason",
    "format_of",
    "function",
    "function_of",
    "is_readable",
    "left_out",
    "media_kind",
    "message_of",
    "messages_of",
    "place_of",
    "replies_of",
    "rooted",
    "same_model",
    "task_of_chat",
    "tool_choice_of",
    "tool_name",
    "tools_of",
    "unknown",
    "usage_of",
]
