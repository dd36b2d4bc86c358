"""Calls and instances fit their classes, those that refer to themselves too; what is no class is an error."""

from __future__ import annotations

import json
import re
from enum import Enum
from typing import Any, Generic, Literal, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import (
    AudioBlock,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_index.core.llms import ChatMessage
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.core.tools.types import ToolMetadata
from llama_index.core.types import PydanticProgramMode
from llama_index.llms.rain import PredictionError, RainLLM
from llama_index.llms.rain.tools import openai_tools
from pydantic import BaseModel, RootModel, ValidationError

from rain_llm import PromptError, SearchError
from rain_llm.requests import Sample
from tests.examples import examples
from tests.integrations.llama_scripts import memory, model_of, scripted

QUESTION = "How is Bonn?"
PROMPT = PromptTemplate(QUESTION)


class Node(BaseModel):
    """A list."""

    v: int
    next: Node | None = None


class Tree(BaseModel):
    """A tree."""

    name: str
    children: list[Tree] = []


class Left(BaseModel):
    """One of two that refer to each other."""

    right: Right | None


class Right(BaseModel):
    """The other."""

    left: Left


class Leaf(BaseModel):
    """An end."""

    kind: Literal["leaf"]


class Fork(BaseModel):
    """A choice."""

    kind: Literal["fork"]
    ways: dict[str, Fork | Leaf]


T = TypeVar("T")


class Chain(BaseModel, Generic[T]):
    """A chain of anything."""

    item: T
    rest: Chain[T] | None = None


RECURSIVE: list[tuple[type[BaseModel], Any, Any]] = [
    (Node, {"v": 1, "next": {"v": 2, "next": None}}, {"v": 1, "next": "x"}),
    (Tree, {"name": "a", "children": [{"name": "b"}]}, {"name": "a", "children": [1]}),
    (Left, {"right": {"left": {"right": None}}}, {"right": {"left": {"right": 0}}}),
    (
        Fork,
        {"kind": "fork", "ways": {"a": {"kind": "leaf"}}},
        {"kind": "fork", "ways": {"a": {"kind": "stem"}}},
    ),
    (Chain[int], {"item": 1, "rest": {"item": 2, "rest": None}}, {"item": 1, "rest": {"item": "b"}}),
    (RootModel[Node], {"v": 1, "next": None}, {"v": 1, "next": "x"}),
]
"""A class, what fits it, and what the model likes better."""


def call(name: str, arguments: Any) -> str:
    document = json.dumps({"name": name, "arguments": arguments}, separators=(",", ":"))
    return f"<tool_call>\n{document}\n</tool_call>"


def look(**arguments: Any) -> str:
    """Look."""
    return str(arguments)


def says(bad: str, good: str) -> RainLLM:
    """Make a model that nearly always says what is bad."""
    answers = {bad: 9.0, good: 1.0}
    return scripted({QUESTION: answers, "schema.\n": answers, "assistant: ": answers}, 256)


# --- classes that refer to themselves -----------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "good", "bad"), RECURSIVE, ids=lambda each: getattr(each, "__name__", ""))
def test_a_call_with_such_a_class_as_its_arguments(cls: type[BaseModel], good: Any, bad: Any) -> None:
    llm = says(call("look", bad), call("look", good))
    tool = FunctionTool.from_defaults(fn=look, name="look", description="Look.", fn_schema=cls)
    (selected,) = llm.get_tool_calls_from_response(llm.chat_with_tools([tool], QUESTION, tool_required=True))
    assert selected.tool_kwargs == good


@pytest.mark.parametrize(("cls", "good", "bad"), RECURSIVE, ids=lambda each: getattr(each, "__name__", ""))
def test_a_call_with_such_a_class_in_its_arguments(cls: type[BaseModel], good: Any, bad: Any) -> None:
    def look_at(at: Any) -> str:
        """Look."""
        return repr(at)

    look_at.__annotations__["at"] = cls
    llm = says(call("look_at", {"at": bad}), call("look_at", {"at": good}))
    (selected,) = llm.get_tool_calls_from_response(
        llm.chat_with_tools([FunctionTool.from_defaults(look_at)], QUESTION, tool_required=True)
    )
    assert selected.tool_kwargs == {"at": good}


@pytest.mark.parametrize(("cls", "good", "bad"), RECURSIVE, ids=lambda each: getattr(each, "__name__", ""))
async def test_an_instance_of_such_a_class(cls: type[BaseModel], good: Any, bad: Any) -> None:
    wrap = (lambda each: {"root": each}) if issubclass(cls, RootModel) else (lambda each: each)
    llm = says(*(json.dumps(wrap(each), separators=(",", ":")) for each in (bad, good)))
    made = [
        llm.structured_predict(cls, PROMPT),
        await llm.astructured_predict(cls, PROMPT),
        *llm.stream_structured_predict(cls, PROMPT),
        llm.as_structured_llm(cls).chat([ChatMessage(QUESTION)]).raw,
    ]
    assert made == [cls.model_validate(good)] * 4


@pytest.mark.parametrize(("cls", "good", "bad"), RECURSIVE, ids=lambda each: getattr(each, "__name__", ""))
def test_an_instance_of_such_a_class_by_a_call(cls: type[BaseModel], good: Any, bad: Any) -> None:
    if issubclass(cls, RootModel):
        calls = [call("Answer", {"root": each}) for each in (bad, good)]
    else:
        calls = [call(re.sub(r"\W", "_", cls.__name__), each) for each in (bad, good)]
    llm = says(*calls)
    llm.pydantic_program_mode = PydanticProgramMode.FUNCTION
    assert llm.structured_predict(cls, PROMPT) == cls.model_validate(good)
    if not issubclass(cls, RootModel):
        assert FunctionCallingProgram.from_defaults(cls, QUESTION, llm=llm)() == cls.model_validate(good)


def test_a_program_of_llama_index_s_own_holds_to_a_class_in_a_class() -> None:
    class Answer(BaseModel):
        """An answer."""

        node: Node

    good, bad = ({"node": RECURSIVE[0][place]} for place in (1, 2))
    llm = says(call("Answer", bad), call("Answer", good))
    program = FunctionCallingProgram.from_defaults(Answer, QUESTION, llm=llm)
    assert program() == Answer.model_validate(good)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "x"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["v", "next", "zz"]), inner, max_size=3)
        | st.fixed_dictionaries({"v": st.integers(-9, 9), "next": inner})
    ),
    max_leaves=4,
)


