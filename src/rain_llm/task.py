"""What is asked for: a prompt as a task, checked, and what writer and judge are told of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rain_llm.chat.messages import messages_of, replies_of
from rain_llm.errors import PromptError, SettingsError
from rain_llm.judging.questions import JudgeInput
from rain_llm.models.templates.chat_template import merged
from rain_llm.redaction import brief
from rain_llm.schemas import schema_of
from rain_llm.search.output import OutputSpec
from rain_llm.settings import KeepDraftsSettings, RainSettings
from rain_llm.tools import call_schema, check_calls, check_tools, prepared
from rain_llm.types import Message, Prompt, Task


def task_of(prompt: Prompt, context: str | Sequence[str] = "") -> Task:
    """Return a prompt as a task; ``context`` is for one that brings none.

    What one role says in turns that follow each other becomes one turn, for the writer and for the judge.
    Schemas become plain JSON schemas.

    Raises:
        PromptError: it is no prompt, or a schema cannot be read.
    """
    task: Task = prompt if isinstance(prompt, Task) else Task(prompt)  # type: ignore[arg-type]
    if context and not task.context:
        task = replace(task, context=context)
    if task.tools:
        task = replace(task, tools=prepared(task.tools))
    if task.schema is not None:
        task = replace(task, schema=schema_of(task.schema))
    return task if isinstance(task.prompt, str) else replace(task, prompt=_turns(task.prompt))


def _turns(messages: Sequence[Any]) -> Sequence[Message]:
    """Return a chat's turns, without empty ones of the assistant at its end: it has not spoken yet."""
    if not isinstance(messages, Sequence):
        raise PromptError(f"a prompt is {brief(messages)}: give a text or a list of rain_llm.Message")
    turns = merged(messages_of(messages))
    while turns and turns[-1].role == "assistant" and not (turns[-1].content.strip() or turns[-1].tool_calls):
        turns.pop()
    return turns


def subject_of(task: Task, settings: RainSettings) -> JudgeInput:
    """Return what the judge is told of a task."""
    context = "\n\n".join(passages_of(task))
    acts = bool(task.tools) and task.tool_choice != "none"
    if isinstance(task.prompt, str):
        return JudgeInput(task.question or task.prompt, context, is_chat(task, settings), acts)
    turns = [message.content for message in task.prompt if message.role == "user"]
    query = task.question or (turns[-1] if turns else task.prompt[-1].content)
    return JudgeInput(query, context, True, acts)


def passages_of(task: Task) -> tuple[str, ...]:
    """Return what an answer is to keep to: the task's context, or else what its chat's tools returned."""
    passages = (task.context,) if isinstance(task.context, str) else tuple(task.context)
    if not any(passages) and not isinstance(task.prompt, str):
        return tuple(replies_of(task.prompt))
    return passages


def is_chat(task: Task, settings: RainSettings) -> bool:
    """Whether a task is told by the writer's chat template."""
    return not isinstance(task.prompt, str) or settings.generation.chat_template or bool(task.tools)


def form_of(task: Task) -> OutputSpec:
    """Return the form of the answer that a task asks for."""
    if task.schema is not None:
        return OutputSpec(document=json.dumps(task.schema, ensure_ascii=False))
    if not task.tools or task.tool_choice == "none":
        return OutputSpec()
    call = call_schema(task.tools, task.tool_choice)
    return OutputSpec(call=call, forced=task.tool_choice != "auto", several=task.parallel_calls)


def check_text(text: object, name: str) -> None:
    """Refuse what no tokenizer reads.

    Raises:
        PromptError: it is no text; or holds half of a surrogate pair, which UTF-8 has no bytes for.
    """
    if not isinstance(text, str):
        raise PromptError(f"{name} is {brief(text)}: it must be text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"character {error.start + 1} of {name} is half of a surrogate pair, which is no text: "
            "text.encode('utf-8', 'replace').decode() replaces it"
        ) from error


def check_task(task: Task, settings: RainSettings, guarded: bool) -> None:
    """Refuse a task that no model could answer.

    Raises:
        PromptError: by its prompt, tools or schema. SettingsError: no search of these settings answers it.
    """
    passages = (task.context,) if isinstance(task.context, str) else tuple(task.context or ())
    for passage in passages:
        check_text(passage, "the context")
    check_text(task.question, "the question")
    if isinstance(task.prompt, str):
        texts = [task.prompt]
    else:
        texts = [message.content for message in task.prompt]
        check_calls([call for message in task.prompt for call in message.tool_calls])
    if not any(text.strip() for text in texts):
        raise PromptError("the prompt is empty: give at least one word")
    for text in texts:
        check_text(text, "the prompt")
    check_tools(task.tools, task.tool_choice)
    if task.schema is not None and task.tools and task.tool_choice != "none":
        raise PromptError(
            "a task asks for calls of tools and for a JSON document: leave out schema, or tools, or say "
            "tool_choice='none'"
        )
    form, budget = form_of(task), settings.search
    if form == OutputSpec():
        return
    if guarded and not isinstance(budget, KeepDraftsSettings):
        raise SettingsError(
            "tools and schemas need rollouts that are judged whole: set search.strategy to "
            f"'keep_drafts', not '{budget.strategy}'"
        )
    from rain_llm.models.grammar import check

    check(form.document or form.call)
