"""Schemas in whatever form they come: held to, or refused before any model runs."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping
from typing import Any, Literal

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel
from typing_extensions import TypedDict

from rain_llm import Criterion, Message, PromptError, Rain, RainSettings, Task, Tool
from rain_llm.models.scripted import END, ScriptedModel
from rain_llm.schemas import schema_of
from tests.examples import examples

CRITERION = Criterion(name="kind", frames=["{answer} is"], labels=[("good", "bad")], calibration=None)
RAIN_SETTINGS = RainSettings(evaluation={"criteria": [CRITERION], "actions": []}).updated(
    search={"iterations": 1}, generation={"max_new_tokens": 4}
)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Node(BaseModel):
    v: int
    next: Node | None = None


class Row(TypedDict):
    v: int


@dataclasses.dataclass
class Pair:
    v: int
    rest: list[Pair]


SHEET = {"type": "object", "properties": {"v": {"type": "integer"}}, "required": ["v"]}
WRAPPED: dict[str, Any] = {
    "OpenAI's schema": {"name": "sheet", "strict": True, "schema": SHEET},
    "OpenAI's response format": {
        "type": "json_schema",
        "json_schema": {"name": "sheet", "strict": True, "schema": SHEET},
    },
    "OpenAI's newer one": {"type": "json_schema", "name": "sheet", "schema": SHEET},
    "OpenAI's tool": {"type": "function", "function": {"name": "sheet", "parameters": SHEET}},
    "OpenAI's newer tool": {"type": "function", "name": "sheet", "parameters": SHEET, "strict": True},
    "Anthropic's": {"name": "sheet", "description": "A sheet.", "input_schema": SHEET},
    "MCP's": {"name": "sheet", "title": "Sheet", "inputSchema": SHEET, "annotations": {}},
}


def opinion(question: str, label: str) -> float:
    """Find everything good."""
    return -0.1 if label == " good" else -4.0


def answer(*words: str, **asked: Any) -> Any:
    """Return what leaves of an answer that would rather say the first of some documents."""
    weights = {word: 9.0**-place for place, word in enumerate(words)}
    model = ScriptedModel(lambda text: {END: 1.0} if text.endswith(words) else weights, opinion)
    task = Task([Message("user", "Do it:")], **asked)
    return json.loads(Rain(RAIN_SETTINGS, model=model).generate(task).text)


def called(*arguments: str, tool: Tool) -> Mapping[str, Any]:
    """Return the arguments that leave of a call that would rather have the first of some."""
    weights = {
        f'{{"name":"{tool.name}","arguments":{text}}}': 9.0**-place for place, text in enumerate(arguments)
    }
    model = ScriptedModel(lambda text: {END: 1.0} if text.endswith("</tool_call>") else weights, opinion)
    settings = RAIN_SETTINGS.updated(generation={"max_new_tokens": 24})
    task = Task([Message("user", "Do it")], tools=[tool], tool_choice="any")
    (call,) = Rain(settings, model=model).generate(task).tool_calls
    return call.arguments


# --- what is held to ---


@pytest.mark.parametrize("schema", WRAPPED.values(), ids=WRAPPED)
def test_a_schema_in_a_wrapper_is_the_schema_within(schema: Any):
    assert schema_of(schema) == SHEET
    assert answer('{"v":"x"}', '"x"', '{"v":1}', schema=schema) == {"v": 1}
    assert called('{"v":"x"}', "{}", '{"v":1}', tool=Tool("sheet", "", schema)) == {"v": 1}


@pytest.mark.parametrize(
    ("kind", "bad", "good"),
    [
        (Colour, '"green"', '"red"'),
        (Literal["red", 3], '"blue"', "3"),
        (Node, '{"v":1,"next":"x"}', '{"v":1,"next":{"v":2,"next":null}}'),
        (Row, '{"v":"x"}', '{"v":1}'),
        (Pair, '{"v":1,"rest":[1]}', '{"v":1,"rest":[{"v":2,"rest":[]}]}'),
        (list[Node], '[{"v":"x"}]', '[{"v":1,"next":null}]'),
        (dict[str, int], '{"a":"x"}', '{"a":1}'),
        (int | None, '"x"', "null"),
    ],
)
def test_what_pydantic_has_a_schema_for_is_a_schema(kind: Any, bad: str, good: str):
    assert answer(bad, good, schema=kind) == json.loads(good)


def test_a_class_may_be_the_parameters_of_a_tool():
    assert called('{"v":1,"next":"x"}', '{"v":1,"next":null}', tool=Tool("add", "", Node)) == {  # type: ignore[arg-type]
        "v": 1,
        "next": None,
    }


@pytest.mark.parametrize(
    ("schema", "bad", "good"),
    [
        ({"properties": {"v": {"type": "integer"}}}, '"x"', '{"v":1}'),
        ({"required": ["v"], "additionalProperties": {"type": "integer"}}, "3", '{"v":1}'),
        ({"items": {"type": "integer"}, "minItems": 1}, '{"v":1}', "[1]"),
        ({"minLength": 2}, "3", '"ab"'),
        ({"minimum": 2}, '"ab"', "3"),
        ({"properties": {"v": {"properties": {"w": {"minimum": 1}}}}}, '{"v":{"w":"x"}}', '{"v":{"w":1}}'),
        ({"$defs": {"V": {"minimum": 2}}, "items": {"$ref": "#/$defs/V"}}, '["x"]', "[3]"),
    ],
)
def test_a_keyword_of_one_type_implies_the_type(schema: dict[str, Any], bad: str, good: str):
    assert answer(bad, good, schema=schema) == json.loads(good)


@pytest.mark.parametrize(
    "schema",
    [
        {"not": {"properties": {"v": {"type": "integer"}}}},
        {"oneOf": [{"properties": {"v": {"type": "integer"}}}, {"type": "string"}]},
        {"enum": [{"properties": {}}, "x"]},
        {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/V"}], "$defs": {"V": {"type": "null"}}},
        {},
        {"description": "Anything."},
    ],
)
def test_no_type_is_written_where_that_would_change_what_is_meant(schema: dict[str, Any]):
    assert schema_of(schema) == schema


@pytest.mark.parametrize(
    "beside",
    [
        {"oneOf": [{"type": "integer"}, {"type": "string"}]},
        {"not": {"type": "integer"}},
        {"oneOf": [{"$ref": "#/$defs/A"}, {"type": "integer"}]},
    ],
)
def test_a_type_is_implied_beside_what_is_negated(beside: dict[str, Any]):
    list_of = {"items": {"type": "integer"}}
    schema = {
        "type": "object",
        "properties": {"p": list_of, "q": beside},
        "required": ["p", "q"],
        "$defs": {"A": {"minLength": 2}},
    }
    assert answer('{"p":"x","q":"ab"}', '{"p":[2],"q":"ab"}', schema=schema) == {"p": [2], "q": "ab"}
    kept = {"minLength": 2} if "$ref" in str(beside) else {"type": "string", "minLength": 2}
    assert schema_of(schema)["$defs"] == {"A": kept}


def test_nothing_is_narrowed_that_a_negated_part_refers_to():
    schema = {
        "type": "object",
        "properties": {"p": {"minLength": 2}, "q": {"not": {"$ref": "#/properties/p"}}},
    }
    assert schema_of(schema) == schema


def test_names_of_properties_are_no_keywords():
    names = ("propertis", "schema", "foo", "parameters", "minimun")
    schema = {"type": "object", "properties": {name: {"type": "integer"} for name in names}}
    assert schema_of(schema) == schema


def test_what_tools_and_openapi_add_to_a_schema_is_left():
    more = {"x-order": 1, "nullable": True, "example": "a", "discriminator": {}, "enumNames": ["A"]}
    schema = {"type": "string", **more}
    assert schema_of(schema) == schema
    assert schema_of(schema_of({"type": "object", "properties": {"a": schema}}))


# --- what is refused ---

REFUSED: dict[str, tuple[Any, str]] = {
    "no keyword": ({"foo": 1}, "'foo' is not a keyword"),
    "names for a schema": ({"city": "string"}, "'city' is not a keyword"),
    "names with schemas": ({"city": {"type": "string"}}, "'city' is not a keyword"),
    "no keyword within": ({"type": "object", "properties": {"a": {"foo": 1}}}, "'foo' is not a keyword"),
    "a wrapper without its schema": ({"type": "json_schema", "json_schema": {"name": "a"}}, "'name'"),
    "a wrapper beside a schema": ({"type": "object", "schema": SHEET}, "beside keywords"),
    "a misspelt keyword": ({"type": "object", "propertis": {}}, "did you mean 'properties'"),
    "a misspelt one within": ({"items": {"type": "string", "maxLenght": 3}}, "did you mean 'maxLength'"),
    "as Python spells it": ({"any_of": [SHEET], "type": "object"}, "did you mean 'anyOf'"),
    "text": ("string", "'string' is not a schema"),
    "text that is Python": ("__import__('os').abort()", "is not a schema"),
    "a number": (5, "5 is not a schema"),
    "an object": (Node(v=1), "is not a schema"),
    "a member": (Colour.RED, "is not a schema"),
    "a list": ([SHEET], "is not a schema"),
    "too large": ({"enum": ["x" * 300_000]}, "more than 262144"),
    "too many unknown words": (
        {"type": "object"} | {f"w{i}": 1 for i in range(300)},
        "more than 256 unknown keywords",
    ),
    "no JSON": ({"default": {1, 2}}, "cannot be written as JSON"),
}


@pytest.mark.parametrize(("schema", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_schema_is_refused_before_any_model_runs(schema: Any, said: str):
    model = ScriptedModel(lambda _: {END: 1.0})
    chat = [Message("user", "Do it")]
    for task in (Task(chat, schema=schema), Task(chat, tools=[Tool("sheet", "", schema)])):
        with pytest.raises(PromptError) as caught:
            Rain(RAIN_SETTINGS, model=model).generate(task)
        assert said in str(caught.value)
    assert model.requests == []


def test_a_name_of_mcp_is_used_as_it_is():
    tools = [Tool(name, "", SHEET) for name in ("files.read", "files/read", "files_read", "a" * 128)]
    for tool in tools:
        assert called('{"v":"x"}', '{"v":1}', tool=tool) == {"v": 1}


# --- what is random ---

NAMES = st.sampled_from(["a", "title", "type", "schema"])
ATOMS: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        *({"type": name} for name in ("integer", "string", "boolean", "null")),
        *({"minLength": 1}, {"minimum": 1}, {"enum": ["x", 1]}, {"const": None}, {"$ref": "#/$defs/R"}),
    ]
)
SCHEMAS: st.SearchStrategy[dict[str, Any]] = st.recursive(
    ATOMS,
    lambda inner: (
        st.fixed_dictionaries({"type": st.just("array"), "items": inner})
        | st.fixed_dictionaries({"items": inner})
        | st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=2)})
        | st.dictionaries(NAMES, inner, min_size=1, max_size=2).map(lambda named: {"properties": named})
        | st.dictionaries(NAMES, inner, min_size=1, max_size=2).map(
            lambda named: {"type": "object", "properties": named, "required": [*named]}
        )
    ),
    max_leaves=5,
)
ROOTS = st.dictionaries(NAMES, SCHEMAS, min_size=1, max_size=2).map(
    lambda named: {"type": "object", "properties": named, "required": [*named][:1]}
)
DOCUMENTS = st.recursive(
    st.sampled_from([None, True, 0, 1, "", "x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=4,
)
WRAPPERS = st.sampled_from(
    [
        lambda schema: schema,
        lambda schema: {"name": "s", "schema": schema},
        lambda schema: {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
        lambda schema: {"type": "function", "function": {"name": "s", "parameters": schema}},
        lambda schema: {"name": "s", "inputSchema": schema},
    ]
)


def fitting(schema: dict[str, Any], root: dict[str, Any], depth: int = 0) -> Any:
    """Return a document that fits a schema, if one is found at once."""
    match schema:
        case _ if depth > 9:
            return None
        case {"$ref": _}:
            return fitting(root, root, depth + 1)
        case {"anyOf": several}:
            return fitting(several[-1], root, depth + 1)
        case {"enum": [first, *_]} | {"const": first}:
            return first
        case {"items": item}:
            return [fitting(item, root, depth + 1)]
        case {"properties": named}:
            names = schema.get("required", named)
            return {name: fitting(part, root, depth + 1) for name, part in named.items() if name in names}
    return {"integer": 2, "boolean": True, "null": None}.get(
        schema.get("type", ""), 2 if "minimum" in schema else "x"
    )


@settings(max_examples=examples(60), deadline=None, derandomize=True)
@given(ROOTS, ROOTS, st.lists(DOCUMENTS, max_size=6), WRAPPERS)
def test_nothing_that_does_not_fit_leaves(root: Any, other: Any, documents: list[Any], wrap: Any):
    """A script would rather write what does not fit: bare documents, and good ones with a part replaced."""
    schema = other | {"$defs": {"R": root}}
    good = fitting(other, root)
    valid = Draft202012Validator(schema).is_valid
    assume(Draft202012Validator(schema_of(schema)).is_valid(good))  # as each keyword's type is implied
    broken = [{**good, name: document} for document in documents for name in other["properties"]]
    bad = [document for document in (*documents, *broken) if not valid(document)]
    words = [json.dumps(document, separators=(",", ":")) for document in (*bad, good)]
    assert answer(*words, schema=wrap(schema)) == good
    assert called(*words, tool=Tool("s", "", wrap(schema))) == good
