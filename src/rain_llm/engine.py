"""Rain: text in, guarded text out. Plain, streamed, batched and async, all by one path."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import secrets
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import replace

from rain_llm.errors import PromptError, SearchError, SettingsError, UnsafeAnswerError
from rain_llm.evaluation import SelfEvaluator, Subject
from rain_llm.models.base import Embedder, LanguageModel
from rain_llm.plain import plain_search
from rain_llm.scheduler import Event, Finished, Scheduler, Ticket
from rain_llm.search import RainSearch
from rain_llm.settings import EvaluationSettings, ModelSettings, RainSettings
from rain_llm.types import Message, Prompt, RainResult, Step, StopReason, TokenIds, Trace, Usage

_POLL_S = 1.0  # how often a waiting caller looks whether the worker is still there


class _Runtime:
    """Loaded models and their scheduler; shared by all ``Rain`` objects that name the same models."""

    def __init__(self, writer: LanguageModel, judge: LanguageModel, embedder: Callable[[], Embedder]) -> None:
        self.writer = writer
        self.judge = judge
        self.scheduler = Scheduler(writer, judge, embedder)
        self._evaluators: dict[EvaluationSettings, SelfEvaluator] = {}

    def evaluator(self, settings: EvaluationSettings) -> SelfEvaluator:
        """Return the evaluator of these settings: it keeps its calibration between answers."""
        if settings not in self._evaluators:
            self._evaluators[settings] = SelfEvaluator(settings, self.judge)
        return self._evaluators[settings]


_models: weakref.WeakValueDictionary[ModelSettings, LanguageModel] = weakref.WeakValueDictionary()
_runtimes: weakref.WeakValueDictionary[tuple[object, ...], _Runtime] = weakref.WeakValueDictionary()
_latest: list[_Runtime] = []  # kept, so that a chain of short-lived objects loads its model once
_loading = threading.RLock()


def _load(settings: ModelSettings) -> LanguageModel:
    model = _models.get(settings)
    if model is None:
        from rain_llm.models.transformers import TransformersModel

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
        self._lock = threading.Lock()

    # -- what users call ---------------------------------------------------------------------------

    def generate(
        self, prompt: Prompt, *, context: str = "", settings: RainSettings | None = None
    ) -> RainResult:
        """Write one guarded answer.

        Args:
            prompt: a text to continue, or a list of chat messages to answer.
            context: passages for criteria that judge against them (groundedness).
            settings: for this answer only; must name the same models.

        Raises:
            PromptError: the prompt is empty or too long. SettingsError: other models are named.
            ModelError: a model cannot be loaded. UnsafeAnswerError: nothing passed, and
                ``on_unsafe="raise"``. SearchError: a model failed; it carries what was accepted.
        """
        return _last(self.stream(prompt, context=context, settings=settings))

    def generate_batch(
        self, prompts: Sequence[Prompt], *, context: str = "", settings: RainSettings | None = None
    ) -> list[RainResult]:
        """Write an answer to each prompt, all at once; each is what ``generate`` gives alone.

        Raises:
            As ``generate``; the first prompt's error after all have ended.
        """
        streams = self._start(prompts, context, settings, guarded=True)
        results = [_attempt(lambda s=s: _last(s)) for s in streams]  # type: ignore[misc]
        return [_unwrap(result) for result in results]

    def stream(
        self, prompt: Prompt, *, context: str = "", settings: RainSettings | None = None
    ) -> Iterator[Step]:
        """Yield each accepted piece of the answer as it is committed; the last step has the result.

        Bad input raises at the call, before anything is loaded where that can be known. Closing the
        iterator cancels the search.
        """
        (stream,) = self._start([prompt], context, settings, guarded=True)
        return stream

    async def agenerate(
        self, prompt: Prompt, *, context: str = "", settings: RainSettings | None = None
    ) -> RainResult:
        """Write one guarded answer without blocking the event loop; see :meth:`generate`."""
        async with contextlib.aclosing(self.astream(prompt, context=context, settings=settings)) as steps:
            return _result([step async for step in steps])

    async def astream(
        self, prompt: Prompt, *, context: str = "", settings: RainSettings | None = None
    ) -> AsyncGenerator[Step, None]:
        """Yield accepted pieces without blocking the event loop; see :meth:`stream`."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def emit(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has gone, and its listener with it
                loop.call_soon_threadsafe(events.put_nowait, event)

        settings = self._checked([prompt], settings)
        job = await asyncio.to_thread(self._prepare, prompt, context, settings, True, emit)
        job.submit()
        try:
            while True:
                step = job.receive(await events.get())
                yield step
                if step.result is not None:
                    return
        finally:
            job.ticket.cancel()

    def plain(
        self,
        prompt: Prompt,
        *,
        context: str = "",
        settings: RainSettings | None = None,
        judge: bool = False,
    ) -> RainResult:
        """Write with the same model unguarded; with ``judge``, the finished text gets a verdict."""
        (stream,) = self._start([prompt], context, settings, guarded=False, judge=judge)
        return _last(stream)

    def plain_stream(self, prompt: Prompt, *, settings: RainSettings | None = None) -> Iterator[Step]:
        """Stream with the same model unguarded: nothing of it is judged, no step is ``accepted``."""
        (stream,) = self._start([prompt], "", settings, guarded=False)
        return stream

    @property
    def runtime(self) -> _Runtime:
        """Return the loaded models; loads them at the first call."""
        with self._lock:
            if self._runtime is None:
                self._runtime = self._loaded()
            return self._runtime

    def encode(self, prompt: Prompt, settings: RainSettings | None = None) -> TokenIds:
        """Return the tokens that the writer sees of a prompt."""
        writer = self.runtime.writer
        if isinstance(prompt, str):
            if not (settings or self.settings).generation.chat_template:
                return writer.start + writer.encode(prompt)
            prompt = [Message("user", prompt)]
        return writer.render_chat(prompt)

    # -- from a prompt to a search -------------------------------------------------------------------

    def _checked(self, prompts: Sequence[Prompt], settings: RainSettings | None) -> RainSettings:
        """Refuse what can be refused before any model is loaded."""
        settings = settings or self.settings
        ours, theirs = (
            (s.model, s.evaluation.judge, s.search.similarity and s.search.similarity.embedder)
            for s in (self.settings, settings)
        )
        if ours[:2] != theirs[:2] or (theirs[2] and ours[2] and ours[2] != theirs[2]):
            raise SettingsError(
                "the settings of one answer name other models than this Rain: "
                "make another Rain(settings) for them"
            )
        for prompt in prompts:
            texts = [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
            if not any(text.strip() for text in texts):
                raise PromptError("the prompt is empty: give at least one word")
            if not isinstance(prompt, str) and prompt[-1].role == "assistant":
                raise PromptError("the last message is the assistant's: end with a user's message to answer")
        return settings

    def _start(
        self,
        prompts: Sequence[Prompt],
        context: str,
        settings: RainSettings | None,
        guarded: bool,
        judge: bool = False,
    ) -> list[Iterator[Step]]:
        settings = self._checked(prompts, settings)
        jobs = []
        streams = []
        for prompt in prompts:
            events: queue.SimpleQueue[Event] = queue.SimpleQueue()
            job = self._prepare(prompt, context, settings, guarded, events.put, judge)
            jobs.append(job)
            streams.append(_listen(job, events))
        if jobs:
            self.runtime.scheduler.submit(*(job.ticket for job in jobs))
        return streams

    def _prepare(
        self,
        prompt: Prompt,
        context: str,
        settings: RainSettings,
        guarded: bool,
        emit: Callable[[Event], None],
        judge: bool = True,
    ) -> _Job:
        """Turn a prompt into a search that has not begun; all checks that need a tokenizer."""
        runtime = self.runtime
        writer = runtime.writer
        tokens = self.encode(prompt, settings)
        room = settings.generation.max_new_tokens
        if len(tokens) + room > writer.context_length:
            raise PromptError(
                f"the prompt has {len(tokens)} tokens; with max_new_tokens = {room} that exceeds "
                f"the context of {writer.name}, {writer.context_length} tokens: "
                "shorten it or ask for fewer tokens"
            )
        subject = _subject(prompt, context, settings)
        evaluator = runtime.evaluator(settings.evaluation) if guarded or judge else None
        if evaluator is not None:
            evaluator.check(subject, room)
        seed = secrets.randbits(62) if settings.generation.seed is None else settings.generation.seed
        if guarded:
            assert evaluator is not None
            search = RainSearch(tokens, subject, writer, evaluator, settings, seed).run()
        else:
            search = plain_search(tokens, subject, writer, evaluator, settings, seed)
        budget = settings.search
        ticket = Ticket(search, emit, budget.deadline_s, budget.max_model_tokens)
        return _Job(ticket, runtime, Trace(seed, settings.hash, writer.name), len(tokens))

    def _loaded(self) -> _Runtime:
        model, judge, embedder = self._given
        similarity = self.settings.search.similarity
        name = similarity.embedder if similarity else "minilm"

        def load_embedder() -> Embedder:
            if not embedders:
                from rain_llm.similarity import SentenceEmbedder

                embedders.append(embedder or SentenceEmbedder(name))
            return embedders[0]

        embedders: list[Embedder] = []
        with _loading:
            key = (self.settings.model, self.settings.evaluation.judge, name, *map(id, self._given))
            runtime = _runtimes.get(key)
            if runtime is None:
                writer = model or _load(self.settings.model)
                other = self.settings.evaluation.judge
                runtime = _Runtime(writer, judge or (_load(other) if other else writer), load_embedder)
                if similarity:
                    load_embedder()  # a missing embedder is told now, not in the middle of an answer
                _runtimes[key] = runtime
            _latest[:] = [runtime]
            return runtime


class _Job:
    """One answer on its way: collects steps, makes the result."""

    def __init__(self, ticket: Ticket, runtime: _Runtime, trace: Trace, prompt_tokens: int) -> None:
        self.ticket = ticket
        self._runtime = runtime
        self._trace = trace
        self._steps: list[Step] = []
        self._prompt_tokens = prompt_tokens

    def submit(self) -> None:
        self._runtime.scheduler.submit(self.ticket)

    def receive(self, event: Event) -> Step:
        """Turn an event into the step that the user sees."""
        if isinstance(event, Step):
            self._steps.append(event)
            return event
        if event.outcome is None:
            assert event.cause is not None  # a search without an outcome has failed
            raise event.cause
        result = self._result(event)
        if result.stop_reason is StopReason.UNSAFE:
            raise UnsafeAnswerError(
                f"nothing that the model wrote passed {_failed(result)}: "
                "widen search.iterations, lower the threshold, or choose on_unsafe='refuse' or 'best'",
                result,
            )
        if event.cause is not None:
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
            outcome.accepted,
            Usage(
                self._prompt_tokens,
                len(outcome.tokens),
                event.model_tokens,
                event.evaluation_tokens,
                event.forwards,
                outcome.evaluations,
                outcome.iterations,
                event.embeddings,
            ),
            replace(self._trace, steps=tuple(self._steps)),
            self._trace.settings_hash,
        )


