"""Accept the setting names of older versions, with a ``DeprecationWarning``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from typing import Any

from rain_llm.criteria.criterion import refusal_at
from rain_llm.errors import OldNameWarning
from rain_llm.settings.search import DEFAULT_STRATEGY, STRATEGIES, fields_of

_STRATEGY = {
    ("commit", "verdict"): "keep_drafts",
    ("commit", "visits"): "paper",
    ("expansion", "simulations"): "keep_drafts",
    ("expansion", "candidates"): "paper",
}
OLD_NAMES = frozenset({"foresight", *(part for pair in _STRATEGY for part in pair)})
"""Names and values that older settings used."""


def renamed(search: Mapping[str, Any], strategy: str = DEFAULT_STRATEGY) -> Mapping[str, Any]:
    """Rename old fields of the search settings; a ``DeprecationWarning`` lists old and new names.

    Args:
        search: the search settings as given.
        strategy: their strategy if they select none.

    Raises:
        ValidationError: they select two strategies, or an unknown one.
    """
    if not {"commit", "expansion", "foresight"} & search.keys():
        return search
    new = {name: value for name, value in search.items() if name not in ("commit", "expansion", "foresight")}
    advice = []
    for old in ("commit", "expansion"):
        if old not in search:
            continue
        named = _STRATEGY.get((old, str(search[old])))
        if named is None or new.setdefault("strategy", named) != named:
            reason = "this contradicts the strategy" if named else "this is search.strategy now"
            raise refusal_at("SearchSettings", ((old,), f"{reason}: choose 'keep_drafts' or 'paper'"))
        advice.append(f"search.{old} is deprecated: use search.strategy='{named}'")
    if advice:  # complete older settings contained the fields of both strategies
        own = fields_of(new["strategy"])
        for other in STRATEGIES:
            for name in fields_of(other) - own & new.keys():
                del new[name]
                advice.append(f"search.{name} is left out: it has no effect with this strategy")
    if "foresight" in search:
        value, simple = search["foresight"], new.get("strategy", strategy) != "paper"
        new["prefetch"] = value != 0 if simple and type(value) is int else value
        advice.append("search.foresight is deprecated: use search.prefetch")
    warnings.warn("; ".join(advice), OldNameWarning, _outside())
    return new


def _outside() -> int:
    """Return the ``stacklevel`` of the first caller outside of this library and pydantic."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals["__name__"].partition(".")[0] in ("rain_llm", "pydantic"):
        frame, level = frame.f_back, level + 1
    return level
