"""Plain generation: the same model unguarded, and the same rules for where an answer ends."""

from __future__ import annotations

from typing import Any

import pytest

from rain_llm import Criterion, Rain, RainSettings, StopReason
from rain_llm.models.scripted import END, ScriptedModel, script
from rain_llm.requests import Sample, Score

COUNTING = {f" {i}": {f" {i + 1}": 1.0} for i in range(60)} | {"from": {" 0": 1.0}, " 60": {END: 1.0}}
"""Counts from 0 to 60, then ends."""

GOOD = Criterion(name="good", labels=(("good", "bad"),), frames=("Text: {answer}\nIt is",), calibration=None)


def counting(**generation: Any) -> tuple[Rain, ScriptedModel]:
    model = ScriptedModel(script(COUNTING), lambda question, label: 1.0 if label == " good" else 0.0)
    drawing = {"max_new_tokens": 100, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "stop": ()}
    settings = RainSettings().updated(
        generation=drawing | generation,
        evaluation={"criteria": [GOOD], "style": "labels", "mode": "soft", "examples": False},
    )
    return Rain(settings, model=model), model


def counted(until: int) -> str:
    return "".join(f" {i}" for i in range(until + 1))


def test_it_ends_where_the_model_ends():
    rain, _ = counting()
    result = rain.plain("Count from")
    assert result.text == counted(60)
    assert result.stop_reason is StopReason.EOS
    assert result.usage.output_tokens == 61


@pytest.mark.parametrize("limit", [1, 15, 16, 17, 33])
def test_it_ends_at_the_length_that_was_allowed(limit: int):
    rain, model = counting(max_new_tokens=limit)
    result = rain.plain("Count from")
    assert result.text == counted(limit - 1)
    assert result.stop_reason is StopReason.LENGTH
    assert result.usage.output_tokens == limit
    assert sum(request.max_tokens for request in model.requests if isinstance(request, Sample)) == limit


@pytest.mark.parametrize(
    ("stop", "until"), [(" 20", 19), (" 15 16", 14), ("0", -1), ((" 40", " 31"), 30), (" 60", 59)]
)
def test_it_ends_before_a_stop_string(stop: Any, until: int):
    rain, _ = counting(stop=stop)
    result = rain.plain("Count from")
    assert result.text.strip() == counted(until).strip()
    assert result.stop_reason is StopReason.STOP
    shown = ""
    for step in rain.plain_stream("Count from"):
        shown += step.text
        assert result.text.startswith(shown)
    assert shown == result.text


def test_nothing_is_judged_unless_it_is_asked_for():
    rain, model = counting()
    result = rain.plain("Count from")
    assert result.verdict is None
    assert not result.accepted
    assert not any(step.accepted for step in rain.plain_stream("Count from"))
    assert result.usage.evaluations == result.usage.evaluation_tokens == result.usage.iterations == 0
    assert not any(isinstance(request, Score) for request in model.requests)


def test_the_finished_text_can_be_judged():
    rain, model = counting()
    result = rain.plain("Count from", judge=True)
    assert result.text == counted(60)
    assert result.verdict is not None
    assert result.verdict.passed
    assert result.usage.evaluations == 1
    (question,) = [request for request in model.requests if isinstance(request, Score)]
    assert model.decode(question.prefix) == f"Text: {counted(60).strip()}\nIt is"


def test_the_same_seed_gives_the_same_text_in_pieces_and_whole():
    model = ScriptedModel(script({"": {" la": 1.0, " li": 1.0, " lu": 1.0}}))
    settings = RainSettings().updated(generation={"max_new_tokens": 50, "seed": 5})
    rain = Rain(settings, model=model)
    result = rain.plain("Oh")
    assert rain.plain("Oh") == result
    assert "".join(step.text for step in rain.plain_stream("Oh")) == result.text
    other = rain.plain("Oh", settings=settings.updated(generation={"seed": 6}))
    assert other.text != result.text


def test_the_settings_of_the_draw_are_the_models():
    model = ScriptedModel(script({"": {" la": 1.0, " li": 1.0}}))
    drawing = {"temperature": 0.7, "top_k": 9, "top_p": 0.8, "max_new_tokens": 3}
    Rain(RainSettings().updated(generation=drawing), model=model).plain("Oh")
    (request,) = model.requests
    assert isinstance(request, Sample)
    assert (request.temperature, request.top_k, request.top_p, request.n) == (0.7, 9, 0.8, 1)
