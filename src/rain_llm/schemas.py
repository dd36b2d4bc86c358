"""JSON schemas as users give them, turned into the one schema that an answer is held to.

A schema comes as a class, as a type, as plain JSON Schema, or in the wrapper of some API. Whatever cannot be
read as a schema is an error here, before any model runs: JSON Schema itself ignores keywords that it does not
know, so a wrapper or a misspelt keyword would allow every answer.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter

from rain_llm.bounds import SCHEMA_BYTES
from rain_llm.errors import PromptError
from rain_llm.models.validation import changed, parts_of
from rain_llm.redaction import brief

_WRAPPERS = ("schema", "json_schema", "parameters", "function", "input_schema", "inputSchema")
"""Where OpenAI, Anthropic and MCP have the schema in what they send; one may hold another."""

_IMPLIED = {
    "object": {
        *("properties", "required", "additionalProperties", "patternProperties", "propertyNames"),
        *("minProperties", "maxProperties", "unevaluatedProperties", "dependentRequired"),
    },
    "array": {
        *("items", "prefixItems", "additionalItems", "unevaluatedItems", "contains"),
        *("minItems", "maxItems", "uniqueItems", "minContains", "maxContains"),
    },
    "string": {"minLength", "maxLength", "pattern", "format", "contentEncoding", "contentMediaType"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
}
"""Keywords that speak of values of one type; without ``type``, all values of other types would fit."""

_COMBINING = {"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas", "dependencies"}
_SAID = {"type", "enum", "const", "$ref", "$dynamicRef", "$recursiveRef"}
_KEYWORDS = {*_SAID, *_COMBINING, "$defs", "definitions"}.union(*_IMPLIED.values())
_OPENAPI = ("example", "nullable", "discriminator", "xml", "externalDocs")  # what it adds to JSON Schema
_ANNOTATIONS = {
    *("$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary", "$comment"),
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "contentSchema"),
    *_OPENAPI,
}
_KNOWN = _KEYWORDS | _ANNOTATIONS
_LONGEST_KEYWORD = 40  # that could be a misspelling of one
_MOST_UNKNOWN = 256  # of which each is compared with all keywords
_EXTENSIONS = ("x-", "$")  # what tools may add to a schema
_NEGATING = {"not", "if", "oneOf", "dependentSchemas", "dependencies"}
_DEFINITIONS = ("$defs", "definitions")
_REFERENCE = re.compile(r'"\$(?:ref|dynamicRef|recursiveRef)": "([^"]*)"')
_NOT_HELD = "this schema cannot be held to"
_SHOWN = 60  # characters of what an error repeats


def schema_of(given: object) -> dict[str, Any]:
    """Return the JSON schema that something given as a schema means.

    A keyword of one type (``properties``, ``minLength``) implies that type where none is named.

    Args:
        given: a JSON schema; one in the wrapper of OpenAI, Anthropic or MCP; or whatever pydantic makes a
            schema of: a model, a dataclass, a ``TypedDict``, an ``Enum``, a ``Literal``, ``list[int]``.

    Raises:
        PromptError: it is none of these, cannot be written as JSON, or has keywords that are none.
    """
    schema = unwrapped(given) if isinstance(given, Mapping) else _of_type(given)
    try:
        text = json.dumps(dict(schema), ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise PromptError(f"{_NOT_HELD}: it cannot be written as JSON ({error}): give plain data") from error
    if size > SCHEMA_BYTES:
        raise PromptError(f"{_NOT_HELD}: it has {size} bytes, more than {SCHEMA_BYTES}: ask for less")
    plain: dict[str, Any] = json.loads(text)
    try:
        parts = parts_of(plain)
    except RecursionError as error:
        raise PromptError(f"{_NOT_HELD}: it is nested too deep: ask for less") from error
    _check_keywords(parts)
    typed: dict[str, Any] = changed(plain, _typed, _negated(plain, parts))
    return typed


def _negated(schema: dict[str, Any], parts: Sequence[dict[str, Any]]) -> set[str]:
    """Return under which keywords nothing may be narrowed, for that would allow more documents.

    So it is in what is negated, and in what that refers to.
    """
    negated = [part[key] for part in parts for key in _NEGATING & part.keys()]
    if "$" not in json.dumps(negated):
        return _NEGATING
    definitions = [schema.get(key) for key in _DEFINITIONS]
    refs = _REFERENCE.findall(json.dumps([negated, definitions]))
    if all(ref.startswith(tuple(f"#/{key}/" for key in _DEFINITIONS)) for ref in refs):
        return {*_NEGATING, *_DEFINITIONS}
    return set(_KNOWN)


def without_notes(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema without what others than JSON Schema add to it, and what says nothing of documents.

    Beside a reference of a recursive type (pydantic has a ``discriminator`` there) no grammar takes it.
    """
    return {key: part for key, part in schema.items() if key not in _OPENAPI and not key.startswith("x-")}


