"""Tools in a chat: how a call is written, read, told to the model and shown to the judge.

A call is written as models of the Hermes family write it::

    <tool_call>
    {"name": "send_mail", "arguments": {"to": "a@b.c"}}
    </tool_call>
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from rain_llm.errors import PromptError
from rain_llm.redaction import brief
from rain_llm.schemas import schema_of
from rain_llm.types import Message, Tool, ToolCall

OPENING = "<tool_call>"
CLOSING = "</tool_call>"

CHOICES = ("auto", "none", "any")
"""What ``tool_choice`` may be beside the name of a tool."""

_TAKEN = (*CHOICES, "required")  # what else OpenAI's API has for "any"

_NAME = re.compile(r"[A-Za-z0-9_./-]{1,128}")  # as MCP has them
_TAG = re.compile(r"<(?=\s*/?\s*tool_(?:call|response))", re.IGNORECASE)
_ESCAPE = re.compile(r'\\(["\\])|\\(?:u[0-9a-f]{4}|.)')
_LITERAL = ("enum", "const", "default", "examples")  # values, in which "$ref" is a word like any other
_SCHEMAS_BY_NAME = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")


# --- what a task asks for -------------------------------------------------------------------------


def prepared(tools: Sequence[Any]) -> tuple[Tool, ...]:
    """Return tools whose parameters are plain JSON schemas, whatever they were given as.

    Raises:
        PromptError: some are no schema; names the tool.
    """
    return tuple(_prepared(tool) for tool in tools)


def _prepared(tool: Any) -> Any:
    if not isinstance(tool, Tool):
        return tool  # check_tools refuses it
    try:
        return replace(tool, parameters=schema_of(tool.parameters))
    except PromptError as error:
        raise PromptError(f"the parameters of the tool {tool.name!r:.140}: {error}") from error


def check_tools(tools: Sequence[Tool], choice: str) -> None:
    """Check the tools of a task and its choice among them.

    Raises:
        PromptError: a tool's name, description or parameters cannot be used, two tools have one name, or the
            choice names none of them.
    """
    for tool in tools:
        if not isinstance(getattr(tool, "name", None), str):
            raise PromptError(
                f"a tool is a {type(tool).__name__} without a name: give rain_llm.Tool(name, ...)"
            )
    names = [tool.name for tool in tools]
    times = Counter(names)
    for tool in tools:
        if not _NAME.fullmatch(tool.name):
            raise PromptError(
                f"a tool is named {tool.name!r:.140}: a name has 1 to 128 of the letters a to z and A to Z, "
                "the digits, '_', '-', '.' and '/'"
            )
        if tool.name in _TAKEN:
            raise PromptError(
                f"a tool is named {tool.name!r}, which is a tool_choice: give it another name than "
                + ", ".join(_TAKEN)
            )
        if times[tool.name] > 1:
            raise PromptError(f"{times[tool.name]} tools are named {tool.name!r}: give each its own name")
        _check_parameters(tool)
    if choice not in ("auto", "none") and not tools:
        raise PromptError(f"tool_choice={choice!r:.140} asks for a call, and there are no tools: give tools")
    if choice not in CHOICES and choice not in names:
        raise PromptError(
            f"tool_choice={choice!r:.140} names no tool: choose one of {', '.join((*CHOICES, *names))}"
        )


def check_calls(calls: Sequence[ToolCall]) -> None:
    """Check calls that somebody else has written.

    Raises:
        PromptError: a call's name or arguments cannot be written as JSON.
    """
    for call in calls:
        try:
            if not all(isinstance(name, str) for name in (call.name, *call.arguments)):
                raise TypeError("a name is no text")
            json.dumps([call.name, dict(call.arguments)], allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise PromptError(
                f"a call of {call.name!r} cannot be written as JSON ({error}): give plain data"
            ) from error


def _check_parameters(tool: Tool) -> None:
    def refuse(what: str) -> NoReturn:
        raise PromptError(
            f"the tool {tool.name!r} has {what}: its parameters must be the JSON schema of an object, as in "
            '{"type": "object", "properties": {"city": {"type": "string"}}}'
        )

    if not isinstance(tool.description, str):
        refuse(f"a description that is no text, {brief(tool.description)}")
    if not isinstance(tool.parameters, Mapping):
        refuse(f"parameters={brief(tool.parameters)}")
    try:
        json.dumps([tool.description, dict(tool.parameters)], allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        refuse(f"what cannot be written as JSON ({error})")
    schema = _plain(tool.parameters)
    if schema.get("type", "object") != "object":
        refuse(f"parameters of the type {brief(schema['type'])}")
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not all(isinstance(p, dict | bool) for p in properties.values()):
        refuse(f"parameters with properties={brief(properties)}")
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        refuse(f"parameters with required={brief(required)}")


def call_schema(tools: Sequence[Tool], choice: str) -> str:
    """Return the JSON text of the schema of one call.

    Each tool's parameters stand in ``$defs`` under the tool's name, so that what they refer to in
    themselves is found, and two tools' definitions of one name stay apart.

    Args:
        tools: that were checked, at least one.
        choice: the name of the only tool that may be called; "auto" or "any": all may.
    """
    chosen = [tool for tool in tools if choice in (tool.name, *CHOICES)]
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool.name}, "arguments": {"$ref": _place(tool)}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in chosen
    ]
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    definitions = {tool.name: _arguments(tool) for tool in chosen}
    return json.dumps(schema | {"$defs": definitions}, ensure_ascii=False, separators=(",", ":"))


def _place(tool: Tool) -> str:
    """Return where the schema of a call has a tool's parameters."""
    return f"#/$defs/{tool.name.replace('/', '~1')}"


