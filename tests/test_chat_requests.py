"""What a chat asks for in OpenAI's form, how its result is written in that form, and its parameters."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel

from rain_llm import Message, PromptError, Rain, RainSettings, SettingsError, Task, Tool
from rain_llm.chat import (
    CALL,
    Parameters,
    about,
    document_of,
    finish_reason,
    format_of,
    message_of,
    same_model,
    task_of_chat,
    tools_of,
    usage_of,
)
from rain_llm.models.scripted import END, ScriptedModel
from rain_llm.types import RainResult

PARAMETERS = {"type": "object", "properties": {"word": {"type": "string"}}}
LOOK = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": PARAMETERS}}


class Word(BaseModel):
    word: str


def test_a_chat_request_is_a_task():
    messages = [Message("user", "Look.")]
    asked = {"tools": [LOOK], "tool_choice": "required", "parallel_tool_calls": False}
    assert task_of_chat(messages, asked, ["A passage."], "What?") == Task(
        messages,
        context=["A passage."],
        question="What?",
        tools=[Tool("look", "Look.", PARAMETERS)],
        tool_choice="any",
        parallel_calls=False,
    )
    assert task_of_chat(messages, {}) == Task(messages, tools=[])


@pytest.mark.parametrize(
    "tool",
    [
        LOOK,
        LOOK["function"],
        Tool("look", "Look.", PARAMETERS),
        {"name": "look", "description": "Look.", "input_schema": PARAMETERS},  # Anthropic
        {"name": "look", "description": "Look.", "inputSchema": PARAMETERS},  # MCP
        {
            "toolSpec": {"name": "look", "description": "Look.", "inputSchema": {"json": PARAMETERS}}
        },  # Bedrock
        {"title": "look", "description": "Look.", **PARAMETERS},
    ],
)
def test_tools_of_every_api_are_one(tool: Any):
    assert tools_of([tool]) == [Tool("look", "Look.", PARAMETERS)]


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        ("look", "a tool is a str"),
        ({"type": "web_search"}, "not a tool of the type 'web_search'"),
        ({"type": "custom", "name": "x"}, "not a tool of the type 'custom'"),
        ({"type": "object"}, "a tool has no name"),
    ],
)
def test_what_cannot_be_called_is_no_tool(tool: Any, said: str):
    with pytest.raises(PromptError, match=said):
        tools_of([tool])


@pytest.mark.parametrize(
    ("given", "schema"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_object", "schema": PARAMETERS}, PARAMETERS),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": PARAMETERS}}, PARAMETERS),
        ({"type": "json_schema", "schema": PARAMETERS}, PARAMETERS),
    ],
)
def test_formats(given: Any, schema: Any):
    assert format_of(given) == schema


def test_a_class_is_a_format():
    found = format_of(Word)
    assert found is not None and set(found["properties"]) == {"word"}


@pytest.mark.parametrize("given", [{"type": "grammar"}, {"type": "json_schema"}, "json", 3, {}])
def test_other_formats_are_errors(given: Any):
    with pytest.raises(PromptError, match=r"response_format, a .*, asks for nothing known"):
        format_of(given)


@pytest.mark.parametrize("spec", [{}, {"inputSchema": None}, {"inputSchema": {}}, {"inputSchema": "x"}])
def test_a_wrapper_without_a_schema_is_no_document(spec: Any):
    with pytest.raises(PromptError, match="schema"):
        document_of({"toolSpec": {"name": "look", **spec}})


# --- results ------------------------------------------------------------------------------------------


def written(text: str, good: bool, task: Any = "Oh", **generation: Any) -> RainResult:
    """Return what a model that says one text comes to, where the judge finds it good or not."""

    def says(before: str) -> dict[str, float]:
        at = next((n for n in range(len(text), 0, -1) if before.endswith(text[:n])), 0)
        return {text[at]: 1.0} if at < len(text) else {END: 1.0}

    model = ScriptedModel(
        says, lambda question, label: (label.strip() in ("good", "safe")) * (9.0 if good else -9.0)
    )
    labels = {"labels": [("good", "bad")], "calibration": None}
    settings = RainSettings(
        generation={"max_new_tokens": 200, **generation},
        evaluation={
            "criteria": [{"name": "fine", "frames": ["{answer} is"], **labels}],
            "actions": [{"name": "safe", "frames": ["{answer} is"], **labels}],
        },
    )
    return Rain(settings, model=model).generate(task)


def test_an_answer_in_openais_form():
    result = written(" Yes.", good=True)
    assert finish_reason(result) == "stop"
    assert message_of(result) == {"role": "assistant", "content": " Yes.", "refusal": None}
    usage = usage_of(result.usage)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] == result.usage.output_tokens == 5
    said = about(result)
    assert said["accepted"] and said["verdict"]["passed"] and said["stop_reason"] == "eos"
    json.dumps(said)  # plain data
    assert "sentences" not in said


def test_a_refusal_stands_in_its_own_field():
    result = written(" No.", good=False)
    assert finish_reason(result) == "content_filter"
    message = message_of(result)
    assert message["content"] is None and message["refusal"] == RainSettings().refusal
    assert not about(result)["accepted"]


def test_a_limit_is_the_finish_reason_length():
    assert finish_reason(written(" Yes and so on", good=True, max_new_tokens=4)) == "length"


def test_calls_in_openais_form():
    task = task_of_chat([Message("user", "Look.")], {"tools": [LOOK], "tool_choice": "look"})
    result = written('<tool_call>\n{"name":"look","arguments":{"word":"ü"}}\n</tool_call>', True, task)
    assert finish_reason(result) == "tool_calls"
    message = message_of(result)
    (call,) = message["tool_calls"]
    assert message["content"] is None and message["refusal"] is None
    assert call["type"] == "function" and call["id"]
    assert call["function"]["name"] == "look"
    assert call["function"]["arguments"] == '{"word": "ü"}'


# --- parameters ---------------------------------------------------------------------------------------

TAKEN = Parameters("Model", others={"odd": ((1,), "leave it out")})


def test_every_parameter_has_its_place():
    values: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.5,
        "top_k": 5,
        "max_tokens": 5,
        "stop": ("x",),
        "seed": 5,
    }
    values["timeout"] = 5.0
    assert values.keys() == CALL.keys()
    settings = TAKEN.changed(RainSettings(), values)
    for name, place in CALL.items():
        section, field = place
        assert getattr(getattr(settings, section), field) == values[name]
    retried = TAKEN.changed(RainSettings(), {"max_retries": 0, "base_url": "http://a"})
    assert (retried.model.limits.attempts, retried.model.base_url) == (1, ("http://a",))


def test_parameters_under_other_names():
    assert TAKEN.understood({"max_completion_tokens": 3, "user": "me", "n": 1, "odd": 1}, CALL) == {
        "max_tokens": 3
    }
    assert TAKEN.understood({"unheard_of": 1}, CALL) == {"unheard_of": 1}
    assert TAKEN.understood({"max_tokens": 3, "num_predict": 3}, CALL) == {"max_tokens": 3}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"n": 2}, "n asks for what Model does not do: a call has one answer"),
        ({"odd": 2}, "odd asks for what Model does not do: leave it out"),
        ({"max_tokens": 3, "num_predict": 4}, "num_predict and max_tokens are the same parameter of Model"),
    ],
)
def test_what_there_is_not_is_an_error(given: Any, said: str):
    with pytest.raises(SettingsError, match=said):
        TAKEN.understood(given, CALL)


def test_a_value_out_of_bounds_names_the_parameter_and_its_place():
    with pytest.raises(SettingsError, match=r"^max_tokens \(generation\.max_new_tokens\): .*greater than"):
        TAKEN.changed(RainSettings(), {"max_tokens": 0})
    with pytest.raises(SettingsError, match="max_retries must be a whole number from 0 to 99"):
        TAKEN.changed(RainSettings(), {"max_retries": 100})


def test_settings_of_one_call_keep_the_model():
    own = RainSettings(model="some/folder")
    assert same_model(RainSettings(), own).model.name == "some/folder"
    assert same_model(RainSettings(), own).generation.seed is None
    with pytest.raises(SettingsError, match="settings must be RainSettings, not dict"):
        same_model({}, own)
