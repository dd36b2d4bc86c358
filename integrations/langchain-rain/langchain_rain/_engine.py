"""What both models share: the engine, the settings, and what one call may change.

LangChain's caches identify a model by its parameters. So a call that overrides settings is answered by a copy
of the model that has those settings, and with them cache entries of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Self
from uuid import uuid4
from weakref import WeakKeyDictionary

from langchain_core.documents import Document
from langchain_core.language_models import BaseLanguageModel, LangSmithParams
from pydantic import BeforeValidator, Field, PrivateAttr, SecretStr, model_validator

from rain_llm import Rain, RainSettings, SettingsError
from rain_llm.chat import ALIASES, ENGINE, Parameters, Redacted, same_model

_ALIASES = {
    **ALIASES,
    **dict.fromkeys(("openai_api_base", "api_base"), "base_url"),
    "openai_api_key": "api_key",
}
_OF_TOOLS = {
    "parallel_tool_calls": ((True,), "give it to bind_tools"),
    "tools": (([],), "give them to bind_tools of a ChatRain"),
    "tool_choice": (("auto",), "give it to bind_tools of a ChatRain"),
    "response_format": ((), "give the schema to with_structured_output of a ChatRain"),
}
_SUBJECT = ("context", "question")
_SECTIONS = [name for name in RainSettings.model_fields if name != "model"]
_OF_A_CALL = [*Parameters("").of_a_call(), *_SECTIONS, "settings", *_SUBJECT]
_marks: WeakKeyDictionary[Rain, str] = WeakKeyDictionary()


def passages(context: str | Document | Iterable[str | Document] | None) -> str | tuple[str, ...]:
    """Return a context as the engine takes it: a text, or several passages."""
    if context is None:
        return ""
    if isinstance(context, str):
        return context
    if isinstance(context, Document):
        return context.page_content
    return tuple(p.page_content if isinstance(p, Document) else p for p in context)


class GuardedModel(Redacted, BaseLanguageModel[Any]):
    """The fields and overrides of a model that answers with a ``Rain``. Constructing it loads nothing.

    Each answer draws a fresh seed, unless ``seed`` or ``settings.generation.seed`` was given. A pickle holds
    the settings, the API key among them, but no weights and no callbacks: the copy loads its own model.

    Attributes:
        model: a GGUF file, folder or hub name, ``settings.model.name``.
        base_url: address of a server, or of several with the same model, ``settings.model.base_url``.
        api_key: for these servers, ``settings.model.api_key``.
        max_retries: of a server's failed request, ``settings.model.limits.attempts`` less one.
        temperature, top_p, top_k, stop, seed: as in ``settings.generation``.
        max_tokens: of an answer, ``settings.generation.max_new_tokens``.
        timeout: seconds for an answer, which then ends with what was accepted,
            ``settings.search.deadline_s``.
        settings: all settings of the engine; the parameters above take precedence.
        context: passages (texts or documents) for criteria that judge against them, such as groundedness.
        question: what the judge reads as the question; "": the prompt, or a chat's last user turn.
        rain: a ready engine instead of ``model``; it brings its settings if none are given.
    """

    model: str | None = Field(default=None, frozen=True)
    base_url: str | tuple[str, ...] | None = Field(default=None, frozen=True)
    api_key: SecretStr | None = Field(default=None, frozen=True)
    max_retries: int | None = Field(default=None, frozen=True)
    temperature: float | None = Field(default=None, frozen=True)
    top_p: float | None = Field(default=None, frozen=True)
    top_k: int | None = Field(default=None, frozen=True)
    max_tokens: int | None = Field(default=None, frozen=True)
    stop: str | tuple[str, ...] | None = Field(default=None, frozen=True)
    seed: int | None = Field(default=None, frozen=True)
    timeout: float | None = Field(default=None, frozen=True)
    settings: RainSettings = Field(default_factory=RainSettings, repr=False, frozen=True)
    context: Annotated[str | tuple[str, ...], BeforeValidator(passages)] = Field(default="", repr=False)
    question: str = Field(default="", repr=False)
    rain: Rain | None = Field(default=None, exclude=True, repr=False, frozen=True)

    _rain: Rain = PrivateAttr()
    _others: dict[str, Rain] = PrivateAttr(default_factory=dict)  # engines of the models that calls named
    _of_a_task: ClassVar[tuple[str, ...]] = ()  # what a call may ask for beside settings

    @model_validator(mode="before")
    @classmethod
    def _into_settings(cls, values: Any) -> Any:
        """Put the parameters into the settings, which the engine reads."""
        if not isinstance(values, dict):
            return values
        parameters, known = cls._parameters(), cls.model_fields
        values = parameters.known(_flat(values, known), known)
        given = {name: values[name] for name in parameters.places if values.get(name) is not None}
        rain, settings = values.get("rain"), values.get("settings")
        if isinstance(rain, Rain):
            if clash := [name for name in given if name in ENGINE]:
                raise ValueError(f"give {clash[0]} or rain, not both: a ready engine has its model")
            settings = settings or rain.settings
        if not isinstance(settings, RainSettings):
            settings = RainSettings() if settings is None else RainSettings.model_validate(settings)
        return {**values, "settings": parameters.changed(settings, given).unseeded()}

    @model_validator(mode="after")
    def _make_engine(self) -> Self:
        if not hasattr(self, "_rain"):  # else validated again, as a field of another model
            self._rain = self.rain or Rain(self.settings)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the fields, without engine and callbacks.

        Raises:
            TypeError: the engine was given ready, and cannot be made again.
        """
        if self.rain is not None:
            name = type(self).__name__
            raise TypeError(
                f"a {name} with a ready engine cannot be pickled: name its model instead, as in "
                f"{name}(model=..., settings=...)"
            )
        state = super().__getstate__()
        state["__dict__"] = {**state["__dict__"], "callbacks": None}
        state["__pydantic_private__"] = {**state["__pydantic_private__"], "_rain": None, "_others": {}}
        return state

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        self._rain = Rain(self.settings)

    def warm_up(self) -> None:
        """Load the model now, or ask the server, which the first answer does otherwise."""
        self._rain.load()

    def get_token_ids(self, text: str) -> list[int]:
        """Return the model's own tokens of a text; loads the model."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return list(self._rain.encode(text, self.settings.updated(generation={"chat_template": False})))

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        """Return everything that can change an answer: LangChain's cache keys are made of it."""
        params: dict[str, Any] = {"model": self.settings.model.name, "settings_hash": self.settings.hash}
        params |= {name: value for name in _SUBJECT if (value := getattr(self, name))}
        if self.rain is not None:  # it may hold any model: its answers are shared with no other
            params["engine"] = _marks.setdefault(self.rain, uuid4().hex)
        return params

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        settings = self._asked(stop, kwargs)[0].settings
        params = super()._get_ls_params(
            [*settings.generation.stop],
            temperature=settings.generation.temperature,
            max_tokens=settings.generation.max_new_tokens,
        )
        return {**params, "ls_provider": "rain", "ls_model_name": settings.model.name or "default"}

    # -- overrides of one call -----------------------------------------------------------------

    def _asked(self, stop: list[str] | None, kwargs: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """Return the model that answers a call, and what the call asks for beside settings."""
        asked = {name: kwargs[name] for name in self._of_a_task if name in kwargs}
        overrides = {name: value for name, value in kwargs.items() if name not in asked}
        if stop is not None:
            overrides["stop"] = stop
        return self._overridden(overrides), asked

    def _overridden(self, overrides: Mapping[str, Any]) -> Self:
        """Return the model for a call: itself, or a copy with other settings.

        Raises:
            SettingsError: a name is no override, or a value is out of bounds.
        """
        parameters = self._parameters()
        given = parameters.known(self._understood(overrides), _OF_A_CALL)
        if not given:
            return self
        update: dict[str, Any] = {name: given.pop(name) for name in _SUBJECT if name in given}
        if "context" in update:
            update["context"] = passages(update["context"])
        settings = same_model(given.pop("settings", self.settings), self.settings)
        sections = {name: given.pop(name) for name in _SECTIONS if name in given}
        update["settings"] = parameters.changed(settings.updated(**sections), given)
        return self.model_copy(update=update)

    def _understood(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Return the overrides of a call under our names, without parameters that are None."""
        parameters = self._parameters()
        given = parameters.understood(_flat(overrides, _OF_A_CALL), _OF_A_CALL)
        unset = [n for n, value in given.items() if value is None and n in parameters.places and n != "seed"]
        return {name: value for name, value in given.items() if name not in unset}

    @classmethod
    def _parameters(cls) -> Parameters:
        return Parameters(cls.__name__, aliases=_ALIASES, others=_OF_TOOLS)


def _flat(given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return parameters with those in ``model_kwargs`` among the others."""
    flat = {name: value for name, value in given.items() if name != "model_kwargs"}
    more = given.get("model_kwargs") or {}
    if not isinstance(more, Mapping):
        raise SettingsError(f"model_kwargs is a {type(more).__name__}: give a dict of parameters")
    if twice := [name for name in more if name in flat]:
        what = twice[0] if twice[0] in {*known, *_ALIASES, *_OF_TOOLS} else "a parameter"
        raise SettingsError(f"{what} is given twice, once in model_kwargs: give it once")
    return flat | dict(more)
