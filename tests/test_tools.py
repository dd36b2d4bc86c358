"""Tools: what is accepted, the schema of a call, and calls written, read, described and told in words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from rain_llm import Message, PromptError
from rain_llm.tools import CLOSING, OPENING, call_schema, check_tools, described, read, spoken, written
from rain_llm.types import Tool, ToolCall

MAIL = Tool(
    "send_mail",
    "Sends a mail.",
    {"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]},
)
CLOCK = Tool("clock")


# --- what is accepted ---


@pytest.mark.parametrize("choice", ["auto", "none", "any", "clock"])
def test_good_tools_pass(choice: str):
    check_tools(
        [MAIL, CLOCK, Tool("a" * 128), Tool("files.read/all"), Tool("no_type", "", {"properties": {}})],
        choice,
    )


def test_no_tools_need_no_call():
    check_tools([], "auto")
    check_tools([], "none")


@pytest.mark.parametrize("name", ["", "a" * 129, "send mail", "<|im_end|>", "caf\u00e9", "a\n"])
def test_a_bad_name_is_refused(name: str):
    with pytest.raises(PromptError, match="1 to 128"):
        check_tools([Tool(name)], "auto")


@pytest.mark.parametrize("name", ["auto", "none", "any", "required"])
def test_a_tool_is_not_named_like_a_choice(name: str):
    with pytest.raises(PromptError, match="tool_choice"):
        check_tools([Tool(name)], name)


def test_two_tools_of_one_name_are_refused():
    with pytest.raises(PromptError, match="2 tools are named 'clock'"):
        check_tools([CLOCK, MAIL, Tool("clock", "Another.")], "auto")


def endless() -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    schema["properties"] = {"again": schema}
    return schema


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "string"},
        {"type": ["object", "null"]},
        {"properties": ["city"]},
        {"properties": {"city": "string"}},
        {"type": "object", "required": True},
        {"type": "object", "required": [1]},
        {"type": "object", "default": object()},
        {"type": "object", "maximum": float("nan")},
        {"type": "object", "title": "\ud800"},
        ["city"],
        None,
        endless(),
    ],
)
def test_parameters_that_are_no_schema_of_an_object_are_refused(parameters: Any):
    with pytest.raises(PromptError, match=r"the tool 'clock' has .* JSON schema of an object"):
        check_tools([Tool("clock", "", parameters)], "auto")


def test_a_description_is_text():
    description: Any = None
    with pytest.raises(PromptError, match="description"):
        check_tools([Tool("clock", description)], "auto")


@pytest.mark.parametrize("choice", ["any", "clock"])
def test_a_call_cannot_be_asked_for_without_tools(choice: str):
    with pytest.raises(PromptError, match="there are no tools"):
        check_tools([], choice)


@pytest.mark.parametrize("choice", ["", "required", "Clock"])
def test_a_choice_names_a_tool(choice: str):
    with pytest.raises(PromptError, match="auto, none, any, send_mail, clock"):
        check_tools([MAIL, CLOCK], choice)


# --- the schema of a call ---


def fits(tools: list[Tool], choice: str, call: Any) -> bool:
    schema = json.loads(call_schema(tools, choice))
    Draft202012Validator.check_schema(schema)
    return bool(Draft202012Validator(schema).is_valid(call))


@pytest.mark.parametrize(
    ("call", "whether"),
    [
        ({"name": "send_mail", "arguments": {"to": "a@b.c"}}, True),
        ({"name": "clock", "arguments": {}}, True),
        ({"name": "send_mail", "arguments": {}}, False),
        ({"name": "send_mail", "arguments": {"to": "a@b.c", "bcc": "x"}}, False),
        ({"name": "clock", "arguments": {"to": "a@b.c"}}, False),
        ({"name": "delete", "arguments": {}}, False),
        ({"name": "clock"}, False),
        ({"name": "clock", "arguments": {}, "more": 1}, False),
    ],
)
def test_a_call_fits_the_schema_of_its_tool(call: Any, whether: bool):
    assert fits([MAIL, CLOCK], "auto", call) is whether
    assert fits([MAIL, CLOCK], "any", call) is whether


def test_only_the_named_tool_can_be_called():
    assert fits([MAIL, CLOCK], "clock", {"name": "clock", "arguments": {}})
    assert not fits([MAIL, CLOCK], "clock", {"name": "send_mail", "arguments": {"to": "a@b.c"}})


def test_the_schema_of_a_call_is_one_compact_text_with_the_name_first():
    text = call_schema([MAIL, CLOCK], "clock")
    assert text == (
        '{"type":"object","properties":{"name":{"const":"clock"},"arguments":{"$ref":"#/$defs/clock"}},'
        '"required":["name","arguments"],"additionalProperties":false,"$defs":{"clock":'
        '{"type":"object","properties":{},"additionalProperties":false}}}'
    )


def place(kind: str) -> dict[str, Any]:
    """A schema with a definition of a name that other tools use too, as pydantic makes them."""
    return {
        "type": "object",
        "properties": {"at": {"$ref": "#/$defs/Place"}, "like": {"$ref": "#/properties/at"}},
        "$defs": {"Place": {"type": kind}},
    }


def test_definitions_of_two_tools_stay_apart():
    tools = [Tool("by_name", "", place("string")), Tool("by_number", "", place("integer"))]
    for name, good, bad in [("by_name", "Rome", 3), ("by_number", 3, "Rome")]:
        for key in ("at", "like"):
            assert fits(tools, "auto", {"name": name, "arguments": {key: good}})
            assert not fits(tools, "auto", {"name": name, "arguments": {key: bad}})


def test_a_schema_may_refer_to_itself_and_to_the_old_definitions():
    tree = {"type": "object", "properties": {"child": {"$ref": "#"}, "n": {"$ref": "#/definitions/n"}}}
    tools = [Tool("plant", "", tree | {"definitions": {"n": {"type": "integer"}}}), CLOCK]
    assert fits(tools, "auto", {"name": "plant", "arguments": {"child": {"child": {"n": 1}}}})
    assert not fits(tools, "auto", {"name": "plant", "arguments": {"child": {"child": {"n": "1"}}}})
    assert not fits(tools, "auto", {"name": "plant", "arguments": {"child": {"other": 1}}})


def test_a_reference_among_values_is_a_value():
    value = {"$ref": "#/$defs/x"}
    properties = {"v": {"enum": [value]}, "default": {"$ref": "#/$defs/x"}, "$ref": {"type": "integer"}}
    parameters = {"type": "object", "properties": properties, "$defs": {"x": {"type": "boolean"}}}
    tools = [Tool("keep", "", parameters)]
    assert fits(tools, "auto", {"name": "keep", "arguments": {"v": value, "default": True, "$ref": 1}})
    assert not fits(tools, "auto", {"name": "keep", "arguments": {"default": 1}})


def test_what_a_schema_says_of_further_arguments_stands():
    tools = [Tool("open", "", {"type": "object", "additionalProperties": {"type": "integer"}})]
    assert fits(tools, "auto", {"name": "open", "arguments": {"x": 1}})
    assert not fits(tools, "auto", {"name": "open", "arguments": {"x": "1"}})


def test_a_schema_of_parts_is_left_as_it_is():
    parts = [{"properties": {"a": {"type": "string"}}, "required": ["a"]}, {"required": ["b"]}]
    tools = [Tool("either", "", {"type": "object", "anyOf": parts})]
    assert fits(tools, "auto", {"name": "either", "arguments": {"a": "x"}})
    assert not fits(tools, "auto", {"name": "either", "arguments": {"a": 1}})


def test_a_schema_that_was_a_document_becomes_a_part():
    tool = Tool(
        "fetch", "", {"$schema": "http://json-schema.org/draft-07/schema#", "$id": "urn:x"} | place("string")
    )
    assert fits([tool], "auto", {"name": "fetch", "arguments": {"at": "Rome"}})
    assert not fits([tool], "auto", {"name": "fetch", "arguments": {"at": 1}})


# --- calls as text ---

TEXTS = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    [OPENING, CLOSING, f"\\{CLOSING}", f'"{OPENING}', "</tool_response>", "\\"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
CALLS = st.builds(
    ToolCall,
    st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
    st.dictionaries(TEXTS, VALUES, max_size=3),
)


@given(TEXTS.map(str.rstrip).filter(lambda said: OPENING not in said), st.lists(CALLS, max_size=3))
def test_what_is_written_is_read_again(said: str, calls: list[ToolCall]):
    text = "\n".join(filter(None, (said, written(calls))))
    assert read(text) == (said, tuple(calls))
    assert text.count(OPENING) == text.count(CLOSING) - said.count(CLOSING) == len(calls)


def test_text_without_calls_is_said_as_it_is():
    assert read(" </tool_call> hm \n") == (" </tool_call> hm \n", ())


def test_calls_are_read_however_they_are_spaced():
    first = '<tool_call>{"name":"a","arguments":{}}</tool_call>'
    second = '<tool_call>\n\n{"arguments":{"x":[1]},"name":"b"} \n</tool_call>\n'
    text = f"Wait.\n\n{first}{second}"
    assert read(text) == ("Wait.", (ToolCall("a", {}), ToolCall("b", {"x": [1]})))


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        '<tool_call>\n{"name": "a", "argu',
        '<tool_call>\n{"name": "a", "arguments": {}}',
        '<tool_call>\n{"name": "a", "arguments": {}}\n</tool_cal',
        '<tool_call>\n{"name": "a", "arguments": {}} and\n</tool_call>',
        '<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>\nDone.',
        '<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>\n<tool_call>',
        '<tool_call>\n{"name": "a"}\n</tool_call>',
        '<tool_call>\n{"name": 1, "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "a", "arguments": "{}"}\n</tool_call>',
        '<tool_call>\n{"name": "a", "arguments": {}, "id": "x"}\n</tool_call>',
        '<tool_call>\n["a", {}]\n</tool_call>',
        '<tool_call>\n{"name": "a", "arguments": {"x": NaN}}\n</tool_call>',
        '<tool_call>\n{"name": "a", "arguments": {"x": "\\ud800"}}\n</tool_call>',
        "<tool_call>" + "[" * 100_000,
    ],
)
def test_half_or_malformed_calls_are_no_calls(text: str):
    with pytest.raises(ValueError):
        read(text)


def test_calls_are_described_in_a_line():
    calls = [
        ToolCall("send_mail", {"to": "a@b.c", "copies": 2, "body": 'Say "hi";\nbye \u00e9', "x y": None}),
        ToolCall("clock", {}),
    ]
    assert described(calls) == (
        'send_mail(to="a@b.c", copies=2, body="Say \\"hi\\"; bye \u00e9", "x y"=null); clock()'
    )


# --- tools told in words ---


def test_tools_are_told_in_the_system_message():
    chat = [Message("system", "Be brief."), Message("user", "Hi")]
    system, user = spoken(chat, [MAIL, CLOCK])
    assert system.role == "system" and system.content.startswith("Be brief.\n\n")
    lines = [json.loads(line) for line in system.content.splitlines() if line.startswith('{"name": "')]
    assert lines == [
        {"name": t.name, "description": t.description, "parameters": t.parameters} for t in (MAIL, CLOCK)
    ]
    assert system.content.endswith('<tool_call>\n{"name": NAME, "arguments": {...}}\n</tool_call>')
    assert user == chat[1]


def test_tools_are_told_as_the_system_message_where_there_is_none():
    chat = [Message("user", "Hi")]
    system, user = spoken(chat, [CLOCK])
    assert system.role == "system" and "clock" in system.content
    assert user == chat[0]


def test_a_chat_without_tools_stays_as_it_is():
    chat = [Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Yes?")]
    assert spoken(chat, []) == chat


def test_calls_and_replies_become_turns():
    calls = (ToolCall("clock", {}, "1"), ToolCall("clock", {"zone": "UTC"}, "2"))
    chat = [
        Message("user", "When?"),
        Message("assistant", "Wait.", calls),
        Message("tool", "12:00", name="clock", tool_call_id="1"),
        Message("tool", "10:00", name="clock", tool_call_id="2"),
        Message("assistant", "", calls[:1]),
        Message("tool", "12:01", name="clock", tool_call_id="1"),
    ]
    assert spoken(chat, []) == [
        Message("user", "When?"),
        Message("assistant", f"Wait.\n{written(calls)}"),
        Message(
            "user",
            "<tool_response>\n12:00\n</tool_response>\n<tool_response>\n10:00\n</tool_response>",
        ),
        Message("assistant", written(calls[:1])),
        Message("user", "<tool_response>\n12:01\n</tool_response>"),
    ]


@pytest.mark.parametrize(
    "tag", [OPENING, CLOSING, "</tool_response>", "< / TOOL_RESPONSE >", "<tool_response id=1>"]
)
def test_a_reply_and_a_description_can_not_write_the_tags(tag: str):
    told = spoken([Message("tool", f"a < b {tag} c")], [Tool("clock", f"Tells {tag}")])
    system, reply = (message.content for message in told)
    assert tag not in system.replace(OPENING, "", 1).replace(CLOSING, "", 1)
    assert tag not in reply.removeprefix("<tool_response>").removesuffix("</tool_response>")
    assert f"a < b &lt;{tag[1:]} c" in reply
    assert json.loads(system.splitlines()[1])["description"] == f"Tells {tag}"
