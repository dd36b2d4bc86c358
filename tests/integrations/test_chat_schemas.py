"""ChatRain holds calls and documents to whole schemas: recursive ones too, by every way they come in.

A script that would rather write what does not fit, and has one answer that does.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import pickle
from collections.abc import Mapping
from typing import Annotated, Any, Generic, Literal, TypedDict, TypeVar

import pytest
import typing_extensions
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from langchain.agents import create_agent
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, InjectedToolArg, StructuredTool, tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, Field, field_validator
from pydantic.v1 import BaseModel as OldModel

from langchain_rain import ChatRain
from rain_llm import Criterion, PromptError, Rain, RainSettings
from rain_llm.models.scripted import END, ScriptedModel
from rain_llm.schemas import schema_of
from tests.examples import examples
from tests.test_schemas import DOCUMENTS, ROOTS, WRAPPED, fitting

KIND = {"labels": [("good", "bad")], "calibration": None}
SETTINGS = RainSettings(
    evaluation={"criteria": [Criterion(name="kind", frames=["{answer} is"], **KIND)], "actions": []}
).updated(search={"iterations": 1}, generation={"max_new_tokens": 24, "seed": 0})


def opinion(question: str, label: str) -> float:
    """Find everything good."""
    return -0.1 if label == " good" else -4.0


def preferring(*answers: str) -> ChatRain:
    """Return a chat that would rather say the first of some answers."""
    weights = {answer: 9.0**-place for place, answer in enumerate(answers)}

    def next_words(text: str) -> Mapping[str, float]:
        return {END: 1.0} if text.endswith((*answers, "</tool_call>")) else weights

    return ChatRain(rain=Rain(SETTINGS, model=ScriptedModel(next_words, opinion)))


def calling(name: str, *arguments: Any) -> ChatRain:
    """Return a chat that would rather call a tool with the first of some arguments."""
    compact = [json.dumps(each, separators=(",", ":"), ensure_ascii=False) for each in arguments]
    return preferring(*(f'{{"name":"{name}","arguments":{text}}}' for text in compact))


# --- recursive types, by every way in ---


class Node(BaseModel):
    """A node."""

    v: int
    next: Node | None = None


class Tree(BaseModel):
    """Recursion through lists, dicts and unions."""

    v: int
    many: list[Tree] = []
    named: dict[str, Tree | int] = {}


class Left(BaseModel):
    v: int
    right: Right | None = None


class Right(BaseModel):
    left: Left


class Cat(BaseModel):
    kind: Literal["cat"]
    kitten: Animal | None = None


class Dog(BaseModel):
    kind: Literal["dog"]
    pups: list[Animal] = []


Animal = Annotated[Cat | Dog, Field(discriminator="kind")]


class Zoo(BaseModel):
    animals: dict[str, Animal]


Item = TypeVar("Item")


class Box(BaseModel, Generic[Item]):
    v: Item
    inner: Box[Item] | None = None


@dataclasses.dataclass
class Row:
    v: int
    next: Row | None = None


class Plain(TypedDict):
    """A plain one."""

    v: int
    next: Plain | None


class Newer(typing_extensions.TypedDict):
    v: int
    next: typing_extensions.NotRequired[Newer]


class Old(OldModel):
    v: int


@tool
def add(v: int, next: Node | None = None) -> str:
    """Add a node."""
    return str(v)


@tool(args_schema=Node)
def add_by_class(v: int, next: Any = None) -> str:
    """Add a node."""
    return str(v)


def add_plainly(v: int, next: Node | None = None) -> str:
    """Add a node.

    Args:
        v: its value.
        next: the one after it.
    """
    return str(v)


@tool
def add_injected(v: int, token: Annotated[str, InjectedToolArg], next: Node | None = None) -> str:
    """Add a node."""
    return str(v)


BY_MCP = StructuredTool(
    name="add", description="Add a node.", args_schema=Node.model_json_schema(), func=add_plainly
)
BY_DICT = {"name": "add", "description": "Add a node.", "parameters": Node.model_json_schema()}
WAYS: dict[str, Any] = {
    "pydantic class": Node,
    "tool": add,
    "tool with a class": add_by_class,
    "tool with a dict, as of MCP": BY_MCP,
    "function": add_plainly,
    "tool with an injected argument": add_injected,
    "dataclass": Row,
    "TypedDict": Plain,
    "TypedDict of typing_extensions": Newer,
    "generic class": Box[int],
    "JSON schema": {"title": "add", **Node.model_json_schema()},
    "JSON schema with a title of words": {"title": "Add a node", **Node.model_json_schema()},
    "OpenAI's": {"type": "function", "function": BY_DICT},
    "OpenAI's function": BY_DICT,
    "OpenAI's newer": {"type": "function", **BY_DICT},
    "Anthropic's": {"name": "add", "input_schema": Node.model_json_schema()},
    "MCP's": {"name": "add", "inputSchema": Node.model_json_schema(), "annotations": {}},
    "Bedrock's": {"toolSpec": {"name": "add", "inputSchema": {"json": Node.model_json_schema()}}},
}
BAD: list[Any] = [
    {"v": 1, "next": "x"},
    {"v": 1, "next": {"v": "x"}},
    {"v": 1, "next": {"v": 2, "next": {"v": 3, "next": 4}}},
    {"v": 1, "inner": {"v": 2, "inner": 3}},
    {"v": "x", "next": None},
    {"v": 1, "other": 2},
]
GOOD = {"v": 1, "next": {"v": 2, "next": {"v": 3, "next": None}}}
SAME = {"Newer": {"v": 1, "next": {"v": 2}}, "Box_int_": {"v": 1, "inner": {"v": 2, "inner": None}}}


def name_of(way: Any) -> str:
    match way:
        case BaseTool():
            return str(way.name)
        case dict():
            return "Add_a_node" if way.get("title") == "Add a node" else "add"
    return "Box_int_" if way is Box[int] else str(way.__name__)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_recursive_tool_is_held_to_its_whole_schema(way: Any):
    name = name_of(way)
    good = SAME.get(name, GOOD)
    chat = calling(name, *BAD, good).bind_tools([way], tool_choice="any")
    (call,) = chat.invoke("Do it").tool_calls
    assert (call["name"], call["args"]) == (name, good)


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_recursive_answers_are_held_to_their_whole_schema(way: Any, method: Any):
    name = name_of(way)
    good = SAME.get(name, GOOD)
    compact = [json.dumps(each, separators=(",", ":")) for each in (*BAD, good)]
    chat = calling(name, *BAD, good) if method == "function_calling" else preferring(*compact)
    if callable(way) and not isinstance(way, type) and method == "json_schema":
        return  # a function is no document
    found = chat.with_structured_output(way, method=method).invoke("Do it")
    plain = found.model_dump(exclude_none=name == "Newer") if isinstance(found, BaseModel) else found
    assert (dataclasses.asdict(plain) if isinstance(plain, Row) else plain) == good


@pytest.mark.parametrize(
    ("kind", "bad", "good"),
    [
        (Tree, {"v": 1, "many": [{"v": "x"}]}, {"v": 1, "many": [{"v": 2}]}),
        (Tree, {"v": 1, "named": {"a": {"v": 1, "many": [3]}}}, {"v": 1, "named": {"a": {"v": 1}, "b": 2}}),
        (Left, {"v": 1, "right": {"left": {"v": 2, "right": 3}}}, {"v": 1, "right": {"left": {"v": 2}}}),
        (Right, {"left": {"v": 1, "right": {}}}, {"left": {"v": 1, "right": None}}),
        (Cat, {"kind": "cat", "kitten": {"kind": "cow"}}, {"kind": "cat", "kitten": {"kind": "dog"}}),
        (
            Zoo,
            {"animals": {"a": {"kind": "dog", "pups": [{"kind": "cat", "kitten": 1}]}}},
            {"animals": {"a": {"kind": "dog", "pups": [{"kind": "cat", "kitten": None}]}}},
        ),
    ],
)
def test_recursion_through_other_types(kind: Any, bad: Any, good: Any):
    chat = calling(kind.__name__, bad, good)
    assert chat.bind_tools([kind], tool_choice="any").invoke("Do it").tool_calls[0]["args"] == good
    found: Any = chat.with_structured_output(kind, method="function_calling").invoke("Do it")
    assert found == kind.model_validate(good)


def test_an_agents_tools_and_form_are_held_to():
    done: Any = create_agent(calling("Node", *BAD, GOOD), tools=[add], response_format=Node).invoke(
        {"messages": [HumanMessage("Do it")]}
    )
    assert done["structured_response"] == Node.model_validate(GOOD)


def test_names_and_descriptions_are_langchains():
    def about(way: Any) -> tuple[str, str]:
        bound: Any = ChatRain().bind_tools([way])
        function = bound.kwargs["tools"][0]["function"]
        # Not twice: a small model calls otherwise.
        assert not function["description"] or "description" not in function["parameters"]
        return function["name"], function["description"]

    for way in (Node, Tree, add, add_by_class, add_plainly, BY_MCP, Old, SheetDict):
        function = convert_to_openai_tool(way)["function"]
        assert about(way) == (function["name"], function["description"])
    bound: Any = ChatRain().bind_tools([add_plainly, SheetDict])
    plain, typed = (each["function"]["parameters"] for each in bound.kwargs["tools"])
    assert plain["properties"]["v"] == {"description": "its value.", "type": "integer"}
    assert typed["properties"]["title"]["description"] == "what stands above"
    assert typed["required"] == ["title"]


class SheetDict(TypedDict):
    """A sheet."""

    title: Annotated[str, ..., "what stands above"]
    foot: Annotated[str, "", "what stands below"]


# --- schemas in whatever form ---


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Even(BaseModel):
    v: int = Field(description="an even number")

    @field_validator("v")
    @classmethod
    def _is_even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("this is odd")
        return value


@pytest.mark.parametrize(
    ("kind", "bad", "good", "wanted"),
    [
        (Colour, '"green"', '"red"', Colour.RED),
        (Literal["red", "blue"], '"green"', '"red"', "red"),
        (list[Node], '[{"v":"x"}]', '[{"v":1,"next":null}]', [Node(v=1)]),
        (list[Plain], '[{"v":"x"}]', '[{"v":1,"next":null}]', [{"v": 1, "next": None}]),
        (Row, '{"v":1,"next":2}', '{"v":1,"next":null}', Row(1)),
        (Old, '{"v":"x"}', '{"v":1}', Old(v=1)),
        ({"properties": {"v": {"type": "integer"}}}, '"x"', '{"v":1}', {"v": 1}),
        *((schema, '{"v":"x"}', '{"v":1}', {"v": 1}) for schema in WRAPPED.values()),
    ],
)
def test_a_document_is_held_to_what_it_is_asked_as(kind: Any, bad: str, good: str, wanted: Any):
    structured = preferring(bad, good).with_structured_output(kind)
    assert structured.invoke("Do it") == wanted
    assert list(structured.stream("Do it"))[-1] == wanted


@pytest.mark.parametrize("schema", WRAPPED.values(), ids=WRAPPED)
def test_wrapped_schemas_are_held_to_by_calls_and_response_formats(schema: Any):
    for method in ("function_calling", "json_schema"):
        chat = calling("sheet", {"v": "x"}, {}, {"v": 1}) if method[0] == "f" else preferring("{}", '{"v":1}')
        found: Any = chat.with_structured_output(schema, method=method).invoke("Do it")
        assert found == {"v": 1}
    if schema.get("type") == "json_schema":
        bound = preferring('{"v":"x"}', '{"v":1}').bind(response_format=schema)
        assert bound.invoke("Do it").text == '{"v":1}'


@pytest.mark.parametrize(
    "asked",
    [Node, {"type": "json_object", "schema": Node.model_json_schema()}],
    ids=["class", "as llama.cpp has it"],
)
def test_a_response_format_may_be_a_class(asked: Any):
    chat = preferring('{"v":"x"}', '{"v":1,"next":null}')
    assert chat.invoke("Do it", response_format=asked).text == '{"v":1,"next":null}'


@pytest.mark.parametrize(
    "schema",
    [{"foo": 1}, {"type": "object", "propertis": {}}, {"name": "a", "strict": True}, "Node", 5, Node(v=1)],
    ids=str,
)
def test_what_is_no_schema_is_refused_before_any_model_runs(schema: Any):
    chat = preferring("{}")
    assert chat.rain
    for method in ("json_schema", "function_calling", "json_mode"):
        with pytest.raises((ValueError, TypeError)):
            chat.with_structured_output(schema, method=method).invoke("Do it")
    if not isinstance(schema, dict) or "name" not in schema:  # else a tool without arguments
        with pytest.raises((ValueError, TypeError)):
            chat.bind_tools([schema], tool_choice="any").invoke("Do it")
    with pytest.raises(PromptError):
        chat.invoke("Do it", response_format={"type": "json_schema", "json_schema": {"schema": schema}})
    assert chat.rain.runtime.writer.requests == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [Colour, Literal["a"], list[int], str])
def test_what_is_no_object_is_no_tool(kind: Any):
    with pytest.raises(ValueError, match="method='json_schema'"):
        preferring("{}").with_structured_output(kind, method="function_calling")


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
async def test_with_raw_what_the_class_rejects_is_told(method: Any):
    chat = calling("Even", {"v": 3}) if method == "function_calling" else preferring('{"v":3}')
    with pytest.raises(OutputParserException, match="odd"):
        chat.with_structured_output(Even, method=method).invoke("Do it")
    raw = chat.with_structured_output(Even, method=method, include_raw=True)
    for told in (
        raw.invoke("Do it"),
        await raw.ainvoke("Do it"),
        *raw.stream("Do it"),
        *raw.batch(["Do it"]),
    ):
        assert isinstance(told, dict) and told["parsed"] is None
        assert "odd" in str(told["parsing_error"]) and isinstance(told["raw"], AIMessage)


def test_a_structured_model_can_be_pickled():
    for method in ("json_schema", "function_calling", "json_mode"):
        for raw in (False, True):
            made = ChatRain(model="some/model").with_structured_output(Node, method=method, include_raw=raw)
            assert type(pickle.loads(pickle.dumps(made))) is type(made)


# --- names of tools ---


def test_tools_named_as_mcp_names_them_are_called_and_found():
    names = ["files.read", "files/read", "files_read", "a" * 128]
    tools = [{"name": name, "input_schema": Node.model_json_schema()} for name in names]
    for name in names:
        chat = calling(name, *BAD, GOOD)
        for choice in ("any", name):
            (call,) = chat.bind_tools(tools, tool_choice=choice).invoke("Do it").tool_calls
            assert (call["name"], call["args"]) == (name, GOOD)
        done = [
            HumanMessage("Do it"),
            AIMessage("", tool_calls=[call]),
            ToolMessage("ok", tool_call_id=call["id"]),
        ]
        assert chat.bind_tools(tools, tool_choice="any").invoke(done).tool_calls[0]["name"] == name


# --- what is random ---


@settings(max_examples=examples(40), deadline=None, derandomize=True)
@given(ROOTS, ROOTS, st.lists(DOCUMENTS, max_size=6), st.integers(0, 4))
def test_no_call_that_does_not_fit_leaves(root: Any, other: Any, documents: list[Any], way: int):
    schema = other | {"$defs": {"R": root}}
    good = fitting(other, root)
    valid = Draft202012Validator(schema).is_valid
    assume(Draft202012Validator(schema_of(schema)).is_valid(good))
    broken = [{**good, name: document} for document in documents for name in other["properties"]]
    bad = [document for document in (*documents, *broken) if not valid(document)]
    bound: Any = [
        {"title": "add", **schema},
        {"name": "add", "inputSchema": schema},
        {"type": "function", "function": {"name": "add", "parameters": schema}},
        StructuredTool(name="add", description="Add.", args_schema=schema, func=print),
        {"type": "json_schema", "json_schema": {"name": "add", "schema": schema}},
    ][way]
    chat = calling("add", *bad, good)
    (call,) = chat.bind_tools([bound], tool_choice="any").invoke("Do it").tool_calls
    assert call["args"] == good
    found: Any = chat.with_structured_output(bound, method="function_calling").invoke("Do it")
    assert found == good
    compact = [json.dumps(each, separators=(",", ":")) for each in (*bad, good)]
    assert preferring(*compact).with_structured_output(bound).invoke("Do it") == good
