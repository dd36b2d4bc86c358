"""Render a chat as plain text, for models without a chat template (such as the paper's LLaMA)."""

from __future__ import annotations

from collections.abc import Sequence

from rain_llm.errors import ModelNotSupportedError
from rain_llm.models.base import LanguageModel
from rain_llm.types import Message

STOPS = ("\nHuman:", "\nAssistant:")
"""Stop strings of such an answer, because the model would continue with the next turn."""

_SPEAKERS = {"user": "Human: ", "assistant": "Assistant: "}


def transcript(messages: Sequence[Message], opening: str = "") -> str:
    """Render a chat up to the beginning of the assistant's turn, and then the ``opening`` of that turn."""
    turns = [f"{_SPEAKERS.get(message.role, '')}{message.content}" for message in messages]
    return "\n\n".join([*turns, f"Assistant: {opening}".rstrip()])


def shows_chats(model: LanguageModel) -> bool:
    """Return whether a model has a chat template."""
    try:
        model.render_chat([Message("user", "?")])
    except ModelNotSupportedError:
        return False
    return True
