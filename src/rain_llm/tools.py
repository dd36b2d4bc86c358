"""Tools and tool calls: check, parse and format them for the model and for the judge.

A call has the format of the Hermes family of models::

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
"""Values of ``tool_choice`` besides the name of a tool."""

_TAKEN = (*CHOICES, "required")  # OpenAI's name for "any"

_NAME = re.compile(r"[A-Za-z0-9_./-]{1,128}")  # as in MCP
_TAG = re.compile(r"<(?=\s*/?\s*tool_(?:call|response))", re.IGNORECASE)
_ESCAPE = re.compile(r'\\(["\\])|\\(?:u[0-9a-f]{4}|.)')
_LITERAL = ("enum", "const", "default", "examples")  # their values are data: "$ref" has no meaning there
_SCHEMAS_BY_NAME = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")


# --- checks ---------------------------------------------------------------------------------------


def prepared(tools: Sequence[Any]) -> tuple[Tool, ...]:
    """Convert the parameters of tools to plain JSON schemas.

    Raises:
        PromptError: the parameters of a tool are not a schema; the message names the tool.
    """
    return tuple(_prepared(tool) for tool in tools)


def _prepared(tool: Any) -> Any:
    if not isinstance(tool, Tool):
        return tool  # check_tools raises an error for it
    try:
        return replace(tool, parameters=schema_of(tool.parameters))
    except PromptError as error:
        raise PromptError(f"the parameters of the tool {tool.name!r:.140}: {error}") from error


def check_tools(tools: Sequence[Tool], choice: str) -> None:
    """Check the tools of a task and its choice among them.

    Raises:
        PromptError: a tool's name, description or parameters are invalid, two tools have the same name, or
            there is no tool with the name of the choice.
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
        raise PromptError(f"tool_choice={choice!r:.140} requires a call, but there are no tools: give tools")
    if choice not in CHOICES and choice not in names:
        raise PromptError(
            f"tool_choice={choice!r:.140} names no tool: choose one of {', '.join((*CHOICES, *names))}"
        )


def check_calls(calls: Sequence[ToolCall]) -> None:
    """Check tool calls that come from the user.

    Raises:
        PromptError: a call's name or arguments cannot be converted to JSON.
    """
    for call in calls:
        try:
            if not all(isinstance(name, str) for name in (call.name, *call.arguments)):
                raise TypeError("a name is not a string")
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
        refuse(f"a description that is not a string, {brief(tool.description)}")
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
    """Build the JSON schema of one call, as JSON text.

    Each tool's parameters are in ``$defs`` under the tool's name, so that references within them work and
    definitions of different tools do not collide.

    Args:
        tools: checked tools, at least one.
        choice: the name of the only tool that may be called; "auto" or "any": any tool.
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
    """Return the reference to a tool's parameters in the schema of a call."""
    return f"#/$defs/{tool.name.replace('/', '~1')}"


def _arguments(tool: Tool) -> dict[str, Any]:
    schema: dict[str, Any] = _rooted(_plain(tool.parameters), _place(tool))
    for key in ("$schema", "$id"):
        schema.pop(key, None)  # only valid at the root of a schema
    if not schema.keys() & {"$ref", "anyOf", "oneOf", "allOf"}:
        # By default an object may have any property, and a model would write any.
        schema = {"type": "object", "properties": {}, "additionalProperties": False} | schema
    return {"type": "object"} | schema


def _rooted(schema: Any, root: str) -> Any:
    """Prefix all references within a schema with ``root``."""
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
    """Split an answer into its text and the calls at its end; the ids of the calls are empty.

    Raises:
        ValueError: a call is incomplete, or other text follows the calls.
    """
    before, opened, rest = text.partition(OPENING)
    if not opened:
        return text, ()
    calls = []
    while opened:
        call, rest = _read_call(rest.lstrip())
        calls.append(call)
        between, opened, rest = rest.partition(OPENING)
        if between.strip():
            raise ValueError(f"a call is followed by {between.strip()[:40]!r}")
    return before.rstrip(), tuple(calls)


def _read_call(text: str) -> tuple[ToolCall, str]:
    """Parse a call from a text after its opening; return it and the text after its closing."""
    try:
        document, end = json.JSONDecoder(parse_constant=_no_number).raw_decode(text)
        json.dumps(document, ensure_ascii=False).encode()  # raises for half of a surrogate pair
    except RecursionError as error:
        raise ValueError("a call is nested too deeply") from error
    before, closed, rest = text[end:].partition(CLOSING)
    if not closed or before.strip():
        raise ValueError("a call is not closed")
    match document:
        case {"name": str(name), "arguments": dict(arguments), **more} if not more:
            return ToolCall(name, arguments), rest
    raise ValueError("a call must be an object with a name and arguments")


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is not valid JSON")


def written(calls: Sequence[ToolCall]) -> str:
    """Format calls as a model writes them; :func:`read` parses the same calls."""
    return "\n".join(
        f"{OPENING}\n{json_text({'name': call.name, 'arguments': dict(call.arguments)})}\n{CLOSING}"
        for call in calls
    )


def described(calls: Sequence[ToolCall]) -> str:
    """Format calls on one line for the judge: ``send_mail(to="a@b.c", copies=2)``."""
    return "; ".join(f"{call.name}({', '.join(map(_argument, call.arguments.items()))})" for call in calls)


def _argument(item: tuple[str, Any]) -> str:
    name = item[0] if item[0].isidentifier() else _shown(item[0])
    return f"{name}={_shown(item[1])}"


def _shown(value: Any) -> str:
    r"""Format a value as JSON with spaces in place of line breaks and other escapes.

    An escape such as ``\n`` would hide the word after it from the removal of fake verdicts.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _ESCAPE.sub(lambda found: found[0] if found[1] else " ", text)


def json_text(value: Any) -> str:
    """Format JSON without tags of calls or results: their ``<`` is escaped."""
    return _TAG.sub(r"\\u003c", json.dumps(value, ensure_ascii=False))


# --- tools in plain messages ------------------------------------------------------------------------


def quoted(reply: str) -> str:
    """Escape the tags of calls and results in a tool's result: ``<`` becomes ``&lt;``."""
    return _TAG.sub("&lt;", reply)


def spoken(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """Convert a chat with tools to plain messages, for a template that does not support tools.

    The system message describes the tools, calls become part of the assistant's text, and consecutive results
    become one user message.
    """
    plain: list[Message] = []
    for before, message in zip((None, *messages), messages, strict=False):
        if message.role == "tool":
            reply = f"<tool_response>\n{quoted(message.content)}\n</tool_response>"
            if before is not None and before.role == "tool":
                reply = f"{plain.pop().content}\n{reply}"
            plain.append(Message("user", reply))
        elif message.tool_calls:
            content = "\n".join(filter(None, (message.content, written(message.tool_calls))))
            plain.append(replace(message, content=content, tool_calls=()))
        else:
            plain.append(message)
    if tools:
        system = _description(tools)
        if plain and plain[0].role == "system":
            system = f"{plain.pop(0).content}\n\n{system}"
        plain.insert(0, Message("system", system))
    return plain


def _description(tools: Sequence[Tool]) -> str:
    """Describe the tools and how to call them, in few words for small models."""
    lines = [
        json_text({"name": tool.name, "description": tool.description, "parameters": _plain(tool.parameters)})
        for tool in tools
    ]
    call = f'{OPENING}\n{{"name": NAME, "arguments": {{...}}}}\n{CLOSING}'
    return "\n".join(["You can call these tools:", *lines, "To call one, write:", call])
