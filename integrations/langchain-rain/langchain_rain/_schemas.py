"""LangChain's tools and schemas in OpenAI's form, without loss.

LangChain's ``convert_to_openai_tool`` inlines references, and drops them where a type refers to itself. So
names and descriptions are LangChain's, and the parameters are the class's own schema.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, cast, get_origin, get_type_hints

from langchain_core.tools import BaseTool, create_schema_from_function
from langchain_core.tools import Tool as TextTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass, is_pydantic_v1_subclass
from pydantic import BaseModel, TypeAdapter
from typing_extensions import TypedDict, is_typeddict

from langchain_rain._typeddict import readable
from rain_llm import PromptError
from rain_llm.chat import document_of, function, function_of, rooted, tool_name

AnyTool = Mapping[str, Any] | type | Callable[..., Any] | BaseTool

_TYPING = ("typing", "typing_extensions")  # whose aliases and new types have no origin
_NO_OBJECTS = (Enum, str, int, float, bytes, list, tuple, set)
_VALUES = {"enum", "const", "default", "examples"}  # in which "title" is a word like any other
_BY_NAME = {"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"}


def openai_tool(tool: AnyTool) -> dict[str, Any]:
    """Return a tool in OpenAI's form, with references in its parameters.

    Raises:
        ValueError: it is no function that can be called.
    """
    function = function_of(tool) if isinstance(tool, Mapping) else _made(tool)
    return {"type": "function", "function": function}


def is_pydantic_1(kind: Any) -> bool:
    """Whether it is a model class of pydantic 1."""
    return isinstance(kind, type) and is_pydantic_v1_subclass(kind)


def is_function(kind: Any) -> bool:
    """Whether it is a function, and not a type that can be called."""
    is_type = isinstance(kind, type) or get_origin(kind) is not None or type(kind).__module__ in _TYPING
    return callable(kind) and not is_type


def named(schema: Any) -> Any:
    """Return a schema with a name for its tool call, if it is a dict without one."""
    if (
        not isinstance(schema, Mapping)
        or {"name", "title", "$ref", "function", "json_schema", "toolSpec"} & schema.keys()
    ):
        return schema
    return {"title": "answer", **schema}


def traced_schema(schema: Any, document: dict[str, Any]) -> Any:
    """Return a schema for LangChain's tracers in a form whose references they keep."""
    is_class = isinstance(schema, type) and issubclass(schema, BaseModel)
    if (is_class or isinstance(schema, Mapping)) and "$ref" not in json.dumps(document):
        return schema
    about = schema if isinstance(schema, Mapping) else {"title": getattr(schema, "__name__", None)}
    return {"name": str(about.get("title") or about.get("name") or "answer"), "parameters": document}


def document_schema(schema: Any) -> dict[str, Any]:
    """Return the JSON schema of documents: of a class or another type, a tool, or a dict in any wrapper.

    Raises:
        PromptError: it is not a schema.
    """
    if isinstance(schema, Mapping):
        return document_of(schema)
    if is_function(schema) or isinstance(schema, BaseTool) or is_typeddict(schema):
        function = _made(schema)
        about = {"title": function["name"], "description": function["description"]}
        return document_of(about | function.get("parameters", {"type": "object", "properties": {}}))
    if is_pydantic_1(schema):
        return document_of(schema.schema())
    try:
        kind = readable(schema)
    except NameError as error:
        raise PromptError(f"no JSON schema can be made of {schema!r:.80}: {error}") from error
    return document_of(kind)


def _made(tool: Any) -> dict[str, Any]:
    """Return the function that LangChain makes of a tool, with the parameters of its own schema."""
    if isinstance(tool, BaseTool):
        if isinstance(tool, TextTool) and not tool.args_schema:  # one text, or another API's custom tool
            return _converted(tool)
        return function(tool.name, tool.description, _untitled(_own_schema(tool.tool_call_schema)))
    if is_typeddict(tool) or dataclasses.is_dataclass(tool) or is_basemodel_subclass(tool):
        schema = _untitled(_own_schema(tool), keep=True)
        if is_typeddict(tool):
            _describe(schema, tool)
        name = tool_name(schema.pop("title", None) or tool.__name__)
        return function(name, schema.pop("description", None), schema)
    if not callable(tool):
        return _converted(tool)
    if issubclass(tool, _NO_OBJECTS) if isinstance(tool, type) else not is_function(tool):
        raise ValueError(f"{tool!r:.80} is no object, and so no tool's arguments: use method='json_schema'")
    name = tool.__name__ if hasattr(tool, "__name__") else type(tool).__name__
    try:
        model = create_schema_from_function(
            name,
            tool,
            filter_args=(),
            parse_docstring=True,
            error_on_invalid_docstring=False,
            include_injected=False,
        )
    except (TypeError, NameError) as error:  # a partial, say, or an annotation that cannot be resolved
        raise ValueError(f"no tool can be made of {tool!r:.80}: {error}: give a function") from error
    schema = _untitled(_own_schema(model))
    schema.pop("description", None)
    return function(name, model.__doc__, schema)


def _converted(tool: Any) -> dict[str, Any]:
    converted = convert_to_openai_tool(tool)
    if "function" not in converted:
        raise ValueError(f"only functions can be called, not a tool of the type {converted.get('type')!r}")
    return cast("dict[str, Any]", converted["function"])


def _own_schema(kind: Any) -> dict[str, Any]:
    """Return the JSON schema that a type has of itself."""
    if isinstance(kind, Mapping):
        return rooted(kind)
    if is_pydantic_1(kind):
        return rooted(kind.schema())
    if is_basemodel_subclass(kind):
        return rooted(kind.model_json_schema())
    try:
        return rooted(TypeAdapter(readable(kind)).json_schema())
    except Exception as error:  # pydantic raises what the types raise
        why = str(error).partition("\n")[0]
        raise PromptError(f"no JSON schema can be made of {kind!r:.80}: {why}") from error


def _describe(schema: dict[str, Any], kind: Any) -> None:
    """Add what LangChain reads in the docstring of a ``TypedDict``.

    It reads that of a class with the same names: it cannot read ``NotRequired`` and the like.
    """
    names = TypedDict(kind.__name__, dict.fromkeys(get_type_hints(kind), Any))  # type: ignore[misc]
    names.__doc__ = kind.__dict__.get("__doc__") or ""  # and not that of ``dict``
    function = _converted(names)
    schema["description"] = function.get("description", "")
    for name, part in function["parameters"]["properties"].items():
        if "description" in part:
            schema["properties"][name].setdefault("description", part["description"])


def _untitled(schema: Any, keep: bool = False, names: bool = False) -> Any:
    """Return a schema, or a part, without pydantic's titles, which would only lengthen the prompt.

    Args:
        schema: the schema.
        keep: keep the title of its root.
        names: its keys are names of properties, not keywords.
    """
    if isinstance(schema, list):
        return [_untitled(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: part if key in _VALUES and not names else _untitled(part, names=not names and key in _BY_NAME)
        for key, part in schema.items()
        if names or keep or key != "title" or not isinstance(part, str)
    }
