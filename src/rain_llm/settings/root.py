"""RainSettings: all settings together, created from data, a preset or a file."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from rain_llm.bounds import FRAME_BYTES
from rain_llm.criteria import BUILT_IN
from rain_llm.criteria.criterion import Frozen, Problem, refusal_at
from rain_llm.errors import SettingsError
from rain_llm.redaction import HIDDEN, MORE, and_more, hidden_mistakes, quoted_name, shown, shown_name
from rain_llm.settings.evaluation import EvaluationSettings
from rain_llm.settings.file import Policy, converted, file_schema
from rain_llm.settings.generation import GenerationSettings
from rain_llm.settings.merging import merged
from rain_llm.settings.model import ModelSettings
from rain_llm.settings.old_names import OLD_NAMES, renamed
from rain_llm.settings.presets import PRESETS
from rain_llm.settings.search import (
    KeepDraftsSettings,
    PaperSettings,
    ReadAndRewindSettings,
    SearchSettings,
    search_settings,
)

# Fields for which setting the default explicitly differs from leaving it out: copies keep the difference.
_KEPT_UNSET = (("generation", "seed"), ("generation", "chat_template"), ("evaluation", "chat_template"))


class RainSettings(Frozen):
    """All settings of a guarded model. ``RainSettings()`` is the tuned default (docs/results.md)."""

    model: ModelSettings = Field(default=ModelSettings(), description="The model that writes.")
    generation: GenerationSettings = Field(default=GenerationSettings(), description="How text is sampled.")
    search: ReadAndRewindSettings | KeepDraftsSettings | PaperSettings = Field(
        default=ReadAndRewindSettings(),
        description="The search and its budget; ``strategy`` selects one of three sets of fields.",
    )
    evaluation: EvaluationSettings = Field(
        default=EvaluationSettings(), description="How answers are judged."
    )
    on_unsafe: Literal["best", "refuse", "raise"] = Field(
        default="refuse",
        description="What to do if no text passes: 'refuse' returns the refusal text; 'best' returns the "
        "best text, marked as not accepted; 'raise' raises an UnsafeAnswerError.",
    )
    refusal: str = Field(
        default="I'm sorry, I can't answer that well.",
        min_length=1,
        max_length=FRAME_BYTES,
        description="The text that on_unsafe='refuse' returns.",
    )

    @field_validator("model", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("search", mode="before")
    @classmethod
    def _of_its_strategy(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return search_settings(renamed(value))
        return value if isinstance(value, PaperSettings) else KeepDraftsSettings.model_validate(value)

    @model_validator(mode="after")
    def _budgets(self) -> RainSettings:
        most = self.search.iterations
        problems: list[Problem] = [
            (
                ("evaluation", place, index, "iterations"),
                f"criterion '{shown_name(criterion.name)}': iterations {criterion.iterations} are more than "
                f"search.iterations {most}: lower it, or raise search.iterations",
            )
            for place in ("criteria", "actions")
            for index, criterion in enumerate(getattr(self.evaluation, place))
            if criterion.iterations is not None and criterion.iterations > most
        ]
        if problems:
            raise refusal_at(type(self).__name__, *problems)
        return self

    def updated(self, **parts: Any) -> RainSettings:
        """Return a validated copy with changes.

        Example: ``settings.updated(generation={"seed": 1}, on_unsafe="refuse")``.

        Raises:
            SettingsError: a field is unknown or out of bounds.
        """
        return RainSettings._load(_changed(self.data(), parts), "the changed settings")

    def unseeded(self) -> RainSettings:
        """Return a copy that uses a random seed for each answer, unless a seed was set explicitly.

        LangChain and LlamaIndex users expect that answers vary and that a retry differs.
        """
        if "seed" in self.generation.model_fields_set:
            return self
        generation = self.generation.model_copy(update={"seed": None})
        return self.model_copy(update={"generation": generation})

    def data(self, *parts: str) -> dict[str, Any]:
        """Return these sections, or all, as data to create settings from; includes the API keys."""
        data = self.model_dump(include=set(parts) or None)
        judge = self.evaluation.judge
        for section, name in _KEPT_UNSET:
            if section in data and name not in getattr(self, section).model_fields_set:
                del data[section][name]
        if "model" in data:
            data["model"]["api_key"] = self.model.api_key
        if "evaluation" in data and judge is not None:
            data["evaluation"]["judge"]["api_key"] = judge.api_key
        return data

    @property
    def says_no_chat_template(self) -> bool:
        """Return whether ``generation.chat_template: false`` was set explicitly."""
        drawing = self.generation
        return "chat_template" in drawing.model_fields_set and not drawing.chat_template

    @classmethod
    def preset(cls, name: str) -> RainSettings:
        """Return a preset: 'default', 'paper' (HH), 'paper-adversarial' or 'paper-truth'.

        The constants come from the paper (arXiv 2309.07124) and its published code.

        Raises:
            SettingsError: no preset has this name.
        """
        if name not in PRESETS:
            raise SettingsError(_no_preset(name))
        return cls._load(PRESETS[name], f"preset {name}")

    @classmethod
    def from_file(cls, path: str | Path) -> RainSettings:
        """Read settings from a YAML or JSON file; its key ``preset`` selects the preset to start from.

        Raises:
            SettingsError: the file cannot be read.
            PolicyError: its content is not valid; the message has a line for each mistake.
        """
        policy = Policy(path, _words())
        problems, more = policy.problems, 0
        if not _is_preset(name := policy.data.get("preset", "default")):
            problems.append((("preset",), _no_preset(name)))
        try:
            settings = cls.from_data(policy.data)
        except ValidationError as error:
            problems += _problems(error)
            more = hidden_mistakes(error)
        else:
            given = {name: value for name, value in policy.data.items() if name != "preset"}
            problems += converted(given, settings.model_dump(mode="json"))
        if problems:
            raise policy.error(problems, more)
        return settings

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> RainSettings:
        """Create settings from the content of a settings file; an unknown preset counts as the default.

        Raises:
            ValidationError: the data is not valid.
        """
        name = data.get("preset", "default")
        base = cls.preset(name if _is_preset(name) else "default")
        changes = {key: value for key, value in data.items() if key != "preset"}
        return cls.model_validate(_changed(base.data(), changes))

    @classmethod
    def file_schema(cls) -> dict[str, Any]:
        """Return the JSON schema of the files that :meth:`from_file` reads, for use in editors.

        It contains names, types and bounds. Only ``from_file`` (on the command line: ``rain check``) also
        checks templates, and that criteria are consistent with each other.
        """
        return file_schema(cls.model_json_schema(), PRESETS)

    @classmethod
    def _load(cls, data: dict[str, Any], where: str) -> RainSettings:
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise SettingsError(f"in {where}: {explain(error)}") from error

    @property
    def hash(self) -> str:
        """Return 16 hex digits that identify all settings that can change an answer.

        Settings about where a model runs (device, cache, limits) do not count.
        """
        data = self.model_dump(mode="json")
        for model in (data["model"], data["evaluation"]["judge"]):
            if model is not None:
                where = ("kv_cache_bytes", "device", "threads", "gpu_layers", "limits")
                # Without a name, the server's address is all that identifies the model.
                for name in (*where, "base_url") if model["name"] else where:
                    del model[name]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def _changed(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge changes into the data of settings; if the strategy changes, drop the old one's own fields."""
    changes, search = dict(changes), base["search"]
    if isinstance(changes.get("search"), Mapping):
        with suppress(ValidationError):  # it is raised again during validation, with its location
            changes["search"] = renamed(changes["search"], search["strategy"])
        if {"commit", "expansion"} & changes["search"].keys():  # a mistake: they contradict each other
            base = {**base, "search": {k: v for k, v in search.items() if k != "strategy"}}
        elif changes["search"].get("strategy", search["strategy"]) != search["strategy"]:
            base = {**base, "search": {k: v for k, v in search.items() if k in SearchSettings.model_fields}}
    return merged(base, changes)


