"""LlamaIndex's tools: as the model is shown them, and as LlamaIndex can call them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llama_index.core.tools import BaseTool, FunctionTool, ToolMetadata

from rain_llm.chat import function, rooted, tool_name


def openai_tools(tools: Sequence[BaseTool]) -> list[dict[str, Any]]:
    """Return tools in OpenAI's form: plain data, which events and traces can hold."""
    made = [_whole(tool.metadata) for tool in tools]
    return [
        {"type": "function", "function": function(t.get_name(), t.description, t.get_parameters_dict())}
        for t in made
    ]


def callable_tools(tools: Sequence[BaseTool]) -> list[BaseTool]:
    """Return tools that LlamaIndex can call by what the model writes.

    For that it looks at the properties of a tool's schema, and at its name: that of a class such as
    ``Box[int]``, of which it makes a tool, is no name of one.
    """
    return [_callable(tool) if isinstance(tool, FunctionTool) else tool for tool in tools]


def _callable(tool: FunctionTool) -> FunctionTool:
    twin = copy.copy(tool)
    about = _whole(tool.metadata)
    twin._metadata = replace(about, name=tool_name(about.get_name()))
    return twin


class _Whole(ToolMetadata):
    """Has all of its class's schema.

    LlamaIndex leaves out what stands beside the properties: of a class that refers to itself, everything.
    """

    def get_parameters_dict(self) -> dict[str, Any]:
        if self.fn_schema is None:
            return super().get_parameters_dict()
        return {"type": "object", "properties": {}, **rooted(self.fn_schema.model_json_schema())}


def _whole(about: ToolMetadata) -> ToolMetadata:
    """Return what describes a tool with all of its schema; as it is, where it has a schema of its own."""
    has_own = type(about).get_parameters_dict is not ToolMetadata.get_parameters_dict
    return about if has_own else _Whole(**vars(about))
