"""No error holds a key, wherever it was put: constructors, policy files, and what a server repeats."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.llms.rain import RainLLM as IndexRain
from pydantic import BaseModel, ValidationError

from langchain_rain import ChatRain
from langchain_rain import RainLLM as TextRain
from rain_llm import (
    Calibration,
    Channel,
    Choice,
    Criterion,
    Example,
    Message,
    RainSettings,
    SettingsError,
    Task,
    Tool,
)
from rain_llm.bounds import MISTAKES
from rain_llm.criteria.criterion import Guard
from rain_llm.redaction import HIDDEN, shown, shown_name
from rain_llm.settings import (
    AdditionSettings,
    EvaluationSettings,
    GenerationSettings,
    KeepDraftsSettings,
    ModelSettings,
    PaperSettings,
    PolicyError,
    ServerLimits,
    SimilaritySettings,
)
from rain_llm.task import check_task, task_of
from tests.examples import examples

KEY = "sk-do-not-TELL-123456789"
MODELS: list[type[BaseModel]] = [
    RainSettings,
    ModelSettings,
    EvaluationSettings,
    GenerationSettings,
    KeepDraftsSettings,
    PaperSettings,
    SimilaritySettings,
    AdditionSettings,
    ServerLimits,
    Criterion,
    Calibration,
    Choice,
    Channel,
    Guard,
    Example,
    ChatRain,
    TextRain,
    IndexRain,
]


def renderings(error: BaseException | None) -> Iterator[str]:
    """Everything that can be read of an error, its chain included."""
    while error is not None:
        yield from (str(error), repr(error), repr(error.args), repr(vars(error)))
        yield "".join(traceback.format_exception(error))
        if isinstance(error, ValidationError):
            yield repr(error.errors())
            yield error.json(include_context=False)
        error = error.__cause__ or error.__context__


def refused(make: Callable[[], object], key: str = KEY) -> str:
    """Return what a refusal says, if it is one; and see that it holds no key."""
    try:
        make()
    except (ValueError, TypeError) as error:
        for rendering in renderings(error):
            assert key not in rendering
        return str(error)
    return ""


# --- constructors -----------------------------------------------------------------------------------

WRONG: list[dict[str, Any]] = [
    {"api_key": KEY, "modle": "x"},
    {"api_key": KEY, "base_url": "localhost"},
    {"api_key": KEY, "base_url": KEY},
    {"api_key": KEY, "base_url": "http://a", "max_tokens": "x"},
    {"api_key": KEY, "base_url": "http://a", "max_tokens": True},
    {"api_key": [KEY], "base_url": "http://a"},
    {"api_key": {"is": KEY}, "base_url": "http://a"},
    {"settings": {"model": {"dtype": KEY}}},
    {"settings": {"model": {KEY: 1}}},
    {"settings": {"evaluation": {"judge": {"api_key": KEY}}}},
    {"metadata": KEY, "callbacks": KEY, "tags": KEY, "cache": KEY, "rain": KEY},
    {KEY: KEY},
]


@pytest.mark.parametrize("model", [ChatRain, TextRain, IndexRain])
@pytest.mark.parametrize("arguments", WRONG, ids=lambda arguments: ", ".join(arguments)[:30])
def test_no_constructor_of_a_wrapper_tells_a_key(model: type[BaseModel], arguments: dict[str, Any]) -> None:
    class Holder(BaseModel):
        llm: model  # type: ignore[valid-type]

    assert refused(lambda: model(**arguments))
    assert refused(lambda: model.model_validate(arguments))
    assert refused(lambda: model.model_validate_json(json.dumps(arguments)))
    assert refused(lambda: Holder(llm=arguments))


@pytest.mark.parametrize("model", MODELS)
def test_neither_broken_json_nor_an_assignment_nor_a_text_tells_a_key(model: type[BaseModel]) -> None:
    assert "Invalid JSON" in refused(lambda: model.model_validate_json(f'{{"api_key": "{KEY}"'))
    assert refused(lambda: model.model_validate(KEY))
    assert refused(lambda: model.model_validate([KEY]))


def test_what_is_frozen_does_not_tell_what_it_was_to_be() -> None:
    assert "frozen" in refused(lambda: setattr(ChatRain(), "api_key", KEY))
    assert "frozen" in refused(lambda: setattr(RainSettings(), "refusal", KEY))


VALUES = st.recursive(
    st.just(KEY) | st.integers() | st.floats() | st.booleans() | st.none() | st.sampled_from(["a", "auto"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.just(KEY) | st.just("name"), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=examples(150), deadline=None, derandomize=True)
@given(data=st.data())
def test_a_key_at_any_place_of_any_constructor_is_told_by_no_error(data: st.DataObject) -> None:
    model = data.draw(st.sampled_from(MODELS))
    names = st.sampled_from([*model.model_fields]) | st.sampled_from([KEY, "modle", "max_new_tokns"])
    arguments = data.draw(st.dictionaries(names, VALUES, min_size=1, max_size=3))
    refused(lambda: model(**arguments))
    refused(lambda: RainSettings().updated(**arguments))
    refused(lambda: RainSettings(model=arguments, evaluation={"judge": arguments}))


# --- files ------------------------------------------------------------------------------------------

LINES = [
    "search: {{width: 0}}  # {key}",
    "{key}: 1",
    "search:\n  {key}: 1",
    "search:\n  {key}: {{{key}: {key}}}",
    "model: {{dtype: {key}}}",
    "model: {key}:8000\nsearch: {{width: {key}}}",
    "model:\n  name: a\n  {key}:",
    "on_unsafe: '{key}'",
    "on_unsafe: &{key} no\nrefusal: *{key}x",
    "refusal: *{key}",
    "refusal: !{key} a",
    "%{key} 1\n---\nsearch: 0",
    "refusal: |\n  {key}\n  more\nsearch: {{width: [{key}]}}",
    "refusal: >-\n  {key}\nsearch: {{<<: {{width: {key}}}, widht: 1}}",
    "a: &a {{api_key: {key}}}\nmodel: {{<<: *a}}\nsearch: *a",
    "evaluation: {{criteria: [{{name: {key}, labels: [[a, a]]}}]}}",
    "evaluation: {{criteria: [{{name: {key}, labels: [[a, b]]}}, {{name: {key}, labels: [[a, b]]}}]}}",
    "evaluation: {{criteria: [{{name: a, labels: [[a, b]], frames: ['{key} {{text']}}]}}",
    "evaluation: {{criteria: [{{name: a, labels: [[a, b]], frames: ['{{{key}}}']}}]}}",
    "evaluation: {{criteria: [{{name: a, labels: [[{key}, {key}]]}}]}}",
    "evaluation: {{criteria: {{extends: {key}}}}}",
    "evaluation: {{judge: {key}, style: {key}}}",
    "preset: {key}",
    "model: {{api_key: '{key}",
    'model: {{api_key: "{key}\\z"}}',
    "{{{key}: {key}, {key}: {key}}}",
    "? [{key}]\n: 1",
]


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("name", ["policy.yaml", "policy.json"])
def test_no_mistake_in_a_file_tells_a_key(tmp_path: Path, line: str, name: str) -> None:
    file = tmp_path / name
    file.write_text(line.format(key=KEY) + "\n", encoding="utf-8")
    assert str(file) in refused(lambda: RainSettings.from_file(file))


def test_a_file_that_is_no_text_is_not_told(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_bytes(f"model: {{api_key: {KEY}}}".encode() + b"\xff")
    assert "UTF-8" in refused(lambda: RainSettings.from_file(file))


SHAPES = st.sampled_from(["sk-{}", "hf_{}", "{}=", "Bearer {}", "{}.{}", "AKIA{}", "a-{}-b"])
KEYS = st.builds(
    lambda shape, text: shape.format(text, text),
    SHAPES,
    st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", min_size=16, max_size=40),
)
FIELDS = ["model", "search", "evaluation", "judge", "criteria", "width", "dtype", "widht", "on_unsafe"]


@settings(max_examples=examples(100), deadline=None, derandomize=True)
@given(key=KEYS, data=st.data())
def test_a_key_at_any_place_of_any_file_is_told_by_no_error(
    tmp_path_factory: pytest.TempPathFactory, key: str, data: st.DataObject
) -> None:
    places = st.recursive(
        st.just(key) | st.sampled_from([0, "a", None, True]),
        lambda inner: (
            st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from([*FIELDS, key]), inner, max_size=3)
        ),
        max_leaves=6,
    )
    policy = data.draw(st.dictionaries(st.sampled_from([*FIELDS, key]), places, min_size=1, max_size=3))
    flow = data.draw(st.sampled_from([True, False, None]))
    text = yaml.safe_dump(policy, default_flow_style=flow, width=data.draw(st.sampled_from([20, 200])))
    if data.draw(st.booleans()):
        lines = text.splitlines()
        lines[data.draw(st.integers(0, len(lines) - 1))] += data.draw(
            st.sampled_from([f"  # {key}", f" *{key}", "]"])
        )
        text = "\n".join(lines)
    file = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    file.write_text(text, encoding="utf-8")
    refused(lambda: RainSettings.from_file(file), key)


@pytest.mark.parametrize("key", ["hunter", "correct_horse_battery", "12345678901"])
@pytest.mark.parametrize("name", ["policy.yaml", "policy.json"])
@pytest.mark.parametrize(
    "place",
    [
        *("model: {{dtype: {key}}}", "model: {{{key}: 1}}", "model: {{nam: {key}}}", "model: {{x: {key}}}"),
        *("evaluation: {{judge: {{{key}: {key}}}}}", "model: {{limits: {{{key}: {key}}}}}"),
    ],
)
def test_where_keys_belong_no_word_and_no_number_is_shown(
    tmp_path: Path, place: str, key: str, name: str
) -> None:
    file = tmp_path / name
    data = yaml.safe_load(place.format(key=key))
    file.write_text(json.dumps(data) if name.endswith("json") else place.format(key=key), encoding="utf-8")
    with pytest.raises(PolicyError) as caught:
        RainSettings.from_file(file)
    assert key not in str(caught.value) + "".join(mistake.source for mistake in caught.value.mistakes)
    assert refused(lambda: RainSettings(**data), key)


# --- what is shown all the same ---------------------------------------------------------------------


def test_numbers_and_names_are_shown() -> None:
    with pytest.raises(SettingsError, match=r"unknown setting 'max_new_tokns'.*'max_new_tokens'.*\(got 12\)"):
        RainSettings().updated(generation={"max_new_tokns": 12})
    with pytest.raises(SettingsError) as caught:
        RainSettings().updated(generation={"max_new_tokns": "twelve"})
    assert "got" not in str(caught.value)
    assert [shown(value) for value in (3, -0.5, True, None, "refuze", "int4", "Sk1", 10**12, [1])] == [
        *(3, -0.5, True, None, "refuze", "int4", HIDDEN, HIDDEN, HIDDEN)
    ]
    assert shown_name("maxTokens", ["max_tokens"]) == "maxTokens"
    assert shown_name("api_key-abc12345", ["api_key"]) == HIDDEN


def test_a_line_shows_names_and_numbers(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(
        "evaluation: {style: choise, judge: {dtype: b16, name: a/b}, hot: 'x y', swap: no} # why\n"
    )
    with pytest.raises(PolicyError) as caught:
        RainSettings.from_file(file)
    (line,) = {mistake.source for mistake in caught.value.mistakes}
    assert line == "evaluation: {style: choise, judge: {dtype: ***, name: ***}, ***: ** **, swap: no}"


def test_an_error_lists_so_many_mistakes_and_counts_the_others(tmp_path: Path) -> None:
    many = {f"k{i}": 0 for i in range(3000)}
    with pytest.raises(ValidationError) as raised:
        RainSettings.model_validate(many)
    assert raised.value.error_count() == MISTAKES + 1
    assert raised.value.errors()[-1]["msg"] == f"and {3000 - MISTAKES:,} more"
    with pytest.raises(ValidationError, match=f"and {6000 - MISTAKES:,} more"):
        RainSettings.model_validate({"model": many, "search": many})
    file = tmp_path / "policy.yaml"
    file.write_text(yaml.safe_dump(many), encoding="utf-8")
    with pytest.raises(PolicyError) as caught:
        RainSettings.from_file(file)
    *told, last = str(caught.value).splitlines()
    assert len(told) == MISTAKES
    assert last.endswith(f"and {3000 - MISTAKES:,} more")


# --- prompts ----------------------------------------------------------------------------------------

PROMPTS: list[Any] = [
    {"role": KEY},
    [KEY],
    [{"role": KEY, "content": "x"}],
    [(KEY, "x")],
    [Message(KEY, "x")],  # type: ignore[arg-type]
    [{"role": "user", "content": [{"type": KEY}]}],
    [{"role": "assistant", "tool_calls": [KEY]}],
    Task("x", schema=KEY),
    Task("x", tools=[Tool("a", parameters={"type": KEY})]),
    Task("x", tools=[Tool("a", parameters={"properties": KEY})]),
    Task("x", tools=[Tool("a", parameters=KEY)]),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("prompt", PROMPTS, ids=str)
def test_no_error_about_a_prompt_tells_a_key(prompt: Any) -> None:
    assert refused(lambda: check_task(task_of(prompt), RainSettings(), guarded=True))
