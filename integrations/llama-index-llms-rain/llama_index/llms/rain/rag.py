"""What a prompt's template tells apart: the passages and the question of a query.

LlamaIndex hands them to ``predict`` under names that all of its synthesizers and chat engines share. The
writer reads them within the prompt; a judge of groundedness has to be told which is which.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import BasePromptTemplate
from llama_index.llms.rain.messages import text_of

_PASSAGES = ("context_str", "context_msg", "context_messages")
_EARLIER = "existing_answer"  # what earlier passages were found to support: a refined answer may keep to it
_QUESTION = "query_str"


def sources(template: BasePromptTemplate, arguments: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    """Return the passages and the question that a template is filled with.

    Returns:
        Both, or ``((), "")``: where one of them is missing, nobody is asked to answer by passages (a title is
        found, a question condensed), and there is nothing to hold an answer against.
    """
    filled = {**template.kwargs, **arguments}
    passages = [text for name in _PASSAGES for text in _texts(filled.get(name))]
    if not passages or _QUESTION not in filled:
        return (), ""
    return (*passages, *_texts(filled.get(_EARLIER))), str(filled[_QUESTION])


def _texts(value: object) -> list[str]:
    match value:
        case None:
            return []
        case ChatMessage():
            return _texts(text_of(value))
        case list() | tuple():
            return [text for part in value for text in _texts(part)]
    return [str(value)] if str(value).strip() else []
