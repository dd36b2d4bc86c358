"""RainLLM: the guarded language model as a LangChain ``BaseLLM``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import asdict, fields
from typing import Any, cast

from langchain_core.callbacks import Callbacks
from langchain_core.language_models import BaseLLM, LanguageModelInput
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig

from langchain_rain._engine import GuardedModel
from langchain_rain._errors import standard_errors
from rain_llm import RainResult, RainSettings, Step, Task, Usage
from rain_llm.chat import about

_Callbacks = Callbacks | list[Callbacks] | None
_Configs = RunnableConfig | list[RunnableConfig] | None
_RUN = ("tags", "metadata", "run_name", "run_id")
"""Arguments of ``generate`` that are LangChain's own."""


class RainLLM(GuardedModel, BaseLLM):
    """A language model that judges its own words while it writes, and rewinds.

    Only accepted text is returned, also while streaming; text that ``on_unsafe="best"`` returns is marked.
    The ``generation_info`` of an answer has ``usage``, ``verdict``, ``accepted``, ``stop_reason`` and
    ``settings_hash``. The model loads on first use, once for all objects that name it.

    A call, or ``bind``, may override any field of ``settings.generation`` (``max_new_tokens``, ``stop``,
    ``seed``, ...), any other section (``on_unsafe="raise"``), or all ``settings`` at once; and give a
    ``context`` and a ``question``.

    Example:
        ```python
        from langchain_core.prompts import PromptTemplate
        from langchain_rain import RainLLM

        chain = PromptTemplate.from_template("Dear {who}, thank you for") | RainLLM()
        chain.invoke({"who": "neighbour"})
        ```

    Raises:
        UnsafeAnswerError: when called; nothing passed, and ``on_unsafe="raise"``. Further errors are those of
            ``rain_llm.Rain.generate``.
    """

    @property
    def _llm_type(self) -> str:
        return "rain"

    # LangChain's cache knows of a call only its ``stop``: what else it overrides, a copy of the model has.

    def generate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: _Callbacks = None, **kwargs: Any
    ) -> LLMResult:
        """Answer prompts in one batch; see ``BaseLLM.generate``.

        Raises:
            SettingsError: a keyword is neither an override nor LangChain's own.
        """
        run = {name: kwargs.pop(name) for name in _RUN if name in kwargs}
        return BaseLLM.generate(self._overridden(kwargs), prompts, stop, callbacks, **run)

    async def agenerate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: _Callbacks = None, **kwargs: Any
    ) -> LLMResult:
        """Answer prompts together without blocking the event loop; see :meth:`generate`."""
        run = {name: kwargs.pop(name) for name in _RUN if name in kwargs}
        return await BaseLLM.agenerate(self._overridden(kwargs), prompts, stop, callbacks, **run)

    # ``BaseLLM.batch`` returns one prompt's exception for every prompt. ``Runnable.batch`` makes one call for
    # each prompt, and their searches meet again in the engine.

    def batch(self, inputs: list[LanguageModelInput], config: _Configs = None, **kwargs: Any) -> list[str]:
        """Answer inputs together; with ``return_exceptions=True``, each that failed has its own."""
        batch = Runnable.batch if kwargs.get("return_exceptions") else BaseLLM.batch
        return batch(self, inputs, config, **kwargs)

    async def abatch(
        self, inputs: list[LanguageModelInput], config: _Configs = None, **kwargs: Any
    ) -> list[str]:
        """Answer inputs together without blocking the event loop; see :meth:`batch`."""
        abatch = Runnable.abatch if kwargs.get("return_exceptions") else BaseLLM.abatch
        return await abatch(self, inputs, config, **kwargs)

    # -- from LangChain to the engine and back -------------------------------------------------

    def _call(
        self, prompts: Sequence[str], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> tuple[list[Task], RainSettings]:
        """Return the tasks and the settings of one call."""
        llm, _ = self._asked(stop, kwargs)
        return [Task(prompt, llm.context, llm.question) for prompt in prompts], llm.settings

    def _generate(
        self, prompts: list[str], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> LLMResult:
        tasks, settings = self._call(prompts, stop, kwargs)
        with standard_errors():
            return _llm_result(self._rain.generate_batch(tasks, settings=settings))

    async def _agenerate(
        self, prompts: list[str], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> LLMResult:
        tasks, settings = self._call(prompts, stop, kwargs)
        answers = (self._rain.agenerate(task, settings=settings) for task in tasks)
        results = await asyncio.gather(*answers, return_exceptions=True)  # none is left running
        for result in results:
            if isinstance(result, BaseException):
                with standard_errors():
                    raise result
        return _llm_result(cast("list[RainResult]", results))

    def _stream(
        self, prompt: str, stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[GenerationChunk]:
        (task,), settings = self._call([prompt], stop, kwargs)
        with standard_errors():
            for step in self._rain.stream(task, settings=settings):
                if chunk := _chunk(step):
                    if run_manager:
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    async def _astream(
        self, prompt: str, stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[GenerationChunk]:
        (task,), settings = self._call([prompt], stop, kwargs)
        with standard_errors():
            async with aclosing(self._rain.astream(task, settings=settings)) as steps:
                async for step in steps:
                    if chunk := _chunk(step):
                        if run_manager:
                            await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                        yield chunk


def _llm_result(results: Sequence[RainResult]) -> LLMResult:
    usages = [asdict(result.usage) for result in results]
    total = {field.name: sum(usage[field.name] for usage in usages) for field in fields(Usage)}
    total["completion_tokens"] = total["output_tokens"]
    total["total_tokens"] = total["prompt_tokens"] + total["output_tokens"]
    return LLMResult(
        generations=[[Generation(text=r.text, generation_info=about(r))] for r in results],
        llm_output={"token_usage": total},
    )


def _chunk(step: Step) -> GenerationChunk | None:
    """Return an accepted piece, or one that ``on_unsafe="best"`` lets through, marked; None: nothing new."""
    if not (step.text or step.result):
        return None
    info = None if step.accepted else {"accepted": False}
    return GenerationChunk(text=step.text, generation_info=about(step.result) if step.result else info)
