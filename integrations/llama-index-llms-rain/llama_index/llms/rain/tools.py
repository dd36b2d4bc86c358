"""LlamaIndex's tools as ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from llama_index.core.tools import BaseTool, ToolMetadata

from rain_llm import PromptError
from rain_llm.types import Tool

_TOLD = ("description", "parameters")
_CHOICES = {"required": "any"}  # OpenAI's words for ours
_NAME = re.compile(r"[\w./-]+", re.ASCII)


def openai_tools(tools: Sequence[BaseTool]) -> list[dict[str, Any]]:
    """Return tools in OpenAI's form: plain data, which events and traces can hold.

    Names keep their dots and slashes, as MCP has them: an agent looks for a tool by its own name.
    """
    return [_openai_tool(tool.metadata) for tool in tools]


def _openai_tool(tool: ToolMetadata) -> dict[str, Any]:
    """Return a tool whole: LlamaIndex leaves out what a schema has beside its properties.

    Of a class that refers to itself that is everything, for such a schema is a reference.
    """
    made = tool.to_openai_tool(skip_length_check=True)
    own = type(tool).get_parameters_dict is not ToolMetadata.get_parameters_dict
    if tool.fn_schema is not None and not own:
        made["function"]["parameters"] = tool.fn_schema.model_json_schema()
    if tool.name and _NAME.fullmatch(tool.name):
        made["function"]["name"] = tool.name
    return made


def read_tools(tools: Sequence[Mapping[str, Any]]) -> list[Tool]:
    """Return tools in OpenAI's form as ours.

    Raises:
        PromptError: one of them has another form.
    """
    read = []
    for tool in tools:
        match tool:
            case {"function": {"name": _} as told}:
                read.append(replace(Tool(told["name"]), **{key: told[key] for key in _TOLD if told.get(key)}))
            case _:
                raise PromptError(
                    f"a tool is a {type(tool).__name__}: give tools to chat_with_tools, or in OpenAI's form, "
                    'as in {"type": "function", "function": {"name": ..., "parameters": {...}}}'
                )
    return read


def read_choice(choice: str | Mapping[str, Any]) -> str:
    """Return a tool choice as ours: "auto", "none", "any" or a tool's name.

    Raises:
        PromptError: it is neither a text nor OpenAI's form of a tool's name.
    """
    match choice:
        case str():
            return _CHOICES.get(choice, choice)
        case {"function": {"name": str(name)}}:
            return name
    kind = type(choice).__name__
    raise PromptError(f"tool_choice is a {kind}: give 'auto', 'none', 'any' or the name of a tool")
