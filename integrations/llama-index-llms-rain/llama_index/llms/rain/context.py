"""What an answer is judged by: passages and a question, from the parts of a template or from a chat."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.llms import ChatMessage, MessageRole, TextBlock
from llama_index.core.prompts import BasePromptTemplate
from llama_index.llms.rain.messages import from_llama_index, text_of

from rain_llm import RainSettings, Task
from rain_llm.chat import replies_of

Judged = tuple[tuple[str, ...], str]
"""Passages and a question; ``((), "")``: there are none."""

# The names that all of LlamaIndex's synthesizers and chat engines share.
_PASSAGES = ("context_str", "context_msg", "context_messages")
_EARLIER = "existing_answer"  # what earlier passages were found to support: a refined answer may keep to it
_QUESTION = "query_str"

# How LlamaIndex's agents fold a chat into one message to have their ``output_cls`` filled: each role and each
# text is a block of its own, and every text stands between tags, so none can pass for a role.
_FOLDED = TextBlock(text="<current_conversation>\n")
_ROLE = re.compile(rf"\t<({'|'.join(MessageRole)})>\n")
_TEXT = re.compile(r"\t\t<message>(.*)</message>\n", re.DOTALL)


def of_template(template: BasePromptTemplate, arguments: Mapping[str, Any]) -> Judged:
    """Return the passages and the question that a template is filled with.

    None where one of them is missing: then no answer by passages is asked for (a title is found, a question
    condensed).
    """
    filled = {**template.kwargs, **arguments}
    passages = [text for name in _PASSAGES for text in _texts(filled.get(name))]
    if not passages or _QUESTION not in filled:
        return (), ""
    return (*passages, *_texts(filled.get(_EARLIER))), str(filled[_QUESTION])


def of_chat(messages: Sequence[ChatMessage]) -> Judged:
    """Return the tools' replies since the user's last turn (or else in all the chat), and that turn."""
    turns = from_llama_index(unfolded(messages))
    asked = [turn.content for turn in turns if turn.role == "user"]
    return tuple(replies_of(turns)), asked[-1] if asked else ""


def unfolded(messages: Sequence[ChatMessage]) -> Sequence[ChatMessage]:
    """Return the chat that an agent has folded into one user's turn; any other as it is."""
    blocks = messages[-1].blocks if messages else []
    if _FOLDED not in blocks[:1]:
        return messages
    turns: list[ChatMessage] = []
    for text in (block.text for block in blocks if isinstance(block, TextBlock)):
        if role := _ROLE.fullmatch(text):
            turns.append(ChatMessage(role=role[1], blocks=[]))
        elif turns and (said := _TEXT.fullmatch(text)):
            turns[-1].blocks.append(TextBlock(text=said[1]))
    return turns or messages


def of_task(task: Task) -> dict[str, Any]:
    """Return the ``context`` and the ``question`` of a task as plain data."""
    passages = (task.context,) if isinstance(task.context, str) else tuple(task.context)
    return {"context": tuple(filter(None, passages)), "question": task.question}


def with_criteria_for(task: Task, settings: RainSettings) -> RainSettings:
    """Return the settings without criteria that need a context, where the task has none.

    Tools' replies are a context, so the criteria stay where tools may be called or have replied; until then
    the engine skips them. If no criterion is left, the default ones judge.
    """
    criteria = settings.evaluation.criteria
    others = [criterion for criterion in criteria if not criterion.needs_context]
    if task.context or len(others) == len(criteria):
        return settings
    replied = not isinstance(task.prompt, str) and any(turn.role == "tool" for turn in task.prompt)
    kept = criteria if replied or (task.tools and task.tool_choice != "none") else others
    default = () if others else RainSettings().evaluation.criteria
    return settings.updated(evaluation={"criteria": [*kept, *default]})


def _texts(value: object) -> list[str]:
    match value:
        case None:
            return []
        case ChatMessage():
            return _texts(text_of(value))
        case list() | tuple():
            return [text for part in value for text in _texts(part)]
    return [str(value)] if str(value).strip() else []
