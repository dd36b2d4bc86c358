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


def guided(writer: LanguageModel, task: Task, settings: RainSettings) -> TokenIds:
    """Encode a task's prompt with the criteria's guides; () if no criterion has one.

    In a chat, instructions end the system message, and the answer begins with the guides of criteria without
    one. In a text to continue, guides are inserted before the last line (after a speaker's name, as in
    ``Answer:``), so that the text before it is computed only once.
    """
    criteria, chat = settings.evaluation.criteria, is_chat(task, settings)
    instruction = " ".join(c.instruction for c in criteria if c.instruction and chat)
    guide = " ".join(c.guide for c in criteria if c.guide and not (c.instruction and chat))
    if not (guide or instruction):
        return ()
    if chat:
        asked = encode(writer, _instructed(replace(task, opening=""), instruction), settings)
        return asked + (writer.encode(f"{guide}\n\n") if guide else ()) + writer.encode(task.opening)
    assert isinstance(task.prompt, str)  # otherwise it is a chat
    before, newline, line = task.prompt.rpartition("\n")
    if not line:
        return encode(writer, replace(task, prompt=f"{task.prompt}{guide}\n"), settings)
    speaker, words = match.groups() if (match := _SPEAKER.fullmatch(line)) else ("", line)
    last = " ".join(part for part in (speaker, guide, words) if part)
    return encode(writer, replace(task, prompt=f"{before}{newline}{last}"), settings)


def _instructed(task: Task, instruction: str) -> Task:
    """Return a chat whose system message ends with an instruction."""
    if not instruction:
        return task
    asked = [Message("user", task.prompt)] if isinstance(task.prompt, str) else list(task.prompt)
    if asked[0].role != "system":
        return replace(task, prompt=[Message("system", instruction), *asked])
    first = replace(asked[0], content=f"{asked[0].content}\n\n{instruction}")
    return replace(task, prompt=[first, *asked[1:]])
