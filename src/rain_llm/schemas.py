"""Convert a user's schema to the JSON schema that an answer must match.

A schema may be a class, a type, a JSON schema, or the wrapper of some API. Anything else raises an error
here, before any model runs: JSON Schema ignores unknown keywords, so that an unknown wrapper or a misspelt
keyword would allow every answer.
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
"""Keys under which OpenAI, Anthropic and MCP wrap a schema; wrappers may be nested."""

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
"""Keywords that apply to one type only; without ``type``, all values of other types would match."""

_COMBINING = {"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas", "dependencies"}
_TYPING = {"type", "enum", "const", "$ref", "$dynamicRef", "$recursiveRef"}
_KEYWORDS = {*_TYPING, *_COMBINING, "$defs", "definitions"}.union(*_IMPLIED.values())
_OPENAPI = ("example", "nullable", "discriminator", "xml", "externalDocs")  # OpenAPI's additions
_ANNOTATIONS = {
    *("$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary", "$comment"),
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "contentSchema"),
    *_OPENAPI,
}
_KNOWN = _KEYWORDS | _ANNOTATIONS
_LONGEST_KEYWORD = 40  # characters of an unknown key that may be a misspelt keyword
_MOST_UNKNOWN = 256  # unknown keys; each one is compared with all keywords
_EXTENSIONS = ("x-", "$")  # prefixes of keys that tools may add to a schema
_NEGATING = {"not", "if", "oneOf", "dependentSchemas", "dependencies"}
_DEFINITIONS = ("$defs", "definitions")
_REFERENCE = re.compile(r'"\$(?:ref|dynamicRef|recursiveRef)": "([^"]*)"')
_NOT_SUPPORTED = "this schema is not supported"
_SHOWN = 60  # characters of the input that an error quotes


def schema_of(given: object) -> dict[str, Any]:
    """Convert a schema in any supported form to a JSON schema.

    A keyword that applies to one type only (``properties``, ``minLength``) implies that type by default.

    Args:
        given: a JSON schema; one in the wrapper of OpenAI, Anthropic or MCP; or any type that pydantic has a
            schema for: a model, a dataclass, a ``TypedDict``, an ``Enum``, a ``Literal``, ``list[int]``.

    Raises:
        PromptError: it is none of these, cannot be converted to JSON, or has unknown keywords.
    """
    schema = unwrapped(given) if isinstance(given, Mapping) else _of_type(given)
    try:
        text = json.dumps(dict(schema), ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise PromptError(
            f"{_NOT_SUPPORTED}: it cannot be written as JSON ({error}): give plain data"
        ) from error
    if size > SCHEMA_BYTES:
        raise PromptError(f"{_NOT_SUPPORTED}: it has {size} bytes, more than {SCHEMA_BYTES}: simplify it")
    plain: dict[str, Any] = json.loads(text)
    try:
        parts = parts_of(plain)
    except RecursionError as error:
        raise PromptError(f"{_NOT_SUPPORTED}: it is nested too deeply: simplify it") from error
    _check_keywords(parts)
    typed: dict[str, Any] = changed(plain, _typed, _negated(plain, parts))
    return typed


def _negated(schema: dict[str, Any], parts: Sequence[dict[str, Any]]) -> set[str]:
    """Return the keywords below which a schema must not be restricted.

    Below a negation, and in definitions that a negation refers to, a restriction would allow more documents.
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
    """Remove keys that are not part of JSON Schema (extensions, OpenAPI's keys) from a schema.

    A grammar does not accept them next to a reference in a recursive type, where pydantic writes a
    ``discriminator``.
    """
    return {key: part for key, part in schema.items() if key not in _OPENAPI and not key.startswith("x-")}


def unwrapped(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema in the wrapper of an API; without a wrapper, the input."""
    while True:
        within = [key for key in _WRAPPERS if isinstance(given.get(key), Mapping)]
        if not within or _KEYWORDS & given.keys() - {"type"} or _is_type(given.get("type")):
            return given
        given = given[within[0]]


def _is_type(value: object) -> bool:
    """Return whether it is a type of JSON Schema, unlike OpenAI's "function" and "json_schema"."""
    return isinstance(value, list) or value in (*_IMPLIED, "integer", "boolean", "null")


def _of_type(given: Any) -> Mapping[str, Any]:
    try:
        if isinstance(given, str):  # pydantic would evaluate it as a Python expression
            raise TypeError("it is a string")
        return TypeAdapter(given).json_schema()
    except Exception as error:  # types may raise anything
        why = str(error).partition("\n")[0]
        what = brief(given) if isinstance(given, str) else _shown(given)
        raise PromptError(
            f"{what} is not a schema ({why}): give a JSON schema, a pydantic class or another type that "
            "pydantic has a JSON schema for"
        ) from error


def _check_keywords(parts: Sequence[dict[str, Any]]) -> None:
    """Check that a schema has no unknown keys that make it empty, and no misspelt keywords."""
    unknown: dict[str, None] = {}
    for part in parts:
        others = [key for key in part if key not in _KNOWN and not key.startswith(_EXTENSIONS)]
        unknown |= dict.fromkeys(others)
        if len(unknown) > _MOST_UNKNOWN:
            raise PromptError(f"a schema has more than {_MOST_UNKNOWN} unknown keywords: leave them out")
        _check_part(part, others)


def _check_part(part: dict[str, Any], others: Sequence[str]) -> None:
    if others and len(others) == len(part):
        raise PromptError(
            f"{_shown(part)} is not a JSON schema: {others[0]!r:.40} is not a keyword: "
            'write it as in {"type": "object", "properties": {"city": {"type": "string"}}}'
        )
    for key in others:
        if near := _near(key):
            raise PromptError(
                f"a schema has the unknown keyword {key!r:.40}, which would allow everything: did you "
                f"mean {near!r}?"
            )
        if key in _WRAPPERS and isinstance(part[key], dict):
            raise PromptError(
                f"a schema has {key!r} beside keywords of its own, so that it is ambiguous: give only the "
                f"schema within {key!r}"
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
    if _TYPING & schema.keys():
        return schema
    implied = [name for name, keywords in _IMPLIED.items() if keywords & schema.keys()]
    return {"type": implied[0], **schema} if len(implied) == 1 else schema


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
