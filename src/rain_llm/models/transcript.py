"""A chat as plain text, for models without a chat template: base models, such as the paper's LLaMA."""

from __future__ import annotations

from collections.abc import Sequence

from rain_llm.errors import ModelNotSupportedError
from rain_llm.models.base import LanguageModel
from rain_llm.types import Message

STOPS = ("\nHuman:", "\nAssistant:")
"""Strings that an answer ends before: the model goes on to write the next turn."""

_SPEAKERS = {"user": "Human: ", "assistant": "Assistant: "}


def transcript(messages: Sequence[Message], opening: str = "") -> str:
    """Write a chat up to where the assistant begins to speak, or behind the ``opening`` of its turn."""
    turns = [f"{_SPEAKERS.get(message.role, '')}{message.content}" for message in messages]
    return "\n\n".join([*turns, f"Assistant: {opening}".rstrip()])


def shows_chats(model: LanguageModel) -> bool:
    """Tell whether a model has a chat template."""
    try:
        model.render_chat([Message("user", "?")])
    except ModelNotSupportedError:
        return False
    return True