def _arguments(tool: Tool) -> dict[str, Any]:
    schema: dict[str, Any] = _rooted(_plain(tool.parameters), _place(tool))
    for key in ("$schema", "$id"):
        schema.pop(key, None)  # of a document of its own, which this no longer is
    if not schema.keys() & {"$ref", "anyOf", "oneOf", "allOf"}:
        # An object of which nothing more is said may hold anything; a model would write anything.
        schema = {"type": "object", "properties": {}, "additionalProperties": False} | schema
    return {"type": "object"} | schema


def _rooted(schema: Any, root: str) -> Any:
    """Return a schema in which what it refers to in itself is looked for below ``root``."""
    if isinstance(schema, list):
        return [_rooted(part, root) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _SCHEMAS_BY_NAME and isinstance(value, dict):
            made[key] = {name: _rooted(part, root) for name, part in value.items()}
        elif key == "$ref" and isinstance(value, str) and (value == "#" or value.startswith("#/")):
            made[key] = root + value[1:]
        else:
            made[key] = value if key in _LITERAL else _rooted(value, root)
    return made


def _plain(schema: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dict(schema)))
    return plain


# --- calls as text --------------------------------------------------------------------------------


def read(text: str) -> tuple[str, tuple[ToolCall, ...]]:
    """Return what an answer says, and the calls that it ends with; their ids are empty.

    Raises:
        ValueError: a call is not whole, or something follows the calls that is none.
    """
    said, opened, rest = text.partition(OPENING)
    if not opened:
        return text, ()
    calls = []
    while opened:
        call, rest = _read_call(rest.lstrip())
        calls.append(call)
        between, opened, rest = rest.partition(OPENING)
        if between.strip():
            raise ValueError(f"after a call stands {between.strip()[:40]!r}")
    return said.rstrip(), tuple(calls)


def _read_call(text: str) -> tuple[ToolCall, str]:
    """Return the call that a text begins with, behind its opening, and what follows its closing."""
    try:
        document, end = json.JSONDecoder(parse_constant=_no_number).raw_decode(text)
        json.dumps(document, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except RecursionError as error:
        raise ValueError("a call is nested too deeply") from error
    before, closed, rest = text[end:].partition(CLOSING)
    if not closed or before.strip():
        raise ValueError("a call is not closed")
    match document:
        case {"name": str(name), "arguments": dict(arguments), **more} if not more:
            return ToolCall(name, arguments), rest
    raise ValueError("a call is an object of a name and arguments")


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def written(calls: Sequence[ToolCall]) -> str:
    """Return calls as a model writes them; ``read`` reads the same calls again."""
    return "\n".join(
        f"{OPENING}\n{json_text({'name': call.name, 'arguments': dict(call.arguments)})}\n{CLOSING}"
        for call in calls
    )


def described(calls: Sequence[ToolCall]) -> str:
    """Return calls in a line, as they are shown to the judge: ``send_mail(to="a@b.c", copies=2)``."""
    return "; ".join(f"{call.name}({', '.join(map(_argument, call.arguments.items()))})" for call in calls)


def _argument(item: tuple[str, Any]) -> str:
    name = item[0] if item[0].isidentifier() else _shown(item[0])
    return f"{name}={_shown(item[1])}"


def _shown(value: Any) -> str:
    r"""Return a value as JSON in which line breaks and the like are spaces.

    As ``\n`` they would hide from the judge's own care what stands behind them.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _ESCAPE.sub(lambda found: found[0] if found[1] else " ", text)


def json_text(value: Any) -> str:
    """Return JSON text in which no tag of a call or of a reply stands: JSON can spell ``<`` otherwise."""
    return _TAG.sub(r"\\u003c", json.dumps(value, ensure_ascii=False))


# --- tools told in words ----------------------------------------------------------------------------


def quoted(reply: str) -> str:
    """Return a tool's reply in which no tag of a call or of a reply stands: ``<`` is ``&lt;`` there."""
    return _TAG.sub("&lt;", reply)


def spoken(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """Turn a chat with tools into one of plain messages, for a template that has no place for tools.

    The tools are told in the system message, calls are part of what the assistant says, and replies that
    follow each other are one turn of the user.
    """
    told: list[Message] = []
    for before, message in zip((None, *messages), messages, strict=False):
        if message.role == "tool":
            reply = f"<tool_response>\n{quoted(message.content)}\n</tool_response>"
            if before is not None and before.role == "tool":
                reply = f"{told.pop().content}\n{reply}"
            told.append(Message("user", reply))
        elif message.tool_calls:
            content = "\n".join(filter(None, (message.content, written(message.tool_calls))))
            told.append(replace(message, content=content, tool_calls=()))
        else:
            told.append(message)
    if tools:
        system = _told(tools)
        if told and told[0].role == "system":
            system = f"{told.pop(0).content}\n\n{system}"
        told.insert(0, Message("system", system))
    return told


def _told(tools: Sequence[Tool]) -> str:
    """Return which tools there are and how they are called: in few words, which small models read too."""
    lines = [
        json_text({"name": tool.name, "description": tool.description, "parameters": _plain(tool.parameters)})
        for tool in tools
    ]
    call = f'{OPENING}\n{{"name": NAME, "arguments": {{...}}}}\n{CLOSING}'
    return "\n".join(["You can call these tools:", *lines, "To call one, write:", call])
