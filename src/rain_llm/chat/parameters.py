"""Parameters by the names that other chat models have for them, and where the settings hold them.

Code that was written for another model should run as it is, and never do silently what it did not ask for.
So what changes no answer is taken and left; anything else is an error that says what to do.
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
"""Where in the settings a parameter is held."""

CALL: Mapping[str, Place] = {
    "temperature": ("generation", "temperature"),
    "top_p": ("generation", "top_p"),
    "top_k": ("generation", "top_k"),
    "max_tokens": ("generation", "max_new_tokens"),
    "stop": ("generation", "stop"),
    "seed": ("generation", "seed"),
    "timeout": ("search", "deadline_s"),
}
"""What a model or a single call may be given."""

ENGINE: Mapping[str, Place] = {
    "model": ("model", "name"),
    "base_url": ("model", "base_url"),
    "api_key": ("model", "api_key"),
    "max_retries": ("model", "limits", "attempts"),
}
"""What only a model may be given: it decides which engine there is."""

_MOST_ATTEMPTS = 100  # as settings.model.limits has them


@dataclass(frozen=True)
class Parameters:
    """The parameters that a wrapper takes.

    Attributes:
        who: takes them, for errors.
        places: where the settings hold each; any other is a field of ``generation``.
        aliases: other names of them.
        others: what other models take, with the values that ask for nothing, and what to do about others.
    """

    who: str
    places: Mapping[str, Place] = field(default_factory=lambda: {**CALL, **ENGINE})
    aliases: Mapping[str, str] = field(default_factory=lambda: ALIASES)
    others: Mapping[str, tuple[Collection[object], str]] = field(default_factory=dict)

    def understood(self, given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
        """Return parameters under our names, without those that change nothing; unknown ones stay.

        Args:
            given: by whatever names; with None, an alias is not given.
            known: names that stay as they are.

        Raises:
            SettingsError: one asks for what there is not, or two are the same.
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
        """Return parameters as :meth:`understood` does; a name that is not known is an error.

        Raises:
            SettingsError: a name is not known, and says where it belongs; or as :meth:`understood` does.
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
        """Return what to do about another model's parameter; "": nothing; None: no known model has it."""
        if name not in self.others:
            return remedy(name, value)
        harmless, what = self.others[name]
        return "" if value is None or value in harmless else what

    def changed(self, settings: RainSettings, given: Mapping[str, Any]) -> RainSettings:
        """Return settings with parameters in them.

        Raises:
            SettingsError: a value is out of bounds; names the parameter, and its place in the settings.
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
            said = str(error).replace("in the changed settings: ", "")
        for name in given:
            place = ".".join(self.places.get(name, ()))
            said = said.replace(f"{place}:", f"{name} ({place}):") if place else said
        raise SettingsError(said)

    def of_a_call(self) -> list[str]:
        """Return the names that a single call may give: all but the model's."""
        own = [name for name, place in self.places.items() if place[0] != "model"]
        return list(dict.fromkeys([*own, *GenerationSettings.model_fields]))


def _attempts(retries: object) -> int:
    if not isinstance(retries, int) or not 0 <= retries < _MOST_ATTEMPTS:
        raise SettingsError(f"max_retries must be a whole number from 0 to {_MOST_ATTEMPTS - 1}")
    return retries + 1


def same_model(settings: object, own: RainSettings) -> RainSettings:
    """Return the settings of one call: with the model of ``own``, where they name none.

    Raises:
        SettingsError: they are no ``RainSettings``.
    """
    if not isinstance(settings, RainSettings):
        raise SettingsError(f"settings must be RainSettings, not {type(settings).__name__}")
    if settings.model.name is None:
        settings = settings.model_copy(update={"model": own.model})
    return settings.unseeded()


def unknown(name: str, known: Collection[str]) -> str:
    """Say that a name is not known, which one it may have meant, and which there are."""
    near = nearest(name, known)
    hint = f"did you mean '{near}'? " if near else ""
    return f"unknown argument '{shown_name(name, known)}': {hint}there are {', '.join(known)}"
