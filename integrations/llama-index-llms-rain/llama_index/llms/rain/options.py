"""Arguments by the names that LlamaIndex's other models and OpenAI's API have for them.

What only repeats a default (``n=1``, ``logprobs=False``) or changes no answer (``user``) is dropped.
All else that is not known is an error, which says what to do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from rain_llm import PromptError, RainSettings, SettingsError
from rain_llm.chat import habits
from rain_llm.redaction import nearest, shown_name

Place = tuple[str, ...]

GENERATION: Mapping[str, Place] = {
    "temperature": ("generation", "temperature"),
    "max_tokens": ("generation", "max_new_tokens"),
    "top_p": ("generation", "top_p"),
    "top_k": ("generation", "top_k"),
    "seed": ("generation", "seed"),
    "stop": ("generation", "stop"),
    "timeout": ("search", "deadline_s"),
    "is_chat_model": ("generation", "chat_template"),
}
"""What a model or a single call may be given, and where the settings hold it."""

ENGINE: Mapping[str, Place] = {
    "model": ("model", "name"),
    "api_base": ("model", "base_url"),
    "api_key": ("model", "api_key"),
    "max_retries": ("model", "limits", "attempts"),
}
"""What only a model may be given: it decides which engine there is."""

ALIASES: Mapping[str, str] = {**habits.ALIASES, "base_url": "api_base"}

_HARMLESS: Mapping[str, Any] = {"json_mode": False, "is_function_calling_model": True}
_REMEDIES: Mapping[str, str] = {
    **dict.fromkeys(("n", "best_of"), "a call gives one answer: call again, with another seed"),
    **dict.fromkeys(
        ("logprobs", "top_logprobs"), "no log-probabilities are given out: raw['verdict'] has the judge's"
    ),
    "functions": "give tools=, as chat_with_tools does",
    "function_call": "give tool_choice=, as chat_with_tools does",
    "json_mode": "give schema= (a JSON schema), or use structured_predict",
    "is_function_calling_model": "it calls the functions that it is given; give none, or use a ReActAgent",
}
"""What to do about what is LlamaIndex's own, or has its own words there."""


def known_only(options: Mapping[str, Any], known: Collection[str], rest: str) -> dict[str, Any]:
    """Return options under our names, without those that change nothing.

    Args:
        options: by name; None means not given, but for ``seed``.
        known: the names that are taken.
        rest: says where all else is to be given.

    Raises:
        SettingsError: one is unknown, or given under two names.
    """
    taken: dict[str, Any] = {}
    for name, value in options.items():
        if value is None and name != "seed":
            continue
        ours = ALIASES.get(name, name)
        if ours in known:
            if ours in taken:
                raise SettingsError(f"{name} and {ours} mean the same: give one of them")
            taken[ours] = value
        elif habits.remedy(name, value) != "" and _HARMLESS.get(name) is not value:
            raise SettingsError(_unknown(name, value, known, rest))
    return taken


def _unknown(name: str, value: object, known: Iterable[str], rest: str) -> str:
    if remedy := _REMEDIES.get(name) or habits.remedy(name, value):
        return f"'{name}' cannot be given: {remedy}"
    near = nearest(name, known)
    hint = f"did you mean '{near}'? " if near else ""
    return f"unknown argument '{shown_name(name, known)}': {hint}{rest}"


def updated(settings: RainSettings, given: Mapping[str, Any]) -> RainSettings:
    """Return settings with what was given by name.

    Raises:
        SettingsError: a value is out of bounds.
    """
    if not given:
        return settings
    sections: dict[str, Any] = {}
    for name, value in given.items():
        *path, last = {**GENERATION, **ENGINE}.get(name) or ("generation", name)
        section = sections
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value + 1 if name == "max_retries" else value
    try:
        return settings.updated(**sections)
    except SettingsError as error:
        raise SettingsError(_by_our_names(str(error), given)) from None


def _by_our_names(reason: str, given: Iterable[str]) -> str:
    """Return an error of the settings that names what was given instead of where the settings hold it."""
    for name in given:
        reason = reason.replace(".".join({**GENERATION, **ENGINE}.get(name, ())) or name, name)
    return reason.replace("in the changed settings: ", "")


def schema_in(response_format: object) -> Any:
    """Return the schema that OpenAI's ``response_format`` asks for; None: it asks for text.

    Raises:
        PromptError: it asks for nothing known.
    """
    match response_format:
        case {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {"type": "object"}
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return schema
    raise PromptError(
        f"response_format, a {type(response_format).__name__}, asks for nothing known: give schema= "
        "(a JSON schema), or {'type': 'json_schema', 'json_schema': {'schema': ...}}"
    )