@settings(max_examples=examples(60), deadline=None, derandomize=True)
@given(JSON)
def test_whatever_a_model_likes_best_only_what_fits_leaves(planted: Any) -> None:
    llm = says(call("look", planted), call("look", {"v": 1, "next": None}))
    tool = FunctionTool.from_defaults(fn=look, name="look", description="Look.", fn_schema=Node)
    try:
        response = llm.chat_with_tools([tool], QUESTION, tool_required=True)
    except SearchError:  # it has nothing else to say there
        return
    (selected,) = llm.get_tool_calls_from_response(response)
    Node.model_validate_json(json.dumps(selected.tool_kwargs), strict=True)


# --- what is given for a class ---------------------------------------------------------------------------


class Color(Enum):
    """A color."""

    RED = "red"


@pytest.mark.parametrize("given", [Color, Literal["a"], dict, {"type": "object"}, list[int], "Node", None])
async def test_what_is_no_pydantic_class_is_refused_before_any_model_runs(given: Any) -> None:
    llm = scripted({QUESTION: {"{}": 1}})
    with pytest.raises(PredictionError, match=r"output_cls is .*give a pydantic class, or RootModel"):
        llm.structured_predict(given, PROMPT)
    with pytest.raises(PredictionError, match="output_cls"):
        await llm.astructured_predict(given, PROMPT)
    with pytest.raises(PredictionError, match="output_cls"):
        list(llm.stream_structured_predict(given, PROMPT))
    with pytest.raises(ValidationError, match="output_cls"):
        llm.as_structured_llm(given)
    assert model_of(llm).requests == []


@pytest.mark.parametrize(
    ("cls", "good", "bad"),
    [
        (RootModel[Color], '{"root":"red"}', '{"root":"blue"}'),
        (RootModel[list[int]], '{"root":[1]}', '{"root":["a"]}'),
    ],
)
def test_other_types_are_given_in_a_root_model(cls: type[RootModel[Any]], good: str, bad: str) -> None:
    made = says(bad, good).structured_predict(cls, PROMPT)
    assert made == cls.model_validate(json.loads(good)["root"])