def explain(error: ValidationError) -> str:
    """Format a ValidationError as one line: the field, the reason and the value of each mistake."""
    lines = [
        f"{'.'.join(map(str, place))}: {reason}" if place else reason for place, reason in _problems(error)
    ]
    more = hidden_mistakes(error)
    return "; ".join([*lines, and_more(more)] if more else lines)


def _problems(error: ValidationError) -> Iterator[Problem]:
    """Yield the location and the reason, including the value, of each mistake."""
    items = [item for item in error.errors() if item["type"] != MORE]
    for item in items:
        place = item["loc"]
        if item["type"] == "too_short" and any(
            other["loc"][: len(place)] == place for other in items if len(other["loc"]) > len(place)
        ):
            continue  # the list is too short only because other items are invalid
        value = f" (got {found!r})" if (found := shown(item["input"])) != HIDDEN else ""
        yield place, item["msg"].removeprefix("Value error, ") + value


@functools.cache
def _words() -> frozenset[str]:
    """Return all names and values that a settings file may contain; these are safe to show in errors."""
    found = {"preset", "extends", *BUILT_IN, *PRESETS, *OLD_NAMES}
    pending: list[Any] = [RainSettings.model_json_schema()]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            found.update(part.get("properties", ()))
            values = (*part.get("enum", ()), part.get("const"))
            found.update(value for value in values if isinstance(value, str))
            pending += part.values()
        elif isinstance(part, list):
            pending += part
    return frozenset(found)


def read_policy(path: str | Path) -> dict[str, Any]:
    """Return the content of a settings file as data, without replacing names or removing API keys.

    Raises:
        SettingsError: the file cannot be read.
    """
    return Policy(path, _words()).data


def _is_preset(name: object) -> bool:
    return isinstance(name, str) and name in PRESETS


def _no_preset(name: object) -> str:
    return f"unknown preset {quoted_name(name, PRESETS)}: there are {', '.join(PRESETS)}"


def place_of(name: str) -> str:
    """Return example code that sets a field of this name; "" if there is no such field."""
    if name in RainSettings.model_fields:
        return f"RainSettings({name}=...)"
    for section, field in RainSettings.model_fields.items():
        kinds = get_args(field.annotation) or (field.annotation,)
        if any(name in getattr(kind, "model_fields", ()) for kind in kinds):
            return f"RainSettings({section}={{'{name}': ...}})"
    return ""