def _subject(prompt: Prompt, context: str, settings: RainSettings) -> Subject:
    if isinstance(prompt, str):
        return Subject(prompt, context, settings.generation.chat_template)
    turns = [message.content for message in prompt if message.role == "user"]
    return Subject(turns[-1] if turns else prompt[-1].content, context, dialogue=True)


def _listen(job: _Job, events: queue.SimpleQueue[Event]) -> Iterator[Step]:
    try:
        while True:
            try:
                event = events.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            step = job.receive(event)
            yield step
            if step.result is not None:
                return
    finally:
        job.ticket.cancel()


def _result(steps: Sequence[Step]) -> RainResult:
    result = steps[-1].result
    assert result is not None  # a stream that ends without an error ends with the result
    return result


def _last(stream: Iterator[Step]) -> RainResult:
    return _result(list(stream))


def _attempt(work: Callable[[], RainResult]) -> RainResult | Exception:
    try:
        return work()
    except Exception as error:
        return error


def _unwrap(result: RainResult | Exception) -> RainResult:
    if isinstance(result, Exception):
        raise result
    return result


def _failed(result: RainResult) -> str:
    if result.verdict is None:
        return "the criteria"
    failed = [c for c in result.verdict.criteria if not c.passed]
    return ", ".join(f"{c.name} (probability {c.probability:.2f}, threshold {c.threshold:g})" for c in failed)