class Loose(ToolMetadata):
    """Tells its parameters itself, as tools of other protocols do."""

    def get_parameters_dict(self) -> dict[str, Any]:
        """Return them."""
        return {"type": "object", "properties": {"at": {"enum": ["here"]}}, "required": ["at"]}


def test_a_tool_that_tells_its_parameters_itself_is_held_to_them() -> None:
    tool = FunctionTool(fn=look, metadata=Loose("Look.", "look"))
    assert openai_tools([tool])[0]["function"]["parameters"] == Loose("", "").get_parameters_dict()
    llm = says(call("look", {"at": "there"}), call("look", {"at": "here"}))
    (selected,) = llm.get_tool_calls_from_response(llm.chat_with_tools([tool], QUESTION, tool_required=True))
    assert selected.tool_kwargs == {"at": "here"}


class Closed(BaseModel, extra="forbid"):
    """Nothing else goes in."""

    a: dict[str, int]


def test_what_a_schema_has_beside_its_properties_is_kept() -> None:
    tool = FunctionTool.from_defaults(fn=look, name="look", description="Look.", fn_schema=Closed)
    assert openai_tools([tool])[0]["function"]["parameters"]["additionalProperties"] is False
    llm = says(call("look", {"a": {}, "zz": 1}), call("look", {"a": {}}))
    (selected,) = llm.get_tool_calls_from_response(llm.chat_with_tools([tool], QUESTION, tool_required=True))
    assert selected.tool_kwargs == {"a": {}}


# --- what a tool replies beside text -----------------------------------------------------------------------

IMAGE = ImageBlock(image=b"\x89PNG")
MEDIA = {
    "image": IMAGE,
    "audio": AudioBlock(audio=b"RIFF"),
    "video": VideoBlock(video=b"mp4"),
    "document": DocumentBlock(data=b"%PDF", title="a"),
}


def chat_with(blocks: list[Any]) -> list[ChatMessage]:
    asked = ToolCallBlock(tool_call_id="7", tool_name="look", tool_kwargs={})
    reply = ChatMessage(role="tool", blocks=blocks, additional_kwargs={"tool_call_id": "7"})
    return [ChatMessage(QUESTION), ChatMessage(role="assistant", blocks=[asked]), reply]


@pytest.mark.parametrize("kind", MEDIA)
def test_of_a_reply_the_text_is_read_and_a_marker_stands_for_the_rest(kind: str) -> None:
    llm = scripted({"</tool_response>": {"Splendid.": 1}})
    llm.chat(chat_with([TextBlock(text="It is warm."), MEDIA[kind], TextBlock(text="And dry.")]))
    model = model_of(llm)
    sample = next(request for request in model.requests if isinstance(request, Sample))
    assert f"It is warm.\n[{kind} left out]\nAnd dry." in model.decode(sample.prefix)
    assert llm.chat(chat_with([MEDIA[kind]])).message.content == "Splendid."  # nothing but it


def test_what_a_reply_cites_too() -> None:
    llm = scripted({"</tool_response>": {"Splendid.": 1}})
    cited = CitableBlock(title="T", source="S", content=[TextBlock(text="Warm."), IMAGE])
    citation = CitationBlock(title="T", source="S", cited_content=IMAGE, additional_location_info={})
    llm.chat(chat_with([cited, citation]))
    model = model_of(llm)
    sample = next(request for request in model.requests if isinstance(request, Sample))
    assert "Warm.\n[image left out]\n[image left out]" in model.decode(sample.prefix)


def test_an_image_in_an_assistants_turn_is_left_out() -> None:
    llm = scripted({QUESTION: {"Splendid.": 1}})
    llm.chat([ChatMessage(role="assistant", blocks=[TextBlock(text="See. "), IMAGE]), ChatMessage(QUESTION)])
    model = model_of(llm)
    sample = next(request for request in model.requests if isinstance(request, Sample))
    assert "See. [image left out]" in model.decode(sample.prefix).replace("\n", "")


