"""Rain: text in, guarded text out. Plain, streamed, batched and async, all by one path."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Generator, Sequence

from rain_llm.clock import Call, working_for
from rain_llm.engine.blind import BlindnessWarning
from rain_llm.engine.encode import encode, guided
from rain_llm.engine.prepare import given_answer, given_sentences, prepare, tasks_of
from rain_llm.engine.runtime import Runtime, models_of, runtime_of
from rain_llm.engine.stream import Answer, last, result_of, results_of, sentences_of, steps_of, verdict_of
from rain_llm.errors import SettingsError
from rain_llm.models import which
from rain_llm.models.base import Embedder, LanguageModel
from rain_llm.models.described import known_of
from rain_llm.search.plain import Given
from rain_llm.settings import RainSettings
from rain_llm.task import task_of
from rain_llm.ticket import Event
from rain_llm.types import Prompt, RainResult, SentenceVerdict, Step, TokenIds, ToolCall, Verdict


class Rain:
    """A guarded language model.

    Constructing it loads nothing: models load on first use, once for all objects that name the same
    ones. All methods may be called from several threads and event loops; searches share batches.

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
        self._runtime: Runtime | None = None
        self._warn = BlindnessWarning(self.settings, judge or model)
        for settled, named in ((model, self.settings.model), (judge, self.settings.evaluation.judge)):
            if settled is None and named is not None:
                which.check(named)

    def __deepcopy__(self, memo: object) -> Rain:
        """Return itself: it cannot be changed, and models are never copied."""
        return self

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
        return last(self.stream(prompt, context=context, settings=settings))

    def generate_batch(
        self, prompts: Sequence[Prompt], *, context: str = "", settings: RainSettings | None = None
    ) -> list[RainResult]:
        """Write an answer to each prompt, all at once; each is what ``generate`` gives alone.

        Raises:
            As ``generate``; the first prompt's error after all have ended.
        """
        return results_of(self._answers(prompts, context, settings, guarded=True))

    def stream(
        self, prompt: Prompt, *, context: str = "", settings: RainSettings | None = None
    ) -> Generator[Step, None, None]:
        """Yield each accepted piece of the answer as it is committed; the last step has the result.

        Bad input raises at the call, before anything is loaded where that can be known. Closing the
        iterator cancels the search.
        """
        (answer,) = self._answers([prompt], context, settings, guarded=True)
        return answer.listen()

    async def agenerate(
        self, prompt: Prompt, *, context: str = "", settings: RainSettings | None = None
    ) -> RainResult:
        """Write one guarded answer without blocking the event loop; see :meth:`generate`."""
        async with contextlib.aclosing(self.astream(prompt, context=context, settings=settings)) as steps:
            return result_of([step async for step in steps])

    def astream(
        self, prompt: Prompt, *, context: str = "", settings: RainSettings | None = None
    ) -> AsyncGenerator[Step, None]:
        """Yield accepted pieces without blocking the event loop; see :meth:`stream`."""
        return self._astream(prompt, context, settings, guarded=True)

    def plain(
        self, prompt: Prompt, *, context: str = "", settings: RainSettings | None = None, judge: bool = False
    ) -> RainResult:
        """Write with the same model unguarded; with ``judge``, the finished text gets a verdict."""
        (answer,) = self._answers([prompt], context, settings, guarded=False, judge=judge)
        return last(answer.listen())

    def plain_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        context: str = "",
        settings: RainSettings | None = None,
        judge: bool = False,
    ) -> list[RainResult]:
        """Write after each prompt unguarded, all at once; each is what :meth:`plain` gives alone."""
        return results_of(self._answers(prompts, context, settings, guarded=False, judge=judge))

    def plain_stream(
        self, prompt: Prompt, *, settings: RainSettings | None = None
    ) -> Generator[Step, None, None]:
        """Stream with the same model unguarded: nothing of it is judged, no step is ``accepted``."""
        (answer,) = self._answers([prompt], "", settings, guarded=False)
        return answer.listen()

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
        (answer,) = self._answers([prompt], context, settings, False, given=given_answer(text, tool_calls))
        return verdict_of(last(answer.listen()))

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
        given = given_answer(text, tool_calls)
        async with contextlib.aclosing(self._astream(prompt, context, settings, False, given)) as steps:
            return verdict_of(result_of([step async for step in steps]))

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
        (answer,) = self._answers(
            [task_of(prompt, context)], "", settings, False, given=given_sentences(text)
        )
        return sentences_of(last(answer.listen()))

    async def ajudge_sentences(
        self,
        prompt: Prompt,
        text: str,
        *,
        context: str | Sequence[str] = "",
        settings: RainSettings | None = None,
    ) -> tuple[SentenceVerdict, ...]:
        """Judge each sentence of an answer without blocking the event loop; see :meth:`judge_sentences`."""
        task, given = task_of(prompt, context), given_sentences(text)
        async with contextlib.aclosing(self._astream(task, "", settings, False, given)) as steps:
            return sentences_of(result_of([step async for step in steps]))

    def load(self) -> None:
        """Load the models now, or ask the servers, which the first answer does otherwise.

        Raises:
            ModelError: as ``generate``.
        """
        runtime = self.runtime
        if self.settings.search.similarity is not None:
            runtime.embedder()

    @property
    def runtime(self) -> Runtime:
        """Return the loaded models; loads them at the first call."""
        if self._runtime is None:
            self._runtime = runtime_of(self.settings, *self._given)
        return self._runtime

    @property
    def context_length(self) -> int | None:
        """Return the tokens of the writer's context; loads nothing: None where only loading would tell."""
        writer = self._given[0] or (self._runtime and self._runtime.writer)
        return writer.context_length if writer else known_of(self.settings.model)[1]

    @property
    def model_name(self) -> str:
        """Return the writer's name; loads nothing: "" where only asking the server would tell."""
        writer = self._given[0] or (self._runtime and self._runtime.writer)
        return writer.name if writer else known_of(self.settings.model)[0]

    def encode(self, prompt: Prompt, settings: RainSettings | None = None) -> TokenIds:
        """Return the tokens that the writer sees of a prompt."""
        return encode(self.runtime.writer, task_of(prompt), settings or self.settings)

    def guided(self, prompt: Prompt, settings: RainSettings | None = None) -> TokenIds:
        """Return the prompt's tokens with the criteria's guides; (): no criterion has one."""
        return guided(self.runtime.writer, task_of(prompt), settings or self.settings)

    def _astream(
        self,
        prompt: Prompt,
        context: str,
        settings: RainSettings | None,
        guarded: bool,
        given: Given | None = None,
    ) -> AsyncGenerator[Step, None]:
        call = Call((settings or self.settings).search.deadline_s)  # the clock starts here

        return steps_of(
            call,
            lambda emit: self._answers([prompt], context, settings, guarded, False, given, call, emit)[0],
        )

    def _answers(
        self,
        prompts: Sequence[Prompt],
        context: str,
        settings: RainSettings | None,
        guarded: bool,
        judge: bool = False,
        given: Given | None = None,
        call: Call | None = None,
        emit: Callable[[Event], None] | None = None,
    ) -> list[Answer]:
        """Check all that can be checked before any model is loaded; then prepare the searches."""
        settings = settings or self.settings
        if models_of(settings) != models_of(self.settings):
            raise SettingsError(
                "the settings of one answer name other models than this Rain: "
                "make another Rain(settings) for them"
            )
        tasks = tasks_of(prompts, context, settings, guarded)
        with working_for(call or Call(settings.search.deadline_s)):  # the clock starts at the call
            return [
                prepare(self.runtime, task, settings, guarded, judge, given, emit, self._warn)
                for task in tasks
            ]