def unwrapped(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema within the wrapper of an API, or what is given where there is none."""
    while True:
        within = [key for key in _WRAPPERS if isinstance(given.get(key), Mapping)]
        if not within or _KEYWORDS & given.keys() - {"type"} or _is_type(given.get("type")):
            return given
        given = given[within[0]]


def _is_type(value: object) -> bool:
    """Whether it is one of JSON Schema's types, unlike OpenAI's "function" and "json_schema"."""
    return isinstance(value, list) or value in (*_IMPLIED, "integer", "boolean", "null")


def _of_type(given: Any) -> Mapping[str, Any]:
    try:
        if isinstance(given, str):  # of which pydantic would make Python
            raise TypeError("it is text")
        return TypeAdapter(given).json_schema()
    except Exception as error:  # pydantic raises what the types raise
        why = str(error).partition("\n")[0]
        what = brief(given) if isinstance(given, str) else _shown(given)
        raise PromptError(
            f"{what} is no schema ({why}): give a JSON schema, a pydantic class or another type that "
            "pydantic has a JSON schema for"
        ) from error


def _check_keywords(parts: Sequence[dict[str, Any]]) -> None:
    """Refuse schemas that speak of nothing known, or in a word that is almost a keyword."""
    unknown: dict[str, None] = {}
    for part in parts:
        others = [key for key in part if key not in _KNOWN and not key.startswith(_EXTENSIONS)]
        unknown |= dict.fromkeys(others)
        if len(unknown) > _MOST_UNKNOWN:
            raise PromptError(
                f"a schema has more than {_MOST_UNKNOWN} keywords that are none: leave them out"
            )
        _check_part(part, others)


def _check_part(part: dict[str, Any], others: Sequence[str]) -> None:
    if others and len(others) == len(part):
        raise PromptError(
            f"{_shown(part)} stands where a JSON schema should, and {others[0]!r:.40} is no keyword of one: "
            'write it as in {"type": "object", "properties": {"city": {"type": "string"}}}'
        )
    for key in others:
        if near := _near(key):
            raise PromptError(
                f"a schema has the keyword {key!r:.40}, which is none and would allow everything: did you "
                f"mean {near!r}?"
            )
        if key in _WRAPPERS and isinstance(part[key], dict):
            raise PromptError(
                f"a schema has {key!r} beside keywords of its own, so that it is not clear which of the two "
                f"is meant: give the schema within {key!r} alone"
            )


@lru_cache(4 * _MOST_UNKNOWN)
def _near(key: str) -> str | None:
    if len(key) > _LONGEST_KEYWORD:
        return None
    plain = {keyword.lower(): keyword for keyword in _KEYWORDS}
    if same := plain.get(key.replace("_", "").replace("-", "").lower()):
        return same
    close = difflib.get_close_matches(key, _KEYWORDS, n=1, cutoff=0.87)
    return close[0] if close else None


def _typed(schema: dict[str, Any]) -> dict[str, Any]:
    if _SAID & schema.keys():
        return schema
    implied = [name for name, keywords in _IMPLIED.items() if keywords & schema.keys()]
    return {"type": implied[0], **schema} if len(implied) == 1 else schema


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
