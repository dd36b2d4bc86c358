"""RainLLM: the guarded language model as a LangChain ``BaseLLM``.

Two things stand here beside the plain translation, both about what LangChain does on its own:

* **Caches.** LangChain's key knows a model's identifying parameters and ``stop``, but no other
  argument of a call. So a call that overrides settings is made by a copy of the model that has
  those settings: the copy has its own identifying parameters, and with them its own cache entries.
* **Batches.** LangChain hands one prompt's exception to all prompts of a batch. Asked to return
  exceptions, each prompt is answered on its own; their searches meet again in the engine.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, fields
from typing import Any, Self, cast
from uuid import uuid4
from weakref import WeakKeyDictionary

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
    Callbacks,
)
from langchain_core.language_models import BaseLLM, LanguageModelInput
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import Field, PrivateAttr, model_validator

from rain_llm import Rain, RainResult, RainSettings, SettingsError, Step, Usage

_GENERATION = tuple(type(RainSettings().generation).model_fields)
_OVERRIDES = (*_GENERATION, *RainSettings.model_fields, "settings", "context")
"""What one call may override. The model is not among it: another model is another ``RainLLM``."""

_RUN = ("tags", "metadata", "run_name", "run_id")
"""Arguments of a call that LangChain keeps for itself."""

_marks: WeakKeyDictionary[Rain, str] = WeakKeyDictionary()


class RainLLM(BaseLLM):
    """A language model that judges its own words while it writes, and rewinds.

    Constructing it loads nothing: the model loads on first use, once for all objects that name it.
    Only accepted text leaves it, while streaming too; what ``on_unsafe="best"`` lets through is
    marked. Every generation carries in its ``generation_info``: ``usage``, ``verdict``,
    ``accepted``, ``stop_reason``, ``settings_hash``.

    A call, or ``bind``, may override ``stop``, any field of the settings' ``generation``
    (``max_new_tokens``, ``temperature``, ``seed``, ...), any other section (``on_unsafe="raise"``,
    ``evaluation={"criteria": ["civility"]}``), or all ``settings`` at once, and give a ``context``.

    Example:
        ```python
        from langchain_core.output_parsers import StrOutputParser
        from langchain_core.prompts import PromptTemplate
        from langchain_rain import RainLLM

        prompt = PromptTemplate.from_template("Dear {who}, thank you for")
        chain = prompt | RainLLM() | StrOutputParser()
        chain.invoke({"who": "neighbour"})
        ```

    Raises:
        UnsafeAnswerError: by every way to call it, where nothing passed and
            ``on_unsafe="raise"``. Further errors are those of ``rain_llm.Rain.generate``.
    """

    model: str | None = None
    """A folder or hub name; overrides ``settings.model.name``. None: what the settings name."""

    settings: RainSettings = Field(default_factory=RainSettings, repr=False)
    """All that the engine may be told; the tuned default if left out."""

    context: str = Field(default="", repr=False)
    """Passages for criteria that judge against them (groundedness); most often given by a call."""

    rain: Rain | None = Field(default=None, exclude=True, repr=False)
    """A ready engine instead of ``model``; its settings hold where none are given."""

    _rain: Rain = PrivateAttr()

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for name in values:
                if name not in cls.model_fields:
                    where = "settings=RainSettings(...) tells the engine what to do"
                    raise ValueError(f"{_unknown(name, [*cls.model_fields])}; {where}")
        return values

    @model_validator(mode="after")
    def _make_engine(self) -> Self:
        if hasattr(self, "_rain"):  # validated again, as a field of another model
            return self
        if self.rain is not None:
            if self.model is not None:
                raise ValueError("give model or rain, not both: a ready engine has its model")
            if "settings" not in self.model_fields_set:
                self.settings = self.rain.settings
        elif self.model is not None:
            self.settings = self.settings.updated(model={"name": self.model})
        self._rain = self.rain or Rain(self.settings)
        return self

    # -- what LangChain asks about a model -----------------------------------------------------

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Return False: LangChain loads classes of its own packages only."""
        return False

    @property
    def _llm_type(self) -> str:
        return "rain"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        """Return everything that can change an answer: LangChain's cache keys are made of it."""
        params = {"model": self.settings.model.name, "settings_hash": self.settings.hash}
        if self.context:
            params["context"] = self.context
        if self.rain is not None:  # it may hold any model: its answers are shared with no other
            params["engine"] = _marks.setdefault(self.rain, uuid4().hex)
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """Return the model's own tokens of a text; loads the model."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return list(self._rain.encode(text, self.settings))

    # -- one path for all overrides ------------------------------------------------------------

    def _overridden(self, overrides: dict[str, Any]) -> RainLLM:
        """Return the model that a call asks for: itself, or a copy with other settings."""
        if not overrides:
            return self
        for name in overrides:
            if name not in _OVERRIDES or name == "model":
                raise SettingsError(_unknown(name, [o for o in _OVERRIDES if o != "model"]))
        sections = dict(overrides)
        context = sections.pop("context", self.context)
        settings = sections.pop("settings", self.settings)
        if not isinstance(settings, RainSettings):
            raise SettingsError(f"settings must be RainSettings, not {type(settings).__name__}")
        if settings.model.name is None:
            settings = settings.model_copy(update={"model": self.settings.model})
        generation = {name: sections.pop(name) for name in _GENERATION if name in sections}
        settings = settings.updated(**sections).updated(generation=generation)
        return self.model_copy(update={"settings": settings, "context": context})

    def _call(self, stop: list[str] | None, overrides: dict[str, Any]) -> dict[str, Any]:
        """Return what the engine is told of one call."""
        llm = self._overridden(overrides)
        if stop is None:
            return {"settings": llm.settings, "context": llm.context}
        return {"settings": llm.settings.updated(generation={"stop": stop}), "context": llm.context}

    def generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Answer prompts in one batch; see ``BaseLLM.generate``.

        Raises:
            SettingsError: a keyword is neither an override nor LangChain's own.
        """
        run = {name: kwargs.pop(name) for name in _RUN if name in kwargs}
        return BaseLLM.generate(self._overridden(kwargs), prompts, stop, callbacks, **run)

    async def agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Answer prompts together without blocking the event loop; see :meth:`generate`."""
        run = {name: kwargs.pop(name) for name in _RUN if name in kwargs}
        return await BaseLLM.agenerate(self._overridden(kwargs), prompts, stop, callbacks, **run)

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """Answer inputs together; with ``return_exceptions``, each that failed has its own."""
        if return_exceptions:
            return Runnable.batch(self, inputs, config, return_exceptions=True, **kwargs)
        return super().batch(inputs, config, **kwargs)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """Answer inputs together without blocking the event loop; see :meth:`batch`."""
        if return_exceptions:
            return await Runnable.abatch(self, inputs, config, return_exceptions=True, **kwargs)
        return await super().abatch(inputs, config, **kwargs)

    # -- from LangChain to the engine and back -------------------------------------------------

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        return _llm_result(self._rain.generate_batch(prompts, **self._call(stop, kwargs)))

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        call = self._call(stop, kwargs)
        answers = (self._rain.agenerate(prompt, **call) for prompt in prompts)
        results = await asyncio.gather(*answers, return_exceptions=True)  # none is left running
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return _llm_result(cast("list[RainResult]", results))

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        for step in self._rain.stream(prompt, **self._call(stop, kwargs)):
            if step.text or step.result:
                chunk = _chunk(step)
                if run_manager:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        async with aclosing(self._rain.astream(prompt, **self._call(stop, kwargs))) as steps:
            async for step in steps:
                if step.text or step.result:
                    chunk = _chunk(step)
                    if run_manager:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"unknown argument '{name}': {hint}there are {', '.join(known)}"


def _llm_result(results: Sequence[RainResult]) -> LLMResult:
    usages = [asdict(result.usage) for result in results]
    total = {field.name: sum(usage[field.name] for usage in usages) for field in fields(Usage)}
    total["completion_tokens"] = total["output_tokens"]
    total["total_tokens"] = total["prompt_tokens"] + total["output_tokens"]
    return LLMResult(
        generations=[[Generation(text=r.text, generation_info=_info(r))] for r in results],
        llm_output={"token_usage": total},
    )


def _chunk(step: Step) -> GenerationChunk:
    """Return an accepted piece; what ``on_unsafe="best"`` lets through is marked as such."""
    info = None if step.accepted else {"accepted": False}
    return GenerationChunk(text=step.text, generation_info=_info(step.result) if step.result else info)


def _info(result: RainResult) -> dict[str, Any]:
    return {
        "usage": asdict(result.usage),
        "verdict": asdict(result.verdict) if result.verdict else None,
        "accepted": result.accepted,
        "stop_reason": str(result.stop_reason),
        "settings_hash": result.settings_hash,
    }
