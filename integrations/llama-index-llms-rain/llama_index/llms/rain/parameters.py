"""How a ``RainLLM`` is made: its parameters, where the settings hold them, and its engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from llama_index.core.bridge.pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    field_serializer,
    model_validator,
)
from llama_index.llms.rain.options import ALIASES, ENGINE, GENERATION, known_only, updated
from pydantic.json_schema import SkipJsonSchema

from rain_llm import Rain, RainSettings, SettingsError
from rain_llm.redaction import Redacted
from rain_llm.settings import place_of

REST = "all else is in settings=RainSettings(...)"


class Parameters(Redacted):
    """The parameters of a model that answers by a ``Rain``. Constructing it loads nothing.

    Those that LlamaIndex's other models have, too, are names for places in the ``settings``, which hold the
    truth; given, or assigned later, they go there.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    model: str | None = Field(default=None, description="A folder or hub name; null: what the settings name.")
    settings: RainSettings = Field(
        default_factory=RainSettings, description="All that the engine may be told."
    )
    temperature: float | None = Field(
        default=None, ge=0, le=10, description="settings.generation.temperature"
    )
    max_tokens: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Longest answer: settings.generation.max_new_tokens"
    )
    top_p: float | None = Field(default=None, gt=0, le=1, description="settings.generation.top_p")
    top_k: int | None = Field(default=None, ge=0, description="settings.generation.top_k")
    seed: int | None = Field(
        default=None, ge=0, lt=1 << 63, description="settings.generation.seed; null: a fresh one each call."
    )
    stop: str | tuple[str, ...] | None = Field(default=None, description="settings.generation.stop")
    timeout: float | None = Field(
        default=None, gt=0, description="Seconds for an answer: settings.search.deadline_s"
    )
    is_chat_model: bool | None = Field(
        default=None, description="Fill templates for a user's turn: settings.generation.chat_template"
    )
    api_base: str | tuple[str, ...] | None = Field(
        default=None, description="Address of a server, or of several: settings.model.base_url"
    )
    api_key: SecretStr | None = Field(
        default=None, exclude=True, repr=False, description="For these servers; never written down."
    )
    max_retries: int | None = Field(
        default=None,
        ge=0,
        le=99,
        description="Retries of a server's failed request: limits.attempts less one",
    )
    additional_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of every call, unless the call has its own."
    )
    context_window: int | None = Field(
        default=None, gt=0, description="Tokens of the model's context; null: by its config.json."
    )
    rain: Annotated[Rain | None, SkipJsonSchema()] = Field(
        default=None, exclude=True, repr=False, description="A ready engine instead of a model."
    )
    _rain: Rain = PrivateAttr()

    @model_validator(mode="before")
    @classmethod
    def _by_our_names(cls, values: Any) -> Any:
        """Take the names that other models have for the same, and drop what changes nothing."""
        if not isinstance(values, dict):
            return values
        own = {name: value for name, value in values.items() if name in cls.model_fields}
        others = {name: value for name, value in values.items() if name not in own}
        known = [*GENERATION, *ENGINE, *cls.model_fields]
        for name in others:
            if name not in (*known, *ALIASES) and (place := place_of(name)):
                raise ValueError(f"'{name}' is a setting: give settings={place}")
        taken = known_only(others, known, REST)
        if twice := [name for name in taken if own.get(name) is not None]:
            raise ValueError(f"{twice[0]} is given under two names: give one of them")
        return own | taken

    @model_validator(mode="after")
    def _make_engine(self) -> Self:
        given = {name: value for name in (*GENERATION, *ENGINE) if (value := getattr(self, name)) is not None}
        if self.rain is not None:
            if clash := [name for name in given if name in ENGINE]:
                raise ValueError(f"give {clash[0]} or rain, not both: a ready engine has its model")
            if "settings" not in self.model_fields_set:
                self.settings = self.rain.settings
        if self.api_key and not (self.api_base or self.settings.model.base_url):
            raise ValueError("api_key is for a model on a server: give its address as api_base, too")
        self.settings = updated(self.settings, given)
        self._rain = self.rain or Rain(self.settings)
        self._check_kwargs()
        return self

    def _check_kwargs(self) -> None:
        """Refuse ``additional_kwargs`` that no call could take."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Assign a parameter: the settings hold it from then on.

        Raises:
            SettingsError: the engine depends on it, or the value is out of bounds.
        """
        if name in ENGINE or name == "rain":
            raise SettingsError(f"{name} cannot be changed: make another model, as in RainLLM({name}=...)")
        if name in GENERATION and value is not None:
            super().__setattr__("settings", updated(self.settings, {name: value}))
        super().__setattr__(name, value)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy with changes, on the same engine; parameters are assigned, so that the settings hold them."""
        own = {name: value for name, value in (update or {}).items() if name in (*GENERATION, *ENGINE)}
        others = {name: value for name, value in (update or {}).items() if name not in own}
        twin = super().model_copy(update=others, deep=deep)
        for name, value in own.items():
            setattr(twin, name, value)
        return twin

    @field_serializer("settings")
    def _without_a_seed_that_nobody_gave(self, settings: RainSettings) -> dict[str, Any]:
        """Write the settings so that whoever reads them draws a fresh seed where these would."""
        data = settings.model_dump(mode="json")
        if "seed" not in settings.generation.model_fields_set:
            del data["generation"]["seed"]
        return data

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the fields; whoever unpickles them makes an engine anew, and has callbacks of their own.

        Raises:
            TypeError: the engine was given ready, and cannot be made anew.
        """
        if self.rain is not None:
            raise TypeError(
                "a RainLLM with a ready engine cannot be pickled: name its model instead, as in "
                "RainLLM(model=..., settings=...)"
            )
        fields = {name: value for name, value in self.__dict__.items() if name != "callback_manager"}
        return {"__dict__": fields}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["__dict__"])  # type: ignore[misc]