@pytest.mark.parametrize("role", ["user", "system"])
def test_an_image_in_another_turn_is_refused(role: str) -> None:
    llm = scripted({QUESTION: {"Splendid.": 1}})
    with pytest.raises(PromptError, match="'image': only text can be judged"):
        llm.chat([ChatMessage(role=role, blocks=[TextBlock(text="See."), IMAGE]), ChatMessage(QUESTION)])
    assert model_of(llm).requests == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # LlamaIndex's agents use what is deprecated
async def test_an_agent_goes_on_after_a_reply_with_an_image() -> None:
    def look() -> list[Any]:
        """Look out of the window."""
        return [TextBlock(text="It is warm."), IMAGE]

    llm = scripted({QUESTION: {call("look", {}): 1}, "</tool_response>": {"Splendid.": 1}})
    agent = FunctionAgent(tools=[FunctionTool.from_defaults(look)], llm=llm)
    assert str(await agent.run(QUESTION, memory=memory())) == "Splendid."


# --- schemas in other forms ------------------------------------------------------------------------------

OBJECT = {"properties": {"v": {"type": "integer"}}, "required": ["v"]}
FORMS: list[tuple[Any, str, str]] = [
    ({"name": "look", "strict": True, "schema": {"type": "object", **OBJECT}}, '{"v":1}', '{"v":"x"}'),
    (OBJECT, '{"v":1}', '{"v":"x"}'),
    (Node, '{"v":1,"next":null}', '{"v":1,"next":"x"}'),
    (Color, '"red"', '"blue"'),
    (Literal["a"], '"a"', '"b"'),
    (list[int], "[1]", '["x"]'),
]


@pytest.mark.parametrize(("schema", "good", "bad"), FORMS, ids=[str(i) for i in range(len(FORMS))])
async def test_a_schema_is_held_to_in_every_form(schema: Any, good: str, bad: str) -> None:
    llm = says(bad, good)
    assert llm.chat([ChatMessage(QUESTION)], schema=schema).message.content == good
    assert (await llm.acomplete(QUESTION, schema=schema)).text == good


@pytest.mark.parametrize(
    "schema", [{"v": "int"}, {"propertys": {}}, "Node", 3, {"type": "object", "x": object()}]
)
def test_what_is_no_schema_is_refused_before_any_model_runs(schema: Any) -> None:
    llm = scripted({QUESTION: {"{}": 1}})
    with pytest.raises(PromptError, match="schema"):
        llm.chat([ChatMessage(QUESTION)], schema=schema)
    with pytest.raises(PromptError, match="schema"):
        llm.stream_complete(QUESTION, schema=schema)  # at the call
    assert model_of(llm).requests == []


# --- tools that LlamaIndex itself could not call ---------------------------------------------------------


def test_a_function_with_a_class_that_refers_to_itself_is_called() -> None:
    def look(v: int, next: Any = None) -> str:
        """Look."""
        return f"{v} is warm"

    llm = says(call("look", {"v": 1, "next": "x"}), call("look", {"v": 1, "next": None}))
    tool = FunctionTool.from_defaults(look, fn_schema=Node)
    assert llm.predict_and_call([tool], QUESTION).response == "1 is warm"


class Box(BaseModel, Generic[T]):
    """A box."""

    v: T


@pytest.mark.parametrize("name", ["größe", "two words", "a[b]", ""])
def test_a_name_that_is_no_tool_s_is_refused_before_any_model_runs(name: str) -> None:
    llm = scripted({QUESTION: {"{}": 1}})
    tool = FunctionTool.from_defaults(look, tool_metadata=ToolMetadata("Look.", name))
    with pytest.raises(PromptError, match="a name has 1 to 128"):
        llm.chat_with_tools([tool], QUESTION)
    assert model_of(llm).requests == []


async def test_a_generic_class_is_filled_by_a_call() -> None:
    llm = says(call("Box_int_", {"v": "x"}), call("Box_int_", {"v": 1}))
    llm.pydantic_program_mode = PydanticProgramMode.FUNCTION
    assert llm.structured_predict(Box[int], PROMPT) == Box[int](v=1)
    assert await llm.astructured_predict(Box[int], PROMPT) == Box[int](v=1)
