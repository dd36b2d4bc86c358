"""What both models share: the engine, the settings, and what one call may change.

LangChain's caches know a model's identifying parameters. So a call that overrides settings is made by a
copy of the model that has those settings: the copy has its own parameters, and with them its own entries.
Chats without a seed have one key, too: the cache returns its answer, as for other models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self
from uuid import uuid4
from weakref import WeakKeyDictionary

from langchain_core.documents import Document
from langchain_core.language_models import BaseLanguageModel, LangSmithParams
from pydantic import BeforeValidator, Field, PrivateAttr, SecretStr, model_validator

from rain_llm import Rain, RainSettings, SettingsError
from rain_llm.chat import ALIASES, ENGINE, Parameters, Redacted, place_of, same_model, unknown

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
"""Parameters of single calls, with the values that ask for nothing; and what to do about others."""

_SUBJECT = ("context", "question")
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
    """Seed of sampling: ``settings.generation.seed``. None: that of the settings, or else a fresh one for
    each answer."""

    timeout: float | None = Field(default=None, frozen=True)
    """Seconds for an answer, ``settings.search.deadline_s``: then it ends with what was accepted."""

    settings: RainSettings = Field(default_factory=RainSettings, repr=False, frozen=True)
    """All settings of the engine; the tuned default if left out."""

    context: Annotated[str | tuple[str, ...], BeforeValidator(passages)] = Field(default="", repr=False)
    """Passages (texts or documents) for criteria that judge against them (groundedness); most often
    given by a call."""

    question: str = Field(default="", repr=False)
    """The question that the judge reads; "": the prompt, or a chat's last user turn."""

    rain: Rain | None = Field(default=None, exclude=True, repr=False, frozen=True)
    """A ready engine instead of ``model``; its settings are used if none are given."""

    _rain: Rain = PrivateAttr()

    _others: dict[str, Rain] = PrivateAttr(default_factory=dict)
    """Engines of the models that calls named."""

    @model_validator(mode="before")
    @classmethod
    def _one_truth(cls, values: Any) -> Any:
        """Put the parameters into the settings."""
        if not isinstance(values, dict):
            return values
        taken, known = cls._parameters(), cls.model_fields
        values = taken.understood(_flat(values, known), known)
        for name in values:
            if name not in known:
                if place := place_of(name):
                    raise ValueError(f"'{name}' is a setting: give settings={place}")
                raise ValueError(f"{unknown(name, known)}; all else is in settings=RainSettings(...)")
        given = {name: values[name] for name in taken.places if values.get(name) is not None}
        rain, settings = values.get("rain"), values.get("settings")
        if isinstance(rain, Rain):
            if clash := [name for name in given if name in ENGINE]:
                raise ValueError(f"give {clash[0]} or rain, not both: a ready engine has its model")
            settings = settings or rain.settings
        if not isinstance(settings, RainSettings):
            settings = RainSettings() if settings is None else RainSettings.model_validate(settings)
        settings = taken.changed(settings, given)
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
    def _parameters(cls) -> Parameters:
        return Parameters(cls.__name__, aliases=_ALIASES, others=_OF_TOOLS)

    def warm_up(self) -> None:
        """Load the model now, or ask the server, which the first answer does otherwise."""
        self._rain.load()

    # -- LangChain's questions about a model -----------------------------------------------------

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
        """Return the model's parameters for a LangSmith trace."""
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

    def _understood(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Return the overrides of a call under our names."""
        known = {*_overrides(), *ENGINE}
        return self._parameters().understood(_flat(overrides, known), known)

    def _overridden(self, overrides: Mapping[str, Any]) -> Self:
        """Return the model for a call: itself, or a copy with other settings.

        Raises:
            SettingsError: a name is no override, or a value is out of bounds.
        """
        overrides, taken, known = self._understood(overrides), self._parameters(), _overrides()
        if not overrides:
            return self
        for name, value in overrides.items():
            if name in ENGINE and value is not None:
                raise SettingsError(
                    f"{name} is the model's, not a call's: give it to {type(self).__name__}(...)"
                )
            if name not in known and name not in ENGINE:
                raise SettingsError(unknown(name, known))
        changes = {
            n: v for n, v in overrides.items() if v is not None or n not in taken.places or n == "seed"
        }
        settings = same_model(changes.pop("settings", self.settings), self.settings)
        update = {name: changes.pop(name) for name in _SUBJECT if name in changes}
        if "context" in update:
            update["context"] = passages(update["context"])
        single = {n: changes.pop(n) for n in taken.of_a_call() if n in changes}
        settings = taken.changed(settings.updated(**changes), single)
        return self.model_copy(update={**update, "settings": settings})


def _overrides() -> list[str]:
    """Return what one call may override: everything but the model."""
    sections = [name for name in RainSettings.model_fields if name != "model"]
    return [*Parameters("").of_a_call(), *sections, "settings", *_SUBJECT]


def _flat(given: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Return parameters with those in ``model_kwargs`` beside the others."""
    flat = {name: value for name, value in given.items() if name != "model_kwargs"}
    more = given.get("model_kwargs") or {}
    if not isinstance(more, Mapping):
        raise SettingsError(f"model_kwargs is a {type(more).__name__}: give a dict of parameters")
    if twice := [name for name in more if name in flat]:
        what = twice[0] if twice[0] in {*known, *_ALIASES, *_OF_TOOLS} else "a parameter"
        raise SettingsError(f"{what} is given twice, once in model_kwargs: give it once")
    return flat | dict(more)


def with_stop(overrides: Mapping[str, Any], stop: list[str] | None) -> Mapping[str, Any]:
    """Return all overrides of a call: LangChain hands ``stop`` over apart from the others."""
    return overrides if stop is None else {**overrides, "stop": stop}
