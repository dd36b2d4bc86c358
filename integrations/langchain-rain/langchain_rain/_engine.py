"""What both models share: which engine answers, by which settings, and what one call may change.

LangChain's caches know a model's identifying parameters. So a call that overrides settings is made by a
copy of the model that has those settings: the copy has its own parameters, and with them its own entries.
Chats without a seed have one key, too: a cached answer comes back, as of other models.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Literal, Self
from uuid import uuid4
from weakref import WeakKeyDictionary

from langchain_core.documents import Document
from langchain_core.language_models import BaseLanguageModel, LangSmithParams
from pydantic import BeforeValidator, Field, PrivateAttr, SecretStr, model_validator

from langchain_rain._habits import understood
from rain_llm import Rain, RainResult, RainSettings, SettingsError
from rain_llm.redaction import Redacted, shown_name
from rain_llm.settings import place_of

Place = tuple[str, ...]
"""Where in the settings a parameter is held."""

_GENERATION: Mapping[str, Place] = {
    name: ("generation", name) for name in type(RainSettings().generation).model_fields
}
_SUBJECT = ("context", "question")
_MOST_ATTEMPTS = 100  # as settings.model.limits has them
_marks: WeakKeyDictionary[Rain, str] = WeakKeyDictionary()


def passages(context: str | Document | Iterable[str | Document] | None) -> str | tuple[str, ...]:
    """Return a context as the engine takes it: a text, or several passages; documents give their content."""
    if context is None:
        return ""
    if isinstance(context, str):
        return context
    if isinstance(context, Document):
        return context.page_content
    return tuple(p.page_content if isinstance(p, Document) else p for p in context)


class GuardedModel(Redacted, BaseLanguageModel[Any]):
    """The fields and overrides of a model that answers by a ``Rain``. Constructing it loads nothing.

    Each answer draws a fresh seed, unless ``seed`` or ``settings.generation.seed`` was given. Pickled, a
    model takes its settings along, the key of its servers among them, and leaves weights and callbacks
    behind: the copy loads its own. One with a ready engine (``rain``) cannot be pickled.
    """

    parameters: ClassVar[Mapping[str, Place]] = {
        "model": ("model", "name"),
        "base_url": ("model", "base_url"),
        "api_key": ("model", "api_key"),
        "max_retries": ("model", "limits", "attempts"),
        "temperature": ("generation", "temperature"),
        "top_p": ("generation", "top_p"),
        "top_k": ("generation", "top_k"),
        "max_tokens": ("generation", "max_new_tokens"),
        "stop": ("generation", "stop"),
        "seed": ("generation", "seed"),
        "timeout": ("search", "deadline_s"),
    }
    """Constructor arguments beside the settings, and where the settings hold them."""

    model: str | None = Field(default=None, frozen=True)
    """A folder or hub name; overrides ``settings.model.name``. None: what the settings name."""

    base_url: str | tuple[str, ...] | None = Field(default=None, frozen=True)
    """Address of a server, or of several that serve the same model: ``settings.model.base_url``."""

    api_key: SecretStr | None = Field(default=None, frozen=True)
    """For these servers: ``settings.model.api_key``."""

    max_retries: int | None = Field(default=None, frozen=True)
    """Retries of a server's failed request: ``settings.model.limits.attempts`` less one."""

    temperature: float | None = Field(default=None, frozen=True)
    """``settings.generation.temperature``."""

    top_p: float | None = Field(default=None, frozen=True)
    """``settings.generation.top_p``."""

    top_k: int | None = Field(default=None, frozen=True)
    """``settings.generation.top_k``."""

    max_tokens: int | None = Field(default=None, frozen=True)
    """Longest answer, tokens: ``settings.generation.max_new_tokens``."""

    stop: str | tuple[str, ...] | None = Field(default=None, frozen=True)
    """The answer ends before the first of these: ``settings.generation.stop``."""

    seed: int | None = Field(default=None, frozen=True)
    """Of the random draws: ``settings.generation.seed``. None: what the settings say; if they say nothing,
    each answer has a fresh one."""

    timeout: float | None = Field(default=None, frozen=True)
    """Seconds for an answer, ``settings.search.deadline_s``: then it ends with what was accepted."""

    settings: RainSettings = Field(default_factory=RainSettings, repr=False, frozen=True)
    """All that the engine may be told; the tuned default if left out."""

    context: Annotated[str | tuple[str, ...], BeforeValidator(passages)] = Field(default="", repr=False)
    """Passages (texts or documents) for criteria that judge against them (groundedness); most often
    given by a call."""

    question: str = Field(default="", repr=False)
    """What the judge is told was asked; "": the prompt, or a chat's last user turn."""

    rain: Rain | None = Field(default=None, exclude=True, repr=False, frozen=True)
    """A ready engine instead of ``model``; its settings hold where none are given."""

    _rain: Rain = PrivateAttr()

    _others: dict[str, Rain] = PrivateAttr(default_factory=dict)
    """Engines of the models that calls named."""

    @model_validator(mode="before")
    @classmethod
    def _one_truth(cls, values: Any) -> Any:
        """Let the settings hold whatever was given beside them."""
        if not isinstance(values, dict):
            return values
        values = understood(values, cls.model_fields, cls.__name__)
        for name in values:
            if name not in cls.model_fields:
                if place := place_of(name):
                    raise ValueError(f"'{name}' is a setting: give settings={place}")
                where = "all else is in settings=RainSettings(...)"
                raise ValueError(f"{unknown(name, [*cls.model_fields])}; {where}")
        given = {name: values[name] for name in cls.parameters if values.get(name) is not None}
        rain, settings = values.get("rain"), values.get("settings")
        if isinstance(rain, Rain):
            if clash := [name for name in given if cls.parameters[name][0] == "model"]:
                raise ValueError(f"give {clash[0]} or rain, not both: a ready engine has its model")
            settings = settings or rain.settings
        if settings is None:
            settings = RainSettings()
        elif not isinstance(settings, RainSettings):
            settings = RainSettings.model_validate(settings)
        if given:
            settings = cls._changed(settings, given)
        return {**values, "settings": settings.unseeded()}

    @model_validator(mode="after")
    def _make_engine(self) -> Self:
        if not hasattr(self, "_rain"):  # else validated again, as a field of another model
            self._rain = self.rain or Rain(self.settings)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the fields: whoever unpickles them makes an engine anew, and has callbacks of their own.

        Raises:
            TypeError: the engine was given ready, and cannot be made anew.
        """
        name = type(self).__name__
        if self.rain is not None:
            raise TypeError(
                f"a {name} with a ready engine cannot be pickled: name its model instead, as in "
                f"{name}(model=..., settings=...)"
            )
        state = super().__getstate__()
        private = {**state["__pydantic_private__"], "_rain": None, "_others": {}}
        fields = {**state["__dict__"], "callbacks": None}
        return {**state, "__dict__": fields, "__pydantic_private__": private}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        self._rain = Rain(self.settings)

    @classmethod
    def _changed(cls, settings: RainSettings, given: Mapping[str, Any]) -> RainSettings:
        """Return settings with parameters in them.

        Raises:
            SettingsError: a value is out of bounds; names the parameter, and its place in the settings.
        """
        try:
            return settings.updated(**cls._sections(given))
        except SettingsError as error:
            said = str(error)
        for name in given:
            place = ".".join(cls.parameters.get(name, ()))
            said = said.replace(f"{place}:", f"{name} ({place}):") if place else said
        raise SettingsError(said)

    @classmethod
    def _sections(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameters as the sections of the settings that hold them."""
        sections: dict[str, Any] = {}
        for name, value in given.items():
            if name == "max_retries":
                value = _attempts(value)
            *path, last = cls.parameters.get(name) or _GENERATION[name]
            section = sections
            for part in path:
                section = section.setdefault(part, {})
            section[last] = value
        return sections

    def warm_up(self) -> None:
        """Load the model now, or ask the server, which the first answer does otherwise."""
        self._rain.load()

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
        params: dict[str, Any] = {"model": self.settings.model.name, "settings_hash": self.settings.hash}
        params |= {name: value for name in _SUBJECT if (value := getattr(self, name))}
        if self.rain is not None:  # it may hold any model: its answers are shared with no other
            params["engine"] = _marks.setdefault(self.rain, uuid4().hex)
        return params

    def _traced(self, kind: Literal["chat", "llm"]) -> LangSmithParams:
        """Return what a trace of LangSmith says of the model."""
        generation = self.settings.generation
        params = LangSmithParams(
            ls_provider="rain",
            ls_model_type=kind,
            ls_model_name=self.settings.model.name or "default",
            ls_temperature=generation.temperature,
            ls_max_tokens=generation.max_new_tokens,
        )
        if generation.stop:
            params["ls_stop"] = [*generation.stop]
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """Return the model's own tokens of a text; loads the model."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return list(self._rain.encode(text, self.settings.updated(generation={"chat_template": False})))

    # -- one path for all overrides ------------------------------------------------------------

    @classmethod
    def _overrides(cls) -> tuple[str, ...]:
        """Return what one call may override. Of the model, nothing: that is another model."""
        own = [name for name, place in cls.parameters.items() if place[0] != "model"]
        sections = [name for name in RainSettings.model_fields if name != "model"]
        return (*dict.fromkeys([*_GENERATION, *own, *sections]), "settings", *_SUBJECT)

    def _understood(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Return the overrides of a call by our names."""
        try:
            return understood(overrides, {*self._overrides(), *self.parameters}, type(self).__name__)
        except ValueError as error:
            raise SettingsError(str(error)) from error

    def _overridden(self, overrides: Mapping[str, Any]) -> Self:
        """Return the model that a call asks for: itself, or a copy with other settings.

        Raises:
            SettingsError: a name is no override, or a value is out of bounds.
        """
        overrides = self._understood(overrides)
        if not overrides:
            return self
        known = self._overrides()
        for name, value in overrides.items():
            if name in self.parameters and name not in known and value is not None:
                raise SettingsError(
                    f"{name} is the model's, not a call's: give it to {type(self).__name__}(...)"
                )
            if name not in (*known, *self.parameters):
                raise SettingsError(unknown(name, known))
        changes = {
            n: v for n, v in overrides.items() if v is not None or n not in self.parameters or n == "seed"
        }
        settings = changes.pop("settings", self.settings)
        if not isinstance(settings, RainSettings):
            raise SettingsError(f"settings must be RainSettings, not {type(settings).__name__}")
        if settings.model.name is None:
            settings = settings.model_copy(update={"model": self.settings.model})
        settings = settings.unseeded()
        update: dict[str, Any] = {name: changes.pop(name) for name in _SUBJECT if name in changes}
        if "context" in update:
            update["context"] = passages(update["context"])
        single = {n: changes.pop(n) for n in [*changes] if n in self.parameters or n in _GENERATION}
        settings = self._changed(settings.updated(**changes), single)
        return self.model_copy(update={**update, "settings": settings})


