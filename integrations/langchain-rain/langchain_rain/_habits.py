"""Parameters by the names that OpenAI's models have for them, and what of theirs means nothing here.

Code that was written for another chat model should run as it is, and never do silently what it did not ask
for: what changes no answer is taken and left, anything else is an error that says what to do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from rain_llm.chat import habits

ALIASES = {
    **habits.ALIASES,
    "openai_api_key": "api_key",
    "openai_api_base": "base_url",
    "api_base": "base_url",
}
"""Other names of parameters."""

_OF_TOOLS: dict[str, tuple[Collection[object], str]] = {
    "parallel_tool_calls": ((True,), "give it to bind_tools"),
    "tools": (([],), "give them to bind_tools of a ChatRain"),
    "tool_choice": (("auto",), "give it to bind_tools of a ChatRain"),
    "response_format": ((), "give the schema to with_structured_output of a ChatRain"),
}
"""Parameters of single calls, with the values that ask for nothing; and what to do about others."""

_MORE = "model_kwargs"


def understood(given: Mapping[str, Any], known: Collection[str], who: str) -> dict[str, Any]:
    """Return parameters by our names, without those that ask for nothing.

    Args:
        given: by whatever names.
        known: names that stay as they are.
        who: takes them, for errors.

    Raises:
        ValueError: one asks for what there is not, or two are the same.
    """
    ours: dict[str, Any] = {}
    for name, value in _flat(given, known).items():
        own = name if name in known else ALIASES.get(name, name)
        if own in ours and own != name and value is not None and ours[own] not in (None, value):
            raise ValueError(f"{name} and {own} are the same parameter of {who}: give one of them")
        if own not in known and _asks_for_nothing(name, value, who):
            continue
        if own == name or value is not None:
            ours[own] = value
    return ours


def _flat(given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return parameters with those in ``model_kwargs`` beside the others, our own names first."""
    flat = {name: value for name, value in given.items() if name != _MORE}
    more = given.get(_MORE) or {}
    if not isinstance(more, Mapping):
        raise ValueError(f"{_MORE} is a {type(more).__name__}: give a dict of parameters")
    for name, value in more.items():
        if name in flat:
            is_known = name in {*known, *ALIASES, *_OF_TOOLS} or habits.remedy(name, None) is not None
            raise ValueError(
                f"{name if is_known else 'a parameter'} is given twice, once in {_MORE}: give it once"
            )
        flat[name] = value
    return {name: flat[name] for name in sorted(flat, key=lambda name: name not in known)}


def _asks_for_nothing(name: str, value: object, who: str) -> bool:
    what = habits.remedy(name, value)
    if name in _OF_TOOLS:
        harmless, what = _OF_TOOLS[name]
        what = "" if value is None or value in harmless else what
    if what:
        raise ValueError(f"{name} asks for what {who} does not do: {what}")
    return what == ""
