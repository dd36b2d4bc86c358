"""What a ``RainLLM`` and its calls take: parameters, and their places in the settings; and its engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, field_serializer, model_validator
from pydantic.json_schema import SkipJsonSchema

from rain_llm import Rain, RainSettings, SettingsError
from rain_llm.chat import ALIASES, ASKED, CALL, ENGINE, Parameters, Redacted, same_model

PARAMETERS = Parameters(
    "RainLLM",
    places={
        **CALL,
        **ENGINE,
        "api_base": ENGINE["base_url"],
        "is_chat_model": ("generation", "chat_template"),
    },
    aliases={**ALIASES, "base_url": "api_base", "chat_template": "is_chat_model"},
    others={
        "functions": ((), "give tools=, as chat_with_tools does"),
        "function_call": ((), "give tool_choice=, as chat_with_tools does"),
        "json_mode": ((False,), "give schema= (a JSON schema), or use structured_predict"),
        "is_function_calling_model": ((True,), "give it no tools, or use a ReActAgent"),
    },
)
_TASK = ("context", "question", "schema", *ASKED)
_CALL = [name for name in PARAMETERS.of_a_call() if name not in PARAMETERS.aliases]
_FIXED = {*ENGINE, "api_base", "rain"}


class Configured(Redacted):
    """A model's parameters and its engine; making one loads nothing.

    Those that LlamaIndex's other models have, too, are names for places in the ``settings``: given, or
    assigned later, they go there.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    model: str | None = Field(
        None, description="A GGUF file, folder or hub name; null: what the settings name."
    )
    settings: RainSettings = Field(default_factory=RainSettings, description="All that can be set.")
    temperature: float | None = Field(None, description="settings.generation.temperature")
    max_tokens: int | None = Field(None, description="Longest answer: settings.generation.max_new_tokens")
    top_p: float | None = Field(None, description="settings.generation.top_p")
    top_k: int | None = Field(None, description="settings.generation.top_k")
    seed: int | None = Field(None, description="settings.generation.seed; null: a fresh one each call.")
    stop: str | tuple[str, ...] | None = Field(None, description="settings.generation.stop")
    timeout: float | None = Field(None, description="Seconds for an answer: settings.search.deadline_s")
    is_chat_model: bool | None = Field(None, description="settings.generation.chat_template")
    api_base: str | tuple[str, ...] | None = Field(None, description="settings.model.base_url")
    api_key: SecretStr | None = Field(None, exclude=True, repr=False, description="settings.model.api_key")
    max_retries: int | None = Field(None, description="settings.model.limits.attempts less one")
    additional_kwargs: dict[str, Any] = Field(default_factory=dict, description="Arguments of every call.")
    context_window: int | None = Field(None, gt=0, description="Tokens; null: by the model's config.json.")
    rain: Annotated[Rain | None, SkipJsonSchema()] = Field(None, exclude=True, repr=False)
    _rain: Rain = PrivateAttr()

    @model_validator(mode="before")
    @classmethod
    def _under_our_names(cls, values: Any) -> Any:
        return PARAMETERS.known(values, cls.model_fields) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _make_engine(self) -> Self:
        places = PARAMETERS.places
        given = {name: value for name, value in self if name in places and value is not None}
        if self.rain is not None:
            if clash := [name for name in given if name in _FIXED]:
                raise ValueError(f"give {clash[0]} or rain, not both: a ready engine has its model")
            if "settings" not in self.model_fields_set:
                self.settings = self.rain.settings
        if self.api_key and not (self.api_base or self.settings.model.base_url):
            raise ValueError("api_key is for a model on a server: give its address as api_base, too")
        self.settings = PARAMETERS.changed(self.settings, given)
        self._rain = self.rain or Rain(self.settings)
        self._understood({})  # additional_kwargs that no call could take are an error now
        return self

    def _understood(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], RainSettings]:
        """Return what a call's arguments say of its task, and the settings that it is answered with."""
        known = [*_TASK, "settings", *_CALL]
        given: dict[str, Any] = {}
        for part in (self.additional_kwargs, options):
            stated = {name: value for name, value in part.items() if value is not None or name == "seed"}
            given |= PARAMETERS.known(stated, known)
        task = {name: given.pop(name) for name in _TASK if name in given}
        settings = same_model(given.pop("settings", self.settings), self.settings)
        return task, PARAMETERS.changed(settings, given)

    def __setattr__(self, name: str, value: Any) -> None:
        """Assign a parameter: the settings hold it from then on.

        Raises:
            SettingsError: the engine depends on it, or the value is out of bounds.
        """
        if name in _FIXED:
            raise SettingsError(f"{name} cannot be changed: make another model, as in RainLLM({name}=...)")
        if name in PARAMETERS.places and value is not None:
            super().__setattr__("settings", PARAMETERS.changed(self.settings, {name: value}))
        super().__setattr__(name, value)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy with changes, on the same engine; parameters are assigned, so that the settings hold them."""
        own = {name: value for name, value in (update or {}).items() if name in PARAMETERS.places}
        others = {name: value for name, value in (update or {}).items() if name not in own}
        twin = super().model_copy(update=others, deep=deep)
        for name, value in own.items():
            setattr(twin, name, value)
        return twin

    @field_serializer("settings")
    def _without_a_default_seed(self, settings: RainSettings) -> dict[str, Any]:
        """Write no seed that nobody gave: whoever reads the settings draws a fresh one, too."""
        data = settings.model_dump(mode="json")
        if "seed" not in settings.generation.model_fields_set:
            del data["generation"]["seed"]
        return data

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the fields without callbacks; the copy makes its own engine.

        Raises:
            TypeError: the engine was given ready, and cannot be made again.
        """
        if self.rain is not None:
            raise TypeError(
                "a RainLLM with a ready engine cannot be pickled: name its model instead, as in "
                "RainLLM(model=..., settings=...)"
            )
        return {"__dict__": {name: value for name, value in vars(self).items() if name != "callback_manager"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["__dict__"])  # type: ignore[misc]