def _attempts(retries: object) -> int:
    if not isinstance(retries, int) or not 0 <= retries < _MOST_ATTEMPTS:
        raise SettingsError(f"max_retries must be a whole number from 0 to {_MOST_ATTEMPTS - 1}")
    return retries + 1


def with_stop(overrides: Mapping[str, Any], stop: list[str] | None) -> Mapping[str, Any]:
    """Return all overrides of a call: LangChain hands ``stop`` over apart from the others."""
    return overrides if stop is None else {**overrides, "stop": stop}


def unknown(name: str, known: Sequence[str]) -> str:
    """Say that a name is not known, which one it may have meant, and which there are."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"unknown argument '{shown_name(name, known)}': {hint}there are {', '.join(known)}"


def told(result: RainResult) -> dict[str, Any]:
    """Return what an answer tells of itself beside its text.

    ``sentences`` are there only for an answer with passages that did not pass: which one failed, with its
    probability and the nearest passage. What a rejected sentence says is withheld, unless the settings'
    ``evaluation.sentences`` is "texts".
    """
    sentences = [sentence.to_dict() for sentence in result.sentences]
    return {
        "usage": asdict(result.usage),
        "verdict": asdict(result.verdict) if result.verdict else None,
        "accepted": result.accepted,
        "stop_reason": str(result.stop_reason),
        "settings_hash": result.settings_hash,
        "trace": result.trace.summary(),
        **({"sentences": sentences} if sentences else {}),
    }
