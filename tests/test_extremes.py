"""Numbers: each setting has a bound on both sides, and within them nothing overflows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from rain_llm import Calibration, Criterion, Rain, RainSettings
from rain_llm.models.scripted import END, ScriptedModel
from rain_llm.settings import (
    AdditionSettings,
    GenerationSettings,
    KeepDraftsSettings,
    ModelSettings,
    PaperSettings,
    ServerLimits,
    SimilaritySettings,
)
from tests.examples import examples

pytestmark = pytest.mark.filterwarnings("ignore::rain_llm.BlindJudgeWarning")  # of a few short texts

MODELS: list[type[BaseModel]] = [
    ServerLimits,
    ModelSettings,
    GenerationSettings,
    SimilaritySettings,
    AdditionSettings,
    KeepDraftsSettings,
    PaperSettings,
    Calibration,
    Criterion,
]


def numbers() -> Iterator[tuple[type[BaseModel], str, dict[str, Any]]]:
    """Yield each number that a setting may be, with the part of the schema about it."""
    for model in MODELS:
        for name, field in model.model_json_schema()["properties"].items():
            for kind in (field, *field.get("anyOf", ())):
                if kind.get("type") in ("integer", "number"):
                    yield model, name, kind


NUMBERS = list(numbers())


def test_every_number_has_a_bound_on_both_sides() -> None:
    assert len(NUMBERS) > 35
    for model, name, kind in NUMBERS:
        assert {"minimum", "exclusiveMinimum"} & set(kind), (model, name)
        assert {"maximum", "exclusiveMaximum"} & set(kind), (model, name)


WRONG = [10**400, -(10**400), 1e308 * 10, math.nan, "1e999", True, False]


@pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value)[:9])
def test_what_is_no_number_within_the_bounds_is_refused(value: Any) -> None:
    for model, name, _ in NUMBERS:
        with pytest.raises(ValidationError, match=name):
            model.model_validate({name: value})
    with pytest.raises(ValidationError, match="token_set_lengths"):
        KeepDraftsSettings(token_set_lengths=(1, value))


def least(kind: dict[str, Any]) -> float:
    """Return the least value of a number, or the next one above its bound."""
    if "minimum" in kind:
        return kind["minimum"]  # type: ignore[no-any-return]
    return math.nextafter(kind["exclusiveMinimum"], math.inf)


def most(kind: dict[str, Any]) -> float:
    """Return the greatest value of a number, or the next one below its bound."""
    if "maximum" in kind:
        return kind["maximum"]  # type: ignore[no-any-return]
    bound = kind["exclusiveMaximum"]
    return bound - 1 if kind["type"] == "integer" else math.nextafter(bound, -math.inf)


BASES = {
    "default": RainSettings(),
    "paper": RainSettings.preset("paper").updated(search={"similarity": None}),
}
GOOD = Criterion(name="good", labels=(("good", "bad"),), frames=("{text} is",))
EXTREMES = [
    (model, name, value)
    for model, name, kind in NUMBERS
    if model
    in (GenerationSettings, KeepDraftsSettings, PaperSettings, AdditionSettings, Criterion, Calibration)
    for value in (least(kind), most(kind))
    if not (model is Criterion and name in ("target", "threshold", "iterations"))
]


def with_changes(base: RainSettings, changes: list[tuple[type[BaseModel], str, Any]]) -> RainSettings:
    parts: dict[str, dict[str, Any]] = {
        "generation": {"max_new_tokens": 6},
        "search": {"max_model_tokens": 400},
    }
    criterion: dict[str, Any] = {}
    for model, name, value in changes:
        if model in (AdditionSettings, KeepDraftsSettings, PaperSettings):
            if model is AdditionSettings and isinstance(base.search, PaperSettings):
                parts["search"]["addition"] = {name: value}
            elif isinstance(base.search, model):
                parts["search"][name] = value
        elif model is Calibration:
            criterion["calibration"] = {name: value}
        elif model is Criterion:
            criterion[name] = value
        else:
            parts["generation"][name] = value
    parts["evaluation"] = {
        "criteria": [{**GOOD.model_dump(), **criterion}],
        "style": "labels",
        "examples": False,
    }
    return base.updated(**parts)


def babble(text: str) -> dict[str, float]:
    return {" la": 3.0, " le": 2.0, ".": 1.0} if len(text) < 40 else {END: 1.0}


def opinion(question: str, label: str) -> float:
    return (question.count("la") - question.count("le") + len(question) % 7) * (label == " good")


def run(changed: RainSettings) -> None:
    rain = Rain(changed, model=ScriptedModel(babble, opinion, context_length=1 << 21))
    result = rain.generate("Oh")
    assert result.text or result.verdict is None or not result.accepted
    scores = [result.verdict.score] if result.verdict else []
    assert all(math.isfinite(score) for score in scores)


@pytest.mark.parametrize("base", BASES)
def test_each_extreme_runs(base: str) -> None:
    for change in EXTREMES:
        run(with_changes(BASES[base], [change]))


@settings(max_examples=examples(40), deadline=None, derandomize=True)
@given(base=st.sampled_from([*BASES]), changes=st.lists(st.sampled_from(EXTREMES), max_size=6))
def test_extremes_run_together(base: str, changes: list[tuple[type[BaseModel], str, Any]]) -> None:
    run(with_changes(BASES[base], changes))
