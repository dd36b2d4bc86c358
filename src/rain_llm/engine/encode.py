"""Encode a prompt for the writer, with or without the criteria's guide prefixes."""

from __future__ import annotations

import re
from dataclasses import replace

from rain_llm.models.base import LanguageModel
from rain_llm.settings import RainSettings
from rain_llm.task import is_chat
from rain_llm.types import Message, Task, TokenIds

_SPEAKER = re.compile(r"(\w+:)(?: +(.*))?")  # as in "Answer:", not as in "12:30" or "https://"


def encode(writer: LanguageModel, task: Task, settings: RainSettings) -> TokenIds:
    """Encode a task's prompt, and the opening of its answer, for the writer."""
    if not is_chat(task, settings):
        assert isinstance(task.prompt, str)  # otherwise it is a chat
        return writer.start + writer.encode(task.prompt + task.opening)
    messages = [Message("user", task.prompt)] if isinstance(task.prompt, str) else task.prompt
    asked = writer.render_chat(messages, () if task.tool_choice == "none" else task.tools)
    return asked + writer.encode(task.opening)


def instructed(writer: LanguageModel, task: Task, settings: RainSettings) -> TokenIds:
    """Encode a chat with the criteria's guides as an instruction of the system; () if no criterion has one.

    A text to continue gets them as by :func:`guided`.
    """
    if not is_chat(task, settings):
        return guided(writer, task, settings)
    guide = " ".join(c.guide for c in settings.evaluation.criteria if c.guide)
    if not guide:
        return ()
    messages = [Message("user", task.prompt)] if isinstance(task.prompt, str) else list(task.prompt)
    if messages[0].role == "system":
        messages[0] = replace(messages[0], content=f"{messages[0].content}\n\n{guide}")
    else:
        messages.insert(0, Message("system", guide))
    return encode(writer, replace(task, prompt=messages), settings)


def guided(writer: LanguageModel, task: Task, settings: RainSettings) -> TokenIds:
    """Encode a task's prompt with the criteria's guide prefixes; () if no criterion has one.

    In a chat, the answer begins with the guide prefixes. In a text to continue, they are inserted before the
    last line (after a speaker's name, as in ``Answer:``), so that the text before it is computed only once.
    """
    guide = " ".join(c.guide for c in settings.evaluation.criteria if c.guide)
    if not guide:
        return ()
    if is_chat(task, settings):
        return encode(writer, task, settings) + writer.encode(f"{guide}\n\n")
    assert isinstance(task.prompt, str)  # otherwise it is a chat
    before, newline, line = task.prompt.rpartition("\n")
    if not line:
        return encode(writer, replace(task, prompt=f"{task.prompt}{guide}\n"), settings)
    speaker, words = match.groups() if (match := _SPEAKER.fullmatch(line)) else ("", line)
    last = " ".join(part for part in (speaker, guide, words) if part)
    return encode(writer, replace(task, prompt=f"{before}{newline}{last}"), settings)
