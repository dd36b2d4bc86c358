"""Create the search for a task, with all checks that need a tokenizer."""

from __future__ import annotations

import queue
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace

from rain_llm.clock import current
from rain_llm.engine.encode import encode, guided
from rain_llm.engine.runtime import Runtime
from rain_llm.engine.stream import Answer
from rain_llm.errors import PromptError, PromptTooLongError
from rain_llm.judging.evaluator import SelfEvaluator
from rain_llm.search.algorithm import RainSearch
from rain_llm.search.outcome import Search
from rain_llm.search.plain import Given, only_judge, plain_search
from rain_llm.search.read_and_rewind import ReadAndRewind
from rain_llm.search.sentences import only_judge_sentences, run_and_explain, spans_of
from rain_llm.search.strategies import reads_and_rewinds
from rain_llm.settings import RainSettings
from rain_llm.task import check_task, check_text, form_of, passages_of, subject_of, task_of
from rain_llm.ticket import Event, Ticket
from rain_llm.tools import check_calls, described
from rain_llm.types import Prompt, Task, TokenIds, ToolCall, Trace


def tasks_of(prompts: Sequence[Prompt], context: str, settings: RainSettings, guarded: bool) -> list[Task]:
    """Convert prompts to tasks, and check them before any model is loaded.

    Raises:
        PromptError: a prompt, tool or schema cannot be used.
        SettingsError: the search strategy does not support tools and schemas.
    """
    if isinstance(prompts, str):
        raise PromptError("a batch is a list of prompts, not one text: put it into a list")
    tasks = [task_of(prompt, context) for prompt in prompts]
    for task in tasks:
        check_task(task, settings, guarded)
    return tasks


def prepare(
    runtime: Runtime,
    task: Task,
    settings: RainSettings,
    guarded: bool,
    judge: bool = False,
    given: Given | None = None,
    emit: Callable[[Event], None] | None = None,
    warn: Callable[[SelfEvaluator], None] | None = None,
) -> Answer:
    """Create the answer to a checked task; its search has not started yet.

    Args:
        runtime: the models.
        task: the task.
        settings: settings of this answer.
        guarded: run a search; otherwise sample once.
        judge: judge the finished text of an unguarded answer.
        given: judge this text instead of generating an answer.
        emit: called with each event; None: events are queued.
        warn: called with the evaluator at the end of a guarded answer.

    Raises:
        PromptError: a criterion needs a context and there is none.
        PromptTooLongError: prompt, answer and question exceed the model's context.
    """
    writer, subject = runtime.writer, subject_of(task, settings)
    evaluator = runtime.evaluator(settings.evaluation) if guarded or judge or given else None
    seed = secrets.randbits(62) if settings.generation.seed is None else settings.generation.seed

    def answer(
        search: Search, prompt_tokens: int, guard: SelfEvaluator | None = None, rewinds: bool = False
    ) -> Answer:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        limits = settings.search
        ticket = Ticket(
            search, emit or events.put, limits.deadline_s, limits.max_model_tokens, current().began
        )
        trace = Trace(seed, settings.hash, writer.name)
        at_end = (lambda: warn(guard)) if warn and guard else None
        needs_structure = given is None and bool(form.document or form.forced)
        remedy = "raise search.rewinds" if rewinds else "widen search.iterations"
        scheduler = runtime.scheduler
        return Answer(ticket, events, scheduler, trace, prompt_tokens, at_end, needs_structure, remedy)

    form = form_of(task)
    if given is not None:
        assert evaluator is not None
        own = encode(writer, task, settings) if evaluator.probes and runtime.judge is writer else ()
        subject = replace(subject, acts=subject.acts or bool(given.calls), prompt=own)
        evaluator.check(subject, len(runtime.judge.encode(given.longest)))
        if given.spans is None:
            return answer(only_judge(evaluator, subject, given.text, given.calls), 0)
        passages = passages_of(task)
        return answer(only_judge_sentences(evaluator, subject, passages, given.text, given.spans), 0)

    tokens = encode(writer, task, settings)
    room = settings.generation.max_new_tokens
    if len(tokens) + room > writer.context_length:
        raise PromptTooLongError(
            f"the prompt has {len(tokens)} tokens; with max_new_tokens = {room} that exceeds "
            f"the context of {writer.name}, {writer.context_length} tokens: "
            "shorten it or ask for fewer tokens"
        )
    if evaluator is not None:
        if evaluator.probes and runtime.judge is writer:
            subject = replace(subject, prompt=tokens)
        evaluator.check(subject, room)
    if not guarded:
        return answer(plain_search(tokens, subject, writer, evaluator, settings, seed, form), len(tokens))
    assert evaluator is not None
    if settings.search.similarity is not None:
        runtime.embedder()  # load it now, so that a missing one does not interrupt an answer
    rewinds = reads_and_rewinds(settings, subject, form, evaluator)
    guide: TokenIds = ()
    if settings.search.guided:
        guide = guided(writer, task, settings)
        if len(guide) + room > writer.context_length:
            guide = ()  # too long: answer without a guide
    search: ReadAndRewind | RainSearch
    if rewinds:
        begun = bool(task.opening) or not subject.dialogue
        search = ReadAndRewind(tokens, subject, writer, evaluator, settings, seed, guide, begun)
    else:
        search = RainSearch(tokens, subject, writer, evaluator, settings, seed, guide, form)
    return answer(run_and_explain(search, passages_of(task)), len(tokens), evaluator, rewinds)


def given_answer(text: str, calls: Sequence[ToolCall]) -> Given:
    """Check a given text and its tool calls, and prepare them for the judge.

    Raises:
        PromptError: the text or a call is invalid.
    """
    check_text(text, "the text")
    check_calls(calls)
    return Given(text, described(calls))


def given_sentences(text: str) -> Given:
    """Check a given text and split it into sentences.

    Raises:
        PromptError: it has no sentence, or too many.
    """
    check_text(text, "the text")
    return Given(text, spans=tuple(spans_of(text)))
