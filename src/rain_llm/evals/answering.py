"""Let one method answer the items of a task: check them first, then write the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rain_llm.engine import Rain
from rain_llm.errors import PromptError
from rain_llm.evals.best_of import ask, best, sample_answers
from rain_llm.evals.methods import CARE, GUIDED, UNGUARDED, labels, ladder
from rain_llm.evals.rows import Row
from rain_llm.evals.tasks import Item, Task
from rain_llm.judging.questions import JudgeInput
from rain_llm.settings import RainSettings
from rain_llm.standard import care
from rain_llm.task import subject_of, task_of
from rain_llm.types import RainResult, StopReason


def check(method: str, rain: Rain, task: Task, items: Sequence[Item]) -> None:
    """Raise an error for items that cannot be answered, before the first one is.

    Raises:
        PromptError: names the item.
    """
    writer, settings = rain.runtime.writer, rain.settings
    if settings.search.similarity is not None:
        rain.runtime.embedder()  # load it now: if it is missing, fail before the first answer
    evaluator = rain.runtime.evaluator(settings.evaluation)
    room = settings.generation.max_new_tokens
    guided = _uses_guide(method, settings)
    for item in items:
        prompt = task.prompt(item, settings.generation.chat_template)
        try:
            evaluator.check(subject_of(task_of(prompt, item.context), settings), room)
            length = max(len(rain.encode(prompt)), len(rain.guided(prompt)) if guided else 0)
            if length + room > writer.context_length:
                shown = "prompt and guides have" if guided else "prompt has"
                raise PromptError(
                    f"its {shown} {length} tokens; with {room} tokens of answer that exceeds the context "
                    f"of {writer.name}, {writer.context_length} tokens: ask for fewer --tokens"
                )
        except PromptError as error:
            raise PromptError(f"task '{task.name}', item {item.id}: {error}") from error


def calibrate(rain: Rain, dialogue: bool) -> None:
    """Ask the questions that calibrate the judge for all texts, so that no answer is charged for them."""
    evaluator = rain.runtime.evaluator(rain.settings.evaluation)
    ask(rain.runtime.judge, [evaluator.judge(JudgeInput("", "", dialogue), [])])


def write(method: str, rain: Rain, task: Task, items: Sequence[Item], seed: int) -> list[Row]:
    """Answer each item by a method; ``best-of`` returns rows for each n.

    The name of the method has passed ``methods.chosen``; ``rain`` has the settings of
    ``methods.settings_for``.

    Raises:
        RainError: as ``Rain.generate``.
    """
    settings = rain.settings.updated(generation={"seed": seed})
    prompts = [task.prompt(item, settings.generation.chat_template) for item in items]

    def row(label: str, place: int, result: RainResult) -> Row:
        item = items[place]
        return Row(
            task.name,
            label,
            item.id,
            seed,
            whole if item.opening and isinstance(whole := prompts[place], str) else item.prompt,
            item.context,
            result.text,
            result.accepted,
            result.stop_reason is StopReason.REFUSED,
            str(result.stop_reason),
            result.verdict.score if result.verdict else None,
            result.usage.output_tokens,
            result.usage.model_tokens,
            result.usage.evaluation_tokens,
            result.usage.forwards,
            None,
            rain.settings.hash,
            {c.name: c.passed for c in result.verdict.criteria} if result.verdict else None,
            item.opening,
            result.usage.first_forwards or None,
        )

    if rungs := ladder(method):
        made = [
            sample_answers(
                rain,
                prompt,
                rungs[-1],
                context=item.context,
                settings=settings,
                guided=method.startswith(GUIDED),
            )
            for prompt, item in zip(prompts, items, strict=True)
        ]
        named = zip(labels(method), rungs, strict=True)
        return [row(label, place, best(some[:n])) for label, n in named for place, some in enumerate(made)]
    asked = [task_of(prompt, item.context) for prompt, item in zip(prompts, items, strict=True)]
    if method == CARE:
        results = care.answers(rain, asked, settings)
    elif method in UNGUARDED:
        judge = method == "self-check"
        results = rain.plain_batch(asked, settings=settings, judge=judge)
        results = [_checked(result, settings) for result in results] if judge else results
    else:
        results = rain.generate_batch(asked, settings=settings)
    return [row(method, place, result) for place, result in enumerate(results)]


def _uses_guide(method: str, settings: RainSettings) -> bool:
    """Whether a method writes after the criteria's guides, if there are any."""
    if method in (*UNGUARDED, CARE) or ladder(method):
        return method.startswith(GUIDED)
    return settings.search.guided


def _checked(result: RainResult, settings: RainSettings) -> RainResult:
    """Accept the finished answer, or replace it by the refusal."""
    assert result.verdict is not None  # the caller asked for a verdict
    if result.verdict.passed:
        return replace(result, accepted=True)
    return replace(result, text=settings.refusal, stop_reason=StopReason.REFUSED)
