"""Convert prompts to tasks, check them, and derive what the writer and the judge see."""

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
    """Convert a prompt to a task; ``context`` is used if the task has none.

    Consecutive messages of one role are merged, for the writer and for the judge. Schemas are converted to
    plain JSON schemas.

    Raises:
        PromptError: it is not a prompt, or a schema is not supported.
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
    """Return a chat's messages, without empty assistant messages at its end."""
    if not isinstance(messages, Sequence):
        raise PromptError(f"a prompt is {brief(messages)}: give a text or a list of rain_llm.Message")
    turns = merged(messages_of(messages))
    while turns and turns[-1].role == "assistant" and not (turns[-1].content.strip() or turns[-1].tool_calls):
        turns.pop()
    return turns


def subject_of(task: Task, settings: RainSettings) -> JudgeInput:
    """Return the part of a task that the judge sees."""
    context = "\n\n".join(passages_of(task))
    acts = bool(task.tools) and task.tool_choice != "none"
    if isinstance(task.prompt, str):
        return JudgeInput(task.question or task.prompt, context, is_chat(task, settings), acts)
    turns = [message.content for message in task.prompt if message.role == "user"]
    query = task.question or (turns[-1] if turns else task.prompt[-1].content)
    return JudgeInput(query, context, True, acts)


def passages_of(task: Task) -> tuple[str, ...]:
    """Return the passages for a task's answer: its context, or else the tool results in its chat."""
    passages = (task.context,) if isinstance(task.context, str) else tuple(task.context)
    if not any(passages) and not isinstance(task.prompt, str):
        return tuple(replies_of(task.prompt))
    return passages


def is_chat(task: Task, settings: RainSettings) -> bool:
    """Return whether a task is rendered with the writer's chat template."""
    return not isinstance(task.prompt, str) or settings.generation.chat_template or bool(task.tools)


def form_of(task: Task) -> OutputSpec:
    """Return the form of answer that a task requires."""
    if task.schema is not None:
        return OutputSpec(document=json.dumps(task.schema, ensure_ascii=False))
    if not task.tools or task.tool_choice == "none":
        return OutputSpec()
    call = call_schema(task.tools, task.tool_choice)
    return OutputSpec(call=call, forced=task.tool_choice != "auto", several=task.parallel_calls)


def check_text(text: object, name: str) -> None:
    """Check that a value is valid text.

    Raises:
        PromptError: it is not a string, or contains half of a surrogate pair, which UTF-8 cannot encode.
    """
    if not isinstance(text, str):
        raise PromptError(f"{name} is {brief(text)}: it must be text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"character {error.start + 1} of {name} is half of a surrogate pair, which is not valid text: "
            "replace it with text.encode('utf-8', 'replace').decode()"
        ) from error


def check_task(task: Task, settings: RainSettings, guarded: bool) -> None:
    """Check that a task can be answered, before any model is loaded.

    Raises:
        PromptError: its prompt, tools or schema cannot be used.
        SettingsError: the search strategy does not support tools and schemas.
    """
    passages = (task.context,) if isinstance(task.context, str) else tuple(task.context or ())
    for passage in passages:
        check_text(passage, "the context")
    check_text(task.question, "the question")
    check_text(task.opening, "the opening")
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
            "a task has both tools and a JSON schema: leave out schema or tools, or set tool_choice='none'"
        )
    form, budget = form_of(task), settings.search
    if form == OutputSpec():
        return
    if task.opening:
        raise PromptError("a task with tools or a JSON schema has no opening: leave out 'opening'")
    if guarded and not isinstance(budget, KeepDraftsSettings):
        raise SettingsError(
            "this search strategy does not support tools and schemas: set search.strategy to "
            f"'keep_drafts', not '{budget.strategy}'"
        )
    from rain_llm.models.grammar import check

    check(form.document or form.call)
