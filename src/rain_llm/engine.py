"""Rain: text in, guarded text out. Plain, streamed, batched and async, all by one path."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import queue
import re
import secrets
import shlex
import threading
import warnings
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from dataclasses import replace
from typing import cast

from rain_llm.clock import Call, current, held, working_for
from rain_llm.criteria import BUILT_IN
from rain_llm.errors import (
    BlindJudgeWarning,
    IncompleteError,
    ModelError,
    PromptError,
    PromptTooLongError,
    SearchError,
    SettingsError,
    UnsafeAnswerError,
)
from rain_llm.judging.evaluator import SelfEvaluator
from rain_llm.missing import needed
from rain_llm.models import which
from rain_llm.models.base import Embedder, Forgetful, LanguageModel
from rain_llm.models.described import known_of
from rain_llm.scheduler import Event, Finished, Scheduler, Ticket
from rain_llm.search.algorithm import RainSearch
from rain_llm.search.outcome import Search
from rain_llm.search.output import OutputSpec
from rain_llm.search.plain import Given, only_judge, plain_search
from rain_llm.search.sentences import explained, only_judge_sentences, spans_of
from rain_llm.settings import EvaluationSettings, ModelSettings, RainSettings, SimilaritySettings
from rain_llm.task import check_task, check_text, form_of, is_chat, passages_of, subject_of, task_of
from rain_llm.tools import check_calls, described
from rain_llm.types import (
    Message,
    Prompt,
    RainResult,
    SentenceVerdict,
    Step,
    StopReason,
    Task,
    TokenIds,
    ToolCall,
    Trace,
    Usage,
    Verdict,
)

_KEPT_EVALUATORS = 64  # each holds only its calibration: forgetting costs a question
_POLL_S = 0.5
_LIMITS = (StopReason.DEADLINE, StopReason.BUDGET)
_SPEAKER = re.compile(r"(\w+:)(?: +(.*))?")  # as in "Answer:", not as in "12:30" or "https://"


class _Runtime:
    """Loaded models and their scheduler; shared by all ``Rain`` objects that name the same models."""

    def __init__(
        self, writer: LanguageModel, judge: LanguageModel, embedder: Embedder | None, embedder_name: str
    ) -> None:
        self.writer = writer
        self.judge = judge
        self.scheduler = Scheduler(writer, judge, self.embedder)
        self._embedder = embedder
        self._embedder_name = embedder_name
        self._evaluators: dict[EvaluationSettings, SelfEvaluator] = {}

    def embedder(self) -> Embedder:
        """Return the embedder, loading it at the first call."""
        if self._embedder is None:
            from rain_llm.models.local.similarity import SentenceEmbedder

            self._embedder = SentenceEmbedder(self._embedder_name)
        return self._embedder

    def evaluator(self, settings: EvaluationSettings) -> SelfEvaluator:
        """Return the evaluator of these settings: it keeps its calibration between answers."""
        evaluator = self._evaluators.get(settings)
        if evaluator is None:
            evaluator = SelfEvaluator(settings, self.judge)
            if len(self._evaluators) >= _KEPT_EVALUATORS:
                self._evaluators.clear()
            self._evaluators[settings] = evaluator  # two threads may make one each: either will do
        return evaluator

    def forget(self) -> None:
        """Drop calibrations and cached prefixes: what comes next costs what it costs at first.

        To be called while nothing is being written, by whoever compares costs.
        """
        self._evaluators.clear()
        for model in (self.writer, self.judge):
            if isinstance(model, Forgetful):
                model.forget()


_models: weakref.WeakValueDictionary[ModelSettings, LanguageModel] = weakref.WeakValueDictionary()
_runtimes: weakref.WeakValueDictionary[tuple[object, ...], _Runtime] = weakref.WeakValueDictionary()
_latest: list[_Runtime] = []  # kept, so that a chain of short-lived objects loads its model once
_loading = threading.RLock()


def _after_fork() -> None:
    global _loading
    _loading = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


def _load(settings: ModelSettings) -> LanguageModel:
    if settings.base_url:
        from rain_llm.models.servers.connecting import connected

        return connected(settings)
    with held(_loading):
        model = _models.get(settings)
        if model is None:
            with needed("a model in this process"):
                from rain_llm.models.local.transformers import TransformersModel

                model = _models[settings] = TransformersModel(settings)
        return model


class Rain:
    """A guarded language model.

    Constructing it loads nothing: models load on first use, once for all objects that name the same
    ones. All methods may be called from several threads and event loops at once; their searches
    share the models' batches.

    Args:
        settings: everything there is to choose; the tuned default if left out.
        model: a ready model instead of the one in the settings (a test's ``ScriptedModel``, say).
        judge: a ready judge; else the settings' judge, else the writer itself.
        embedder: a ready embedder for the similarity update.

    Raises:
        ModelNotFoundError: the settings name a model that cannot be used (``gpt-4o-mini``, a GGUF file).
    """

    def __init__(
        self,
        settings: RainSettings | None = None,
        *,
        model: LanguageModel | None = None,
        judge: LanguageModel | None = None,
        embedder: Embedder | None = None,
    ) -> None:
        self.settings = settings or RainSettings()
        self._given = (model, judge, embedder)
        self._runtime: _Runtime | None = None
        self._warned: set[str] = set()  # criteria
        for settled, named in ((model, self.settings.model), (judge, self.settings.evaluation.judge)):
            if settled is None and named is not None:
                which.check(named)

    def __deepcopy__(self, memo: object) -> Rain:
        """Return itself: it cannot be changed, and models are never copied."""
        return self

    # -- what users call ---------------------------------------------------------------------------

    def generate(
        self, prompt: Prompt, *, context: str = "", settings: RainSettings | None = None
    ) -> RainResult:
        """Write one guarded answer.

        Args:
            prompt: a text to continue, a list of chat messages to answer, or a task: a prompt with tools,
                a JSON schema, passages and the question that was asked of them.
            context: passages for criteria that judge against them (groundedness), if no task has its own.
            settings: for this answer only; must name the same models.

        Raises:
            PromptError: the prompt is empty or too long, or a tool or a schema cannot be used.
            SettingsError: other models are named. ModelError: a model cannot be loaded.
            UnsafeAnswerError: nothing passed, and ``on_unsafe="raise"``. IncompleteError: a document or a
                call was not finished within ``max_new_tokens`` or another limit. SearchError: a model
                failed; it carries what was accepted.
        """
        return _last(self.stream(prompt, context=context, settings=settings))

    def generate_batch(
        self, prompts: Sequence[Prompt], *, context: str = "", settings: RainSettings | None = None
    ) -> list[RainResult]:
        """Write an answer to each prompt, all at once; each is what ``generate`` gives alone.

        Raises:
            As ``generate``; the first prompt's error after all have ended.
        """
        return self._all(self._jobs(prompts, context, settings, guarded=True))

    def stream(
        self, prompt: Prompt, *, context: str = "", settings: RainSettings | None = None
    ) -> Generator[Step, None, None]:
        """Yield each accepted piece of the answer as it is committed; the last step has the result.

        Bad input raises at the call, before anything is loaded where that can be known. Closing the
        iterator cancels the search.
        """
        (job,) = self._jobs([prompt], context, settings, guarded=True)
        return job.listen()

    async def agenerate(
        self, prompt: Prompt, *, context: str = "", settings: RainSettings | None = None
    ) -> RainResult:
        """Write one guarded answer without blocking the event loop; see :meth:`generate`."""
        async with contextlib.aclosing(self.astream(prompt, context=context, settings=settings)) as steps:
            return _result([step async for step in steps])

    def astream(
        self, prompt: Prompt, *, context: str = "", settings: RainSettings | None = None
    ) -> AsyncGenerator[Step, None]:
        """Yield accepted pieces without blocking the event loop; see :meth:`stream`."""
        return self._astream(prompt, context, settings, guarded=True)

    def plain(
        self,
        prompt: Prompt,
        *,
        context: str = "",
        settings: RainSettings | None = None,
        judge: bool = False,
    ) -> RainResult:
        """Write with the same model unguarded; with ``judge``, the finished text gets a verdict."""
        (job,) = self._jobs([prompt], context, settings, guarded=False, judge=judge)
        return _last(job.listen())

    def plain_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        context: str = "",
        settings: RainSettings | None = None,
        judge: bool = False,
    ) -> list[RainResult]:
        """Write after each prompt unguarded, all at once; each is what :meth:`plain` gives alone."""
        return self._all(self._jobs(prompts, context, settings, guarded=False, judge=judge))

    def plain_stream(
        self, prompt: Prompt, *, settings: RainSettings | None = None
    ) -> Generator[Step, None, None]:
        """Stream with the same model unguarded: nothing of it is judged, no step is ``accepted``."""
        (job,) = self._jobs([prompt], "", settings, guarded=False)
        return job.listen()

    def plain_astream(
        self, prompt: Prompt, *, settings: RainSettings | None = None
    ) -> AsyncGenerator[Step, None]:
        """Stream unguarded without blocking the event loop; see :meth:`plain_stream`."""
        return self._astream(prompt, "", settings, guarded=False)

    def judge(
        self,
        prompt: Prompt,
        text: str,
        *,
        tool_calls: Sequence[ToolCall] = (),
        context: str = "",
        settings: RainSettings | None = None,
    ) -> Verdict:
        """Judge an answer that somebody else has written, as one of its own.

        Args:
            prompt: what it answers.
            text: what it says; may be empty where there are ``tool_calls``.
            tool_calls: what it asks for; judged by ``evaluation.actions``.
            context: passages, as for :meth:`generate`.
            settings: for this verdict only.

        Raises:
            As ``generate``; SearchError too where a limit left no time for a verdict.
        """
        (job,) = self._jobs([prompt], context, settings, False, answer=_others(text, tool_calls))
        return _verdict(_last(job.listen()))

    async def ajudge(
        self,
        prompt: Prompt,
        text: str,
        *,
        tool_calls: Sequence[ToolCall] = (),
        context: str = "",
        settings: RainSettings | None = None,
    ) -> Verdict:
        """Judge somebody else's answer without blocking the event loop; see :meth:`judge`."""
        answer = _others(text, tool_calls)
        async with contextlib.aclosing(self._astream(prompt, context, settings, False, answer)) as steps:
            return _verdict(_result([step async for step in steps]))

    def judge_sentences(
        self,
        prompt: Prompt,
        text: str,
        *,
        context: str | Sequence[str] = "",
        settings: RainSettings | None = None,
    ) -> tuple[SentenceVerdict, ...]:
        """Judge each sentence of an answer by itself, and name the nearest passage of each.

        It says where an answer fails that :meth:`judge` rejects. All sentences are judged in one batch: each
        costs what a verdict on an answer of its length does.

        Args:
            prompt: what the text answers.
            text: somebody's answer, 1 to 256 sentences.
            context: the passages, one or several; in the result they are numbered from 0. For a task that
                has passages of its own, those.
            settings: for these verdicts only.

        Raises:
            As :meth:`judge`; PromptError also where the text has no sentence, or more than 256.
        """
        (job,) = self._jobs([task_of(prompt, context)], "", settings, False, answer=_sentences_of(text))
        return _by_sentence(_last(job.listen()))

    async def ajudge_sentences(
        self,
        prompt: Prompt,
        text: str,
        *,
        context: str | Sequence[str] = "",
        settings: RainSettings | None = None,
    ) -> tuple[SentenceVerdict, ...]:
        """Judge each sentence of an answer without blocking the event loop; see :meth:`judge_sentences`."""
        task, answer = task_of(prompt, context), _sentences_of(text)
        async with contextlib.aclosing(self._astream(task, "", settings, False, answer)) as steps:
            return _by_sentence(_result([step async for step in steps]))

    def load(self) -> None:
        """Load the models now, or ask the servers, which the first answer does otherwise.

        Raises:
            ModelError: as ``generate``.
        """
        runtime = self.runtime
        if self.settings.search.similarity is not None:
            runtime.embedder()

    @property
    def runtime(self) -> _Runtime:
        """Return the loaded models; loads them at the first call."""
        if self._runtime is None:
            self._runtime = self._loaded()
        return self._runtime

    @property
    def context_length(self) -> int | None:
        """Return the tokens of the writer's context; loads nothing: None where only loading would tell."""
        return self._known[1]

    @property
    def model_name(self) -> str:
        """Return the writer's name; loads nothing: "" where only asking the server would tell."""
        return self._known[0]

    @property
    def _known(self) -> tuple[str, int | None]:
        writer = self._given[0] or (self._runtime.writer if self._runtime else None)
        return (writer.name, writer.context_length) if writer else known_of(self.settings.model)

    def encode(self, prompt: Prompt, settings: RainSettings | None = None) -> TokenIds:
        """Return the tokens that the writer sees of a prompt."""
        writer, task = self.runtime.writer, task_of(prompt)
        if not is_chat(task, settings or self.settings):
            assert isinstance(task.prompt, str)  # else it is a chat
            return writer.start + writer.encode(task.prompt)
        messages = [Message("user", task.prompt)] if isinstance(task.prompt, str) else task.prompt
        return writer.render_chat(messages, () if task.tool_choice == "none" else task.tools)

    def guided(self, prompt: Prompt, settings: RainSettings | None = None) -> TokenIds:
        """Return the tokens that guided drafts are written behind; (): no criterion has a guide.

        In a chat, the answer begins with the criteria's guides. A text that is to be continued has them
        in front of its last line (behind a speaker's name, as in ``Answer:``), so that what stands before
        is read once for all drafts.
        """
        settings = settings or self.settings
        guide = " ".join(c.guide for c in settings.evaluation.criteria if c.guide)
        if not guide:
            return ()
        task = task_of(prompt)
        if is_chat(task, settings):
            return self.encode(task, settings) + self.runtime.writer.encode(f"{guide}\n\n")
        assert isinstance(task.prompt, str)  # else it is a chat
        before, newline, line = task.prompt.rpartition("\n")
        if not line:
            return self.encode(f"{task.prompt}{guide}\n", settings)
        speaker, words = match.groups() if (match := _SPEAKER.fullmatch(line)) else ("", line)
        guided = " ".join(part for part in (speaker, guide, words) if part)
        return self.encode(f"{before}{newline}{guided}", settings)

    def _astream(
        self,
        prompt: Prompt,
        context: str,
        settings: RainSettings | None,
        guarded: bool,
        answer: Given | None = None,
    ) -> AsyncGenerator[Step, None]:
        call = Call((settings or self.settings).search.deadline_s)  # the clock starts here

        def prepare(emit: Callable[[Event], None]) -> _Job:
            (task,), chosen = self._checked([prompt], context, settings, guarded)
            with working_for(call):
                return self._prepare(task, chosen, guarded, answer is not None, answer, emit)

        return self._asteps(call, prepare)

    async def _asteps(
        self, call: Call, prepare: Callable[[Callable[[Event], None]], _Job]
    ) -> AsyncGenerator[Step, None]:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def emit(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has gone, and its listener with it
                loop.call_soon_threadsafe(events.put_nowait, event)

        try:
            job = await asyncio.to_thread(prepare, emit)
        finally:
            call.end()  # cancelled while a model was connected to, say: the thread ends too
        job.submit()
        try:
            while True:
                step = job.receive(await events.get())
                yield step
                if step.result is not None:
                    return
        finally:
            job.ticket.cancel()

    # -- from a prompt to a search -------------------------------------------------------------------

    def _checked(
        self, prompts: Sequence[Prompt], context: str, settings: RainSettings | None, guarded: bool
    ) -> tuple[list[Task], RainSettings]:
        """Refuse what can be refused before any model is loaded."""
        settings = settings or self.settings
        if _models_of(settings) != _models_of(self.settings):
            raise SettingsError(
                "the settings of one answer name other models than this Rain: "
                "make another Rain(settings) for them"
            )
        if isinstance(prompts, str):
            raise PromptError("a batch is a list of prompts, not one text: put it into a list")
        tasks = [task_of(prompt, context) for prompt in prompts]
        for task in tasks:
            check_task(task, settings, guarded)
        return tasks, settings

    def _jobs(
        self,
        prompts: Sequence[Prompt],
        context: str,
        settings: RainSettings | None,
        guarded: bool,
        judge: bool = False,
        answer: Given | None = None,
    ) -> list[_Job]:
        tasks, settings = self._checked(prompts, context, settings, guarded)
        with working_for(Call(settings.search.deadline_s)):  # the clock starts at the call
            return [
                self._prepare(task, settings, guarded, judge or answer is not None, answer) for task in tasks
            ]

    def _all(self, jobs: Sequence[_Job]) -> list[RainResult]:
        """Let all jobs begin at once; return their results, or raise the first one's error."""
        if jobs:
            self.runtime.scheduler.submit(*(job.ticket for job in jobs))
        results = [_attempt(job.listen(submit=False)) for job in jobs]
        for result in results:
            if isinstance(result, Exception):
                raise result
        return cast("list[RainResult]", results)

    def _prepare(
        self,
        task: Task,
        settings: RainSettings,
        guarded: bool,
        judge: bool,
        answer: Given | None = None,
        emit: Callable[[Event], None] | None = None,
    ) -> _Job:
        """Turn a task into a search that has not begun; all checks that need a tokenizer.

        ``answer``: judge this instead of writing one.
        """
        runtime = self.runtime
        writer, subject = runtime.writer, subject_of(task, settings)
        evaluator = runtime.evaluator(settings.evaluation) if guarded or judge else None
        seed = secrets.randbits(62) if settings.generation.seed is None else settings.generation.seed
        if answer is not None:
            assert evaluator is not None
            subject = replace(subject, acts=subject.acts or bool(answer.calls))
            evaluator.check(subject, len(runtime.judge.encode(answer.longest)))
            if answer.spans is None:
                judging = only_judge(evaluator, subject, answer.text, answer.calls)
            else:
                judging = only_judge_sentences(
                    evaluator, subject, passages_of(task), answer.text, answer.spans
                )
            return self._job(judging, settings, seed, 0, None, emit)
        tokens, form = self.encode(task, settings), form_of(task)
        room = settings.generation.max_new_tokens
        redrafts = guarded and settings.search.guided
        guided = self.guided(task, settings) if redrafts else ()
        if len(tokens) + room > writer.context_length:
            raise PromptTooLongError(
                f"the prompt has {len(tokens)} tokens; with max_new_tokens = {room} that exceeds "
                f"the context of {writer.name}, {writer.context_length} tokens: "
                "shorten it or ask for fewer tokens"
            )
        if len(guided) + room > writer.context_length:
            guided = ()  # an answer without guidance is better than none
        if evaluator is not None:
            evaluator.check(subject, room)
        if not guarded:
            search = plain_search(tokens, subject, writer, evaluator, settings, seed, form)
            return self._job(search, settings, seed, len(tokens), None, emit, form)
        assert evaluator is not None
        if settings.search.similarity is not None:
            runtime.embedder()  # a missing one is told now, not in the middle of an answer
        guarding = RainSearch(tokens, subject, writer, evaluator, settings, seed, guided, form)
        search = explained(guarding, passages_of(task))
        return self._job(search, settings, seed, len(tokens), evaluator, emit, form)

    def _job(
        self,
        search: Search,
        settings: RainSettings,
        seed: int,
        prompt_tokens: int,
        evaluator: SelfEvaluator | None,
        emit: Callable[[Event], None] | None,
        form: OutputSpec | None = None,
    ) -> _Job:
        """Give a search its place in the queue; a guarded one's ``evaluator`` may turn out to be blind."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        limits = settings.search
        began = current().began
        ticket = Ticket(search, emit or events.put, limits.deadline_s, limits.max_model_tokens, began)
        trace = Trace(seed, settings.hash, self.runtime.writer.name)
        warn = functools.partial(self._warn_if_blind, evaluator) if evaluator else None
        owes = form is not None and bool(form.document or form.forced)
        return _Job(ticket, events, self.runtime.scheduler, trace, prompt_tokens, warn, owes)

    def _warn_if_blind(self, evaluator: SelfEvaluator) -> None:
        """Say once what the judge cannot tell, and the command that finds a better question."""
        for name, reason in evaluator.blindness.criteria().items():
            if name in self._warned:
                continue
            self._warned.add(name)
            settings, ready = self.settings, self._given[1] or self._given[0]
            asked = settings.evaluation.judge or settings.model
            judge = ready.name if ready else asked.name
            command = ["rain", "doctor", *([judge] if judge else []), "--criterion", name]
            if name not in BUILT_IN or asked.base_url:
                command += ["--settings", "FILE.yaml"]
            if name not in BUILT_IN:
                command += ["--data", "FILE.jsonl"]
            warnings.warn(
                f"RAIN steers blind: {reason} on '{name}'. Find out how to ask this model, and whether "
                f"it can judge at all: {shlex.join(command)}",
                BlindJudgeWarning,
                stacklevel=2,
            )

    def _loaded(self) -> _Runtime:
        model, judge, embedder = self._given
        own, other, name = _models_of(self.settings)
        key = (own, other, name, *map(id, self._given))
        runtime = _runtimes.get(key)
        if runtime is None:
            writer = model or _load(own)  # waits no longer than the current call may take
            judge = judge or (_load(other) if other else writer)
            with held(_loading):
                runtime = _runtimes.get(key)  # another thread may have made it
                if runtime is None:
                    runtime = _runtimes[key] = _Runtime(writer, judge, embedder, name)
        if model is None:
            _latest[:] = [runtime]
        return runtime


class _Job:
    """One answer on its way: collects steps, makes the result."""

    def __init__(
        self,
        ticket: Ticket,
        events: queue.SimpleQueue[Event],
        scheduler: Scheduler,
        trace: Trace,
        prompt_tokens: int,
        warn: Callable[[], None] | None,
        owes: bool,
    ) -> None:
        self.ticket = ticket
        self._events = events
        self._scheduler = scheduler
        self._trace = trace
        self._steps: list[Step] = []
        self._prompt_tokens = prompt_tokens
        self._warn = warn
        self._owes = owes  # a document or a call: nothing else will do

    def submit(self) -> None:
        """Let the search begin."""
        self._scheduler.submit(self.ticket)

    def listen(self, submit: bool = True) -> Generator[Step, None, None]:
        """Yield the steps; closed early, it cancels the search. One that is never read never begins."""
        if submit:
            self.submit()
        try:
            while True:
                try:
                    event = self._events.get(timeout=_POLL_S)
                except queue.Empty:  # to let Ctrl-C through; a search that breaks reports it
                    if self.ticket.forked:
                        raise ModelError(
                            "the process was forked while this answer was written: it goes on in the parent "
                            "process only; ask again in this one"
                        ) from None
                    continue
                step = self.receive(event)
                yield step
                if step.result is not None:
                    return
        finally:
            self.ticket.cancel()

    def receive(self, event: Event) -> Step:
        """Turn an event into the step that the user sees."""
        if isinstance(event, Step):
            self._steps.append(event)
            return event
        if event.outcome is None:
            assert event.cause is not None  # a search without an outcome has failed
            raise event.cause
        if self._warn is not None:
            self._warn()
        result = self._result(event)
        if result.stop_reason is StopReason.UNSAFE:
            raise UnsafeAnswerError(
                f"nothing that the model wrote passed {_failed(result)}: "
                "widen search.iterations, lower the threshold, or choose on_unsafe='refuse' or 'best'",
                result,
            )
        if result.stop_reason is StopReason.INCOMPLETE:
            raise IncompleteError(
                "no draft of the JSON document or tool call was finished, and fitted its schema, within "
                "generation.max_new_tokens: raise it, or ask for less (a smaller schema, maxLength for "
                "strings, maxItems for lists; no uniqueItems, not, if, which whole drafts are checked by)",
                result,
            )
        if self._owes and result.stop_reason in _LIMITS and not (result.text or result.tool_calls):
            raise IncompleteError(
                f"the limit '{result.stop_reason}' came before the JSON document or tool call was there: "
                "raise search.deadline_s or search.max_model_tokens",
                result,
            )
        if event.cause is not None and result.stop_reason is StopReason.ERROR:
            raise SearchError(
                f"the model failed after {len(result.text)} accepted characters: {event.cause}",
                result,
            ) from event.cause
        return Step(event.outcome.tail, accepted=result.accepted, verdict=result.verdict, result=result)

    def _result(self, event: Finished) -> RainResult:
        outcome = event.outcome
        assert outcome is not None
        return RainResult(
            outcome.text,
            outcome.verdict,
            outcome.stop_reason,
            outcome.accepted and outcome.verdict is not None,  # cut off before its first verdict, nothing was
            Usage(
                self._prompt_tokens,
                len(outcome.tokens),
                event.model_tokens,
                event.evaluation_tokens,
                event.forwards,
                outcome.evaluations,
                outcome.iterations,
                event.embeddings,
                min(outcome.cached_tokens, self._prompt_tokens),
            ),
            replace(self._trace, steps=tuple(self._steps)),
            self._trace.settings_hash,
            outcome.tool_calls,
            outcome.sentences,
        )


def _others(text: str, calls: Sequence[ToolCall]) -> Given:
    """Check what somebody else has written; return it as the judge is shown it."""
    check_text(text, "the text")
    check_calls(calls)
    return Given(text, described(calls))


def _sentences_of(text: str) -> Given:
    check_text(text, "the text")
    return Given(text, spans=tuple(spans_of(text)))


def _models_of(settings: RainSettings) -> tuple[ModelSettings, ModelSettings | None, str]:
    """Return what the settings say of models: what one answer cannot change."""
    similarity = settings.search.similarity or SimilaritySettings()
    return settings.model, settings.evaluation.judge, similarity.embedder


def _verdict(result: RainResult) -> Verdict:
    if result.verdict is None:
        raise SearchError(f"there was no verdict: the limit '{result.stop_reason}' came first", result)
    return result.verdict


def _by_sentence(result: RainResult) -> tuple[SentenceVerdict, ...]:
    if not result.sentences:  # every text that is judged has some
        raise SearchError(f"there were no verdicts: the limit '{result.stop_reason}' came first", result)
    return result.sentences


def _result(steps: Sequence[Step]) -> RainResult:
    result = steps[-1].result
    assert result is not None  # a stream that ends without an error ends with the result
    return result


def _last(stream: Generator[Step, None, None]) -> RainResult:
    return _result(list(stream))


def _attempt(stream: Generator[Step, None, None]) -> RainResult | Exception:
    try:
        return _last(stream)
    except Exception as error:
        return error


def _failed(result: RainResult) -> str:
    if result.verdict is None:
        return "the criteria"
    failed = [c for c in result.verdict.criteria if not c.passed]
    return ", ".join(f"{c.name} (probability {c.probability:.2f}, threshold {c.threshold:g})" for c in failed)
