"""Rain: the guarded language model, with plain, streamed, batched and async methods."""

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

    The constructor loads nothing: models are loaded on first use, and shared by all objects with the same
    models. All methods are thread-safe and may be used from several event loops; concurrent searches are
    batched.

    Args:
        settings: all settings; None: the tuned default.
        model: a ready model instead of the one in the settings, such as a ``ScriptedModel`` in tests.
        judge: a ready judge; None: the settings' judge, or else the writer.
        embedder: a ready embedder for the similarity update.

    Raises:
        ModelNotFoundError: the settings name a model that cannot be used (``gpt-4o-mini``).
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
        """Return the object itself: it is immutable, and models are never copied."""
        return self

    def generate(
        self, prompt: Prompt, *, context: str = "", settings: RainSettings | None = None
    ) -> RainResult:
        """Generate one guarded answer.

        Args:
            prompt: a text to continue, a list of chat messages to answer, or a ``Task``: a prompt with
                tools, a JSON schema, passages or a question.
            context: passages for criteria that judge against them, unless the task has its own.
            settings: settings for this answer only, with the same models.

        Raises:
            PromptError: the prompt is empty or too long, or a tool or a schema cannot be used.
            SettingsError: the settings have other models. ModelError: a model cannot be loaded.
            UnsafeAnswerError: no text passed, and ``on_unsafe="raise"`` is set.
            IncompleteError: a document or a call was not finished within a limit.
            SearchError: a model failed; the error contains the text accepted before.
        """
        return last(self.stream(prompt, context=context, settings=settings))

    def generate_batch(
        self, prompts: Sequence[Prompt], *, context: str = "", settings: RainSettings | None = None
    ) -> list[RainResult]:
        """Generate answers to all prompts concurrently; each equals the result of :meth:`generate`.

        Raises:
            As :meth:`generate`; if several fail, the error of the first prompt, once all have ended.
        """
        return results_of(self._answers(prompts, context, settings, guarded=True))

    def stream(
        self, prompt: Prompt, *, context: str = "", settings: RainSettings | None = None
    ) -> Generator[Step, None, None]:
        """Yield each accepted piece of the answer; the last step contains the result.

        Invalid input raises an error at the call, where possible before a model is loaded. Closing the
        generator cancels the search.
        """
        (answer,) = self._answers([prompt], context, settings, guarded=True)
        return answer.listen()

    async def agenerate(
        self, prompt: Prompt, *, context: str = "", settings: RainSettings | None = None
    ) -> RainResult:
        """Generate one guarded answer without blocking the event loop; see :meth:`generate`."""
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
        """Generate an unguarded answer with the same model; with ``judge``, judge the finished text."""
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
        """Generate unguarded answers to all prompts concurrently; each equals the result of :meth:`plain`."""
        return results_of(self._answers(prompts, context, settings, guarded=False, judge=judge))

    def plain_stream(
        self, prompt: Prompt, *, settings: RainSettings | None = None
    ) -> Generator[Step, None, None]:
        """Stream an unguarded answer: it is not judged, and no step is ``accepted``."""
        (answer,) = self._answers([prompt], "", settings, guarded=False)
        return answer.listen()

    def plain_astream(
        self, prompt: Prompt, *, settings: RainSettings | None = None
    ) -> AsyncGenerator[Step, None]:
        """Stream an unguarded answer without blocking the event loop; see :meth:`plain_stream`."""
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
        """Judge an existing answer, such as that of another model.

        Args:
            prompt: the prompt that it answers.
            text: its text; may be empty if there are ``tool_calls``.
            tool_calls: its tool calls, which are judged by ``evaluation.actions``.
            context: passages, as for :meth:`generate`.
            settings: settings for this verdict only.

        Raises:
            As :meth:`generate`; SearchError also if a limit was reached before the verdict.
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
        """Judge an existing answer without blocking the event loop; see :meth:`judge`."""
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
        """Judge each sentence of an existing answer, and find the passage nearest to it.

        This shows where an answer fails that :meth:`judge` rejects. All sentences are judged in one batch;
        each costs as much as a verdict on an answer of its length.

        Args:
            prompt: the prompt that the text answers.
            text: the answer, 1 to 256 sentences.
            context: one passage or several, numbered from 0 in the result, unless the task has its own.
            settings: settings for these verdicts only.

        Raises:
            As :meth:`judge`; PromptError also if the text has no sentence, or more than 256.
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
        """Load the models, or connect to their servers, before the first answer.

        Raises:
            ModelError: a model cannot be loaded, or a server cannot be used.
        """
        runtime = self.runtime
        if self.settings.search.similarity is not None:
            runtime.embedder()

    @property
    def runtime(self) -> Runtime:
        """Return the loaded models; the first call loads them."""
        if self._runtime is None:
            self._runtime = runtime_of(self.settings, *self._given)
        return self._runtime

    @property
    def context_length(self) -> int | None:
        """Return the writer's context length in tokens, without loading it; None if it is not known yet."""
        writer = self._given[0] or (self._runtime and self._runtime.writer)
        return writer.context_length if writer else known_of(self.settings.model)[1]

    @property
    def model_name(self) -> str:
        """Return the writer's name, without loading it; "" if only the server knows it."""
        writer = self._given[0] or (self._runtime and self._runtime.writer)
        return writer.name if writer else known_of(self.settings.model)[0]

    def encode(self, prompt: Prompt, settings: RainSettings | None = None) -> TokenIds:
        """Encode a prompt for the writer."""
        return encode(self.runtime.writer, task_of(prompt), settings or self.settings)

    def guided(self, prompt: Prompt, settings: RainSettings | None = None) -> TokenIds:
        """Encode a prompt with the criteria's guide prefixes; () if no criterion has one."""
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
        """Check the prompts before any model is loaded, and then create the searches."""
        settings = settings or self.settings
        if models_of(settings) != models_of(self.settings):
            raise SettingsError(
                "the settings of this answer have other models than this Rain object: "
                "make another Rain(settings)"
            )
        tasks = tasks_of(prompts, context, settings, guarded)
        with working_for(call or Call(settings.search.deadline_s)):  # the clock starts at the call
            return [
                prepare(self.runtime, task, settings, guarded, judge, given, emit, self._warn)
                for task in tasks
            ]
