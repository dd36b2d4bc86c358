"""Map parameters under the names that other chat models use to the settings.

Code that was written for another model should run unchanged, and never silently do something else. So a
parameter that changes no answer is accepted and ignored; any other is an error with a remedy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from rain_llm.chat.habits import ALIASES, remedy
from rain_llm.errors import SettingsError
from rain_llm.redaction import nearest, shown_name
from rain_llm.settings import GenerationSettings, RainSettings, place_of

Place = tuple[str, ...]
"""The path of a parameter in the settings."""

CALL: Mapping[str, Place] = {
    "temperature": ("generation", "temperature"),
    "top_p": ("generation", "top_p"),
    "top_k": ("generation", "top_k"),
    "max_tokens": ("generation", "max_new_tokens"),
    "stop": ("generation", "stop"),
    "seed": ("generation", "seed"),
    "timeout": ("search", "deadline_s"),
}
"""Parameters of a model or of a single call."""

ENGINE: Mapping[str, Place] = {
    "model": ("model", "name"),
    "base_url": ("model", "base_url"),
    "api_key": ("model", "api_key"),
    "max_retries": ("model", "limits", "attempts"),
}
"""Parameters of a model only: they select the engine."""

_MOST_ATTEMPTS = 100  # the bound of settings.model.limits.attempts is one more


@dataclass(frozen=True)
class Parameters:
    """The parameters of a wrapper.

    Attributes:
        who: name of the wrapper, for errors.
        places: path of each parameter in the settings; any other name is a field of ``generation``.
        aliases: other names of parameters.
        others: parameters of other models: the values that change nothing, and a remedy for all others.
    """

    who: str
    places: Mapping[str, Place] = field(default_factory=lambda: {**CALL, **ENGINE})
    aliases: Mapping[str, str] = field(default_factory=lambda: ALIASES)
    others: Mapping[str, tuple[Collection[object], str]] = field(default_factory=dict)

    def understood(self, given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
        """Rename aliases and drop parameters that change nothing; unknown names stay.

        Args:
            given: parameters under any name; an alias with the value None is dropped.
            known: names that are not renamed.

        Raises:
            SettingsError: a parameter is not supported, or is given twice with different values.
        """
        ours: dict[str, Any] = {}
        for name in sorted(given, key=lambda name: name not in known):
            value, own = given[name], name if name in known else self.aliases.get(name, name)
            if own != name and value is not None and ours.get(own) not in (None, value):
                raise SettingsError(
                    f"{name} and {own} are the same parameter of {self.who}: give one of them"
                )
            if own not in known and (what := self.remedy(name, value)) is not None:
                if what:
                    raise SettingsError(f"{name} asks for what {self.who} does not do: {what}")
            elif own == name or value is not None:
                ours[own] = value
        return ours

    def known(self, given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
        """Do what :meth:`understood` does; an unknown name is an error.

        Raises:
            SettingsError: a name is unknown (the message says where it belongs); or as :meth:`understood`.
        """
        ours = self.understood(given, known)
        for name in ours:
            if name in known:
                continue
            if name in self.places:
                raise SettingsError(f"{name} is the model's, not a call's: give it to {self.who}(...)")
            place = place_of(name)
            if place.startswith("RainSettings(model=") and "model" not in known:
                raise SettingsError(
                    f"'{name}' is the model's, not a call's: give it to {self.who}(settings={place})"
                )
            if place:
                raise SettingsError(f"'{name}' is a setting: give settings={place}")
            raise SettingsError(f"{unknown(name, known)}; all else is in settings=RainSettings(...)")
        return ours

    def remedy(self, name: str, value: object) -> str | None:
        """Return the remedy for another model's parameter; "": it changes nothing; None: it is unknown."""
        if name not in self.others:
            return remedy(name, value)
        harmless, what = self.others[name]
        return "" if value is None or value in harmless else what

    def changed(self, settings: RainSettings, given: Mapping[str, Any]) -> RainSettings:
        """Return the settings with these parameters.

        Raises:
            SettingsError: a value is out of bounds; the message names the parameter and its path.
        """
        if not given:
            return settings
        sections: dict[str, Any] = {}
        for name, value in given.items():
            *path, last = self.places.get(name) or ("generation", name)
            section = sections
            for part in path:
                section = section.setdefault(part, {})
            section[last] = _attempts(value) if name == "max_retries" else value
        try:
            return settings.updated(**sections)
        except SettingsError as error:
            message = str(error).replace("in the changed settings: ", "")
        for name in given:
            place = ".".join(self.places.get(name, ()))
            message = message.replace(f"{place}:", f"{name} ({place}):") if place else message
        raise SettingsError(message)

    def of_a_call(self) -> list[str]:
        """Return the names of the parameters of a single call: all but the model's."""
        own = [name for name, place in self.places.items() if place[0] != "model"]
        return list(dict.fromkeys([*own, *GenerationSettings.model_fields]))


def _attempts(retries: object) -> int:
    if not isinstance(retries, int) or not 0 <= retries < _MOST_ATTEMPTS:
        raise SettingsError(f"max_retries must be a whole number from 0 to {_MOST_ATTEMPTS - 1}")
    return retries + 1


def same_model(settings: object, own: RainSettings) -> RainSettings:
    """Return the settings of one call, with the model of ``own`` if they name none.

    Raises:
        SettingsError: they are not a ``RainSettings``.
    """
    if not isinstance(settings, RainSettings):
        raise SettingsError(f"settings must be RainSettings, not {type(settings).__name__}")
    if settings.model.name is None:
        settings = settings.model_copy(update={"model": own.model})
    return settings.unseeded()


def unknown(name: str, known: Collection[str]) -> str:
    """Return an error message for an unknown name, with the nearest and all known names."""
    near = nearest(name, known)
    hint = f"did you mean '{near}'? " if near else ""
    return f"unknown argument '{shown_name(name, known)}': {hint}there are {', '.join(known)}"
