"""Kinds of schemas that ChatRain once did not hold to, or could not read: one example each."""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal, NewType, NotRequired, Optional, TypedDict

import pytest
import typing_extensions
from pydantic import BaseModel
from pydantic.v1 import BaseModel as OldModel

from langchain_rain._schemas import document_schema, openai_tool
from tests.integrations.test_chat_schemas import calling, preferring


class OldNode(OldModel):
    """Pydantic's first version."""

    v: int
    next: Optional[OldNode] = None  # noqa: UP045 (it reads no other form)


OldNode.update_forward_refs()


class Order(TypedDict):
    """An order.

    Args:
        size: of the cup.
        note: for the cook.
    """

    size: int
    note: NotRequired[str]
    name: NotRequired[Annotated[str, ..., "Whose."]]


class Bare(TypedDict):
    a: int


Data = typing_extensions.TypeAliasType("Data", "dict[str, Data] | list[Data] | str | None")


class Point(BaseModel):
    """A point."""

    x: int


Place = NewType("Place", Point)


@pytest.mark.parametrize("bad", [{"v": 1, "next": "x"}, {"v": 1, "next": {"v": "x"}}])
def test_a_recursive_class_of_pydantic_1(bad: Any) -> None:
    good = {"v": 1, "next": {"v": 2}}
    chat = calling("OldNode", bad, good)
    assert chat.bind_tools([OldNode], tool_choice="any").invoke("Go").tool_calls[0]["args"] == good
    made = chat.with_structured_output(OldNode, method="function_calling").invoke("Go")
    assert made == OldNode.parse_obj(good)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_a_typed_dict_with_fields_that_may_be_missing(method: Any) -> None:
    documents = ['{"size":"x"}', '{"note":"a"}', '{"size":1,"note":2}', '{"size":1,"note":"a"}']
    if method != "json_schema":
        documents = [f'{{"name":"Order","arguments":{document}}}' for document in documents]
    made = preferring(*documents).with_structured_output(Order, method=method).invoke("Go")
    assert made == {"size": 1, "note": "a"}


def test_a_typed_dict_is_described_by_its_own_docstring() -> None:
    function = openai_tool(Order)["function"]
    assert function["description"] == "An order."
    described = {name: part["description"] for name, part in function["parameters"]["properties"].items()}
    assert described == {"size": "of the cup.", "note": "for the cook.", "name": "Whose."}
    assert openai_tool(Bare)["function"]["description"] == ""  # not dict's own


@pytest.mark.parametrize(
    ("kind", "bad", "good", "made"),
    [(Data, "1.5", '{"a":["b"]}', {"a": ["b"]}), (Place, '{"x":"a"}', '{"x":1}', Point(x=1))],
)
def test_types_that_python_could_call(kind: Any, bad: str, good: str, made: Any) -> None:
    assert preferring(bad, good).with_structured_output(kind).invoke("Go") == made


@pytest.mark.parametrize("given", [Data, Place, functools.partial(print, 1), Literal["a"]])
def test_what_is_no_tool_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"is no object|no tool can be made|Unsupported"):
        preferring("x").bind_tools([given])


@pytest.mark.parametrize(
    "tool",
    [
        {"name": "go", "parameters": {}, "input_schema": {"properties": {"v": {"type": "integer"}}}},
        {"name": "go", "parameters": None, "inputSchema": {"properties": {"v": {"type": "integer"}}}},
    ],
)
def test_an_empty_schema_beside_another_is_none(tool: dict[str, Any]) -> None:
    chat = calling("go", {"v": "x"}, {"v": 1})
    assert chat.bind_tools([tool], tool_choice="any").invoke("Go").tool_calls[0]["args"] == {"v": 1}


def test_the_description_of_a_document_is_that_of_its_class() -> None:
    assert document_schema(Order)["description"] == "An order."


@pytest.mark.parametrize(
    "choice", [{"tool": {"name": "go"}}, {"any": {}}, {}, {"function": {}}, {"mode": "ANY"}, ["go"], b"go", 1]
)
def test_a_tool_choice_that_is_not_understood_is_refused(choice: Any) -> None:
    with pytest.raises(ValueError, match="tool_choice is"):
        preferring("x").bind_tools([{"name": "go"}], tool_choice=choice)
    with pytest.raises(ValueError, match="tool_choice is"):
        preferring("x").invoke("Go", tools=[{"name": "go"}], tool_choice=choice)
