"""Read a chat request's tools, tool choice and response format in the form of OpenAI's API.

Tools and formats in the forms of Anthropic, MCP, Amazon Bedrock and llama.cpp are read, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rain_llm.errors import PromptError
from rain_llm.schemas import schema_of
from rain_llm.types import Message, Task, Tool

_WITHIN = ("function", "json_schema", "toolSpec")  # as OpenAI, and Amazon Bedrock, wrap what they name
_PARAMETERS = ("parameters", "input_schema", "inputSchema", "schema")
_ABOUT = {"name", "description", "strict", "type", "cache_control", *_PARAMETERS}
_NO_NAME = re.compile(r"[^A-Za-z0-9_./-]")
_LONGEST_NAME = 128


ASKED = ("tools", "tool_choice", "parallel_tool_calls", "response_format")
"""Fields of a chat request besides its messages and parameters."""


def task_of_chat(
    messages: str | Sequence[Message],
    asked: Mapping[str, Any],
    context: str | Sequence[str] = "",
    question: str = "",
) -> Task:
    """Return a chat request as a task.

    Args:
        messages: of the chat.
        asked: these fields by OpenAI's names, see :data:`ASKED`; tools may also be ``rain_llm.Tool``.
        context: passages that the answer is judged against.
        question: what the judge reads as the question; "": the last user turn.

    Raises:
        PromptError: a tool, the choice or the format cannot be read.
    """
    return Task(
        prompt=messages,
        context=context,
        question=question,
        tools=tools_of(asked.get("tools") or ()),
        tool_choice=tool_choice_of(asked.get("tool_choice")),
        parallel_calls=asked.get("parallel_tool_calls") is not False,
        schema=format_of(asked.get("response_format")),
    )


def tool_choice_of(choice: object) -> str:
    """Return a tool choice of OpenAI's or Anthropic's API as ours: "auto", "none", "any" or a tool's name.

    Raises:
        PromptError: it is none.
    """
    match choice:
        case None | False:
            return "auto"
        case True | "required" | {"type": "required"}:
            return "any"
        case str(word) | {"type": "auto" | "none" | "any" as word}:
            return str(word)
        case {"function": {"name": str(name)}} | {"name": str(name)}:
            return name
    raise PromptError(f"tool_choice is {choice!r:.80}: give 'auto', 'none', 'any' or the name of a tool")


def tools_of(tools: Iterable[Any]) -> list[Tool]:
    """Return tools as ours: those of OpenAI's API, and those that are ours already.

    Raises:
        PromptError: one of them is no function that can be called.
    """
    return [tool if isinstance(tool, Tool) else _tool(tool) for tool in tools]


def _tool(tool: object) -> Tool:
    if not isinstance(tool, Mapping):
        raise PromptError(
            f"a tool is a {type(tool).__name__}: give rain_llm.Tool(...), or OpenAI's form, as in "
            "{'type': 'function', 'function': {'name': ..., 'parameters': {...}}}"
        )
    about = function_of(tool)
    made = Tool(about["name"], about["description"])
    return Tool(made.name, made.description, about.get("parameters") or made.parameters)


def function_of(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return the function that a dict of some API describes, as OpenAI's ``function``.

    Raises:
        PromptError: it has no name, or is no function.
    """
    within = next((tool[key] for key in _WITHIN if isinstance(tool.get(key), Mapping)), None)
    given = tool if within is None else within
    kind = tool.get("type")
    parameters = next((given[key] for key in _PARAMETERS if given.get(key) not in (None, {})), None)
    if "toolSpec" in tool and isinstance(parameters, Mapping):
        parameters = parameters.get("json")
    others = {key: value for key, value in given.items() if key not in _ABOUT}
    if isinstance(name := given.get("name"), str):
        if kind not in (None, "function", "json_schema", "object") and parameters is None:
            raise PromptError(f"only functions can be called, not a tool of the type {kind!r:.40}")
        return function(name, given.get("description"), others if parameters is None else parameters)
    if kind not in (None, "object") and within is None:
        raise PromptError(f"only functions can be called, not a tool of the type {kind!r:.40}")
    schema = rooted(given)
    if not isinstance(name := schema.pop("title", None), str):
        raise PromptError(
            "a tool has no name: give {'name': ..., 'parameters': {...}}, or a JSON schema with a 'title'"
        )
    return function(tool_name(name), schema.pop("description", None), schema)


def function(name: str, description: Any, parameters: Any) -> dict[str, Any]:
    """Return a function in OpenAI's form; a description that its parameters repeat is left out."""
    made = {"name": name, "description": description or ""}
    if isinstance(parameters, Mapping) and parameters.get("description") == made["description"]:
        parameters = {key: part for key, part in parameters.items() if key != "description"}
    return made | ({"parameters": parameters} if parameters else {})


def tool_name(title: str) -> str:
    """Return the title of a class as the name of a tool: ``Box[int]`` is none."""
    return _NO_NAME.sub("_", title)[:_LONGEST_NAME]


def rooted(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema whose root is written out, where it only refers to a definition: to itself."""
    ref = schema.get("$ref")
    if not isinstance(ref, str):
        return dict(schema)
    kept, _, name = ref.removeprefix("#/").partition("/")
    definitions = schema.get(kept)
    root = definitions.get(name) if isinstance(definitions, Mapping) else None
    if not isinstance(root, Mapping):
        return dict(schema)
    return {**root, **{key: value for key, value in schema.items() if key != "$ref"}}


def document_of(schema: Any) -> dict[str, Any]:
    """Return the JSON schema of documents: of a class, a type, or a dict in any wrapper.

    Raises:
        PromptError: it is none.
    """
    match schema:
        case {"toolSpec": {"inputSchema": {"json": dict(within)}}}:
            return schema_of(within)
        case {"toolSpec": _}:
            raise PromptError("a toolSpec has no schema: give {'toolSpec': {'inputSchema': {'json': {...}}}}")
    return schema_of(schema)


def format_of(response_format: Any) -> dict[str, Any] | None:
    """Return the JSON schema that a ``response_format`` asks for: OpenAI's, or a class. None: text.

    Raises:
        PromptError: it asks for nothing known.
    """
    match response_format:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object", "schema": schema}:  # as of llama.cpp
            return document_of(schema)
        case {"type": "json_object"}:
            return {"type": "object"}
        case {"type": "json_schema", **more} if not more.keys() & {"json_schema", "schema"}:
            pass
        case {"type": "json_schema"} | type():
            try:
                return document_of(response_format)
            except PromptError as error:
                raise PromptError(f"response_format: {error}") from error
    raise PromptError(
        f"response_format, a {type(response_format).__name__}, asks for nothing known: there are "
        "{'type': 'text'}, {'type': 'json_object'}, {'type': 'json_schema', 'json_schema': {'schema': ...}}, "
        "and classes"
    )
