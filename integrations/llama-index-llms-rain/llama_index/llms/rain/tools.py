"""LlamaIndex's tools as ours."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from llama_index.core.tools import BaseTool, FunctionTool, ToolMetadata

from rain_llm import PromptError
from rain_llm.types import Tool

_TOLD = ("description", "parameters")
_NAME = re.compile(r"[\w./-]+", re.ASCII)
_NO_NAME = re.compile(r"[^\w./-]", re.ASCII)


def openai_tools(tools: Sequence[BaseTool]) -> list[dict[str, Any]]:
    """Return tools in OpenAI's form: plain data, which events and traces can hold.

    Names stay as they are: an agent looks for a tool by its own name.
    """
    return [_openai_tool(tool.metadata) for tool in tools]


def callable_tools(tools: Sequence[BaseTool]) -> list[BaseTool]:
    """Return tools that LlamaIndex can call by what the model writes.

    It looks for the properties of a function's schema, which a class that refers to itself has not at its
    root; and a class such as ``Box[int]``, of which it makes a tool, has no name of a tool.
    """
    return [_callable(tool) for tool in tools]


def _callable(tool: BaseTool) -> BaseTool:
    about = tool.metadata
    is_whole = _tells_itself(about) or "properties" in about.get_parameters_dict()
    if not isinstance(tool, FunctionTool) or (is_whole and _NAME.fullmatch(about.get_name())):
        return tool
    twin = copy.copy(tool)
    twin._metadata = about if is_whole else _Whole(**vars(about))
    twin._metadata = replace(twin._metadata, name=_NO_NAME.sub("_", about.get_name()))
    return twin


class _Whole(ToolMetadata):
    """Tells the properties of a class that refers to itself, too."""

    def get_parameters_dict(self) -> dict[str, Any]:
        """Return the class's schema, its definition written out at the root."""
        schema = self.fn_schema.model_json_schema() if self.fn_schema else {}
        root = schema["$defs"][schema.pop("$ref").rpartition("/")[2]] if "$ref" in schema else {}
        return {"type": "object", "properties": {}, **root, **schema}


def _tells_itself(about: ToolMetadata) -> bool:
    return type(about).get_parameters_dict is not ToolMetadata.get_parameters_dict


def _openai_tool(tool: ToolMetadata) -> dict[str, Any]:
    """Return a tool whole: LlamaIndex leaves out what a schema has beside its properties.

    Of a class that refers to itself that is everything, for such a schema is a reference.
    """
    made = tool.to_openai_tool(skip_length_check=True)
    if tool.fn_schema is not None and not _tells_itself(tool):
        made["function"]["parameters"] = tool.fn_schema.model_json_schema()
    made["function"]["name"] = tool.get_name()
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
