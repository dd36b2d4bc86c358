"""Validate complete JSON documents against a schema, in bounded time.

This is the only module that uses jsonschema. Nothing is downloaded. Every check has a time limit, because
schemas may come from untrusted sources (such as the tools of an MCP server).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator
from contextvars import ContextVar
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from jsonschema import ValidationError
    from jsonschema.protocols import Validator

Keyword = Callable[["Validator", Any, Any, dict[str, Any]], Iterator["ValidationError"] | None]

_CHECKING_S = 0.5  # time limit for one document
_READING_S = 1.5  # time limit for one schema
_MATCHING_S = 0.1  # time limit for one pattern
_NAMED = {"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"}
_LISTED = {"anyOf", "oneOf", "allOf", "prefixItems"}
_ALONE = {"items", "additionalProperties", "contains", "propertyNames", "not", "if", "then", "else"}
_OLDER = {"items", "exclusiveMinimum", "exclusiveMaximum"}  # keywords that differ in older JSON Schema drafts

_end: ContextVar[float] = ContextVar("_end", default=float("inf"))


class DocumentCheck:
    """Checks documents against a schema, using the first JSON Schema draft in which the schema is valid.

    Args:
        schema: JSON text of an object.

    Raises:
        ValueError: it is not a schema, or has a part that cannot be checked.
        RecursionError: it is nested too deeply.
    """

    def __init__(self, schema: str) -> None:
        from jsonschema import Draft4Validator, Draft7Validator, Draft202012Validator
        from jsonschema.validators import validator_for
        from referencing import Registry

        read = json.loads(schema, parse_float=Decimal)  # the number type of the documents
        if not isinstance(read.get("$schema", ""), str):
            raise ValueError(f"its $schema is {read['$schema']!r:.40}")
        _check_parts(read)
        refused: list[str] = []
        for kind in (validator_for(read, default=Draft202012Validator), Draft7Validator, Draft4Validator):
            error = _schema_error(kind, read)
            if error is None:
                # An empty registry: references are never downloaded.
                self._validator: Validator = _bounded(kind)(read, registry=Registry())
                return
            refused.append(f"{error.message:.200}")
            if not (error.path and error.path[-1] in _OLDER):
                break
        raise ValueError(f"it is not a JSON schema ({refused[0]})")

    def fits(self, text: str) -> bool:
        """Return whether a document matches; False if the check takes too long or a name is repeated."""
        from referencing.exceptions import Unresolvable

        _end.set(time.thread_time() + _CHECKING_S)
        try:
            return bool(self._validator.is_valid(read_document(text)))
        except (ValueError, ArithmeticError, RecursionError, TimeoutError, Unresolvable):
            return False


def read_document(text: str) -> Any:
    """Parse JSON; numbers with a decimal point become ``Decimal``, which is exact.

    Raises:
        ValueError: it is not JSON, an object has a name twice, or a string is not valid Unicode.
        RecursionError: it is nested too deeply.
    """
    document = json.loads(text, parse_float=Decimal, object_pairs_hook=_object)
    json.dumps(document, ensure_ascii=False, default=str).encode()
    return document


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(members)
    if len(read) < len(members):
        raise ValueError("an object has a name twice")
    return read


# --- schemas --------------------------------------------------------------------------------------


def changed(
    schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]], but: Collection[str] = ()
) -> Any:
    """Apply ``change`` to every subschema of a schema, and then to the schema itself.

    Args:
        schema: a schema, or a part of one.
        change: returns a changed schema.
        but: keywords whose values are not changed.
    """
    if not isinstance(schema, dict):
        return schema
    made = dict(schema)
    for key, value in schema.items():
        if key in but:
            continue
        if key in _NAMED and isinstance(value, dict):
            made[key] = {name: changed(part, change, but) for name, part in value.items()}
        elif key in _LISTED and isinstance(value, list):
            made[key] = [changed(part, change, but) for part in value]
        elif key in _ALONE:
            made[key] = changed(value, change, but)
    return change(made)


def parts_of(schema: Any) -> list[dict[str, Any]]:
    """Return all subschemas of a schema, the innermost first and the schema itself last."""
    parts: list[dict[str, Any]] = []

    def keep(part: dict[str, Any]) -> dict[str, Any]:
        parts.append(part)
        return part

    changed(schema, keep)
    return parts


def _check_parts(schema: dict[str, Any]) -> None:
    """Check that no part of a schema is unsupported or refers to a missing part.

    Raises:
        ValueError: a part is invalid; the message names it.
    """
    parts = parts_of(schema)
    named = any(isinstance(part.get("$id"), str) for part in parts)  # references may then use these names
    keys = {key for part in parts for key in part}
    if {"unevaluatedProperties", "patternProperties"} <= keys:
        raise ValueError("it has unevaluatedProperties and patternProperties")
    for part in parts:
        if isinstance(ref := part.get("$ref"), str) and not named and not _is_within(schema, ref):
            raise ValueError(f"its $ref {ref!r:.80} does not refer to a part of it")
        several = part.get("patternProperties")
        for pattern in (part.get("pattern"), *(several if isinstance(several, dict) else ())):
            if isinstance(pattern, str):
                _check_pattern(pattern)


def _schema_error(kind: Any, schema: Any) -> ValidationError | None:
    """Return the first error of a schema in a JSON Schema draft; None if it is valid.

    Raises:
        ValueError: the check takes too long.
    """
    _end.set(time.thread_time() + _READING_S)
    errors: Iterator[ValidationError] = _bounded(kind)(kind.META_SCHEMA).iter_errors(schema)
    try:
        return next(errors, None)
    except TimeoutError as error:
        raise ValueError("it takes too long to check") from error


def _is_within(schema: Any, ref: str) -> bool:
    """Return whether a reference points into the schema; an anchor always counts."""
    try:
        part_at(schema, ref)
    except LookupError:
        return False
    return True


def part_at(schema: Any, ref: str) -> Any:
    """Return the part of a schema that a reference points to; for an anchor, the complete schema.

    Raises:
        LookupError: there is no such part.
    """
    if not ref.startswith("#"):
        raise LookupError(ref)
    for step in unquote(ref).split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(schema, list) and step.isdigit():
            schema = schema[int(step)]
        elif isinstance(schema, dict):
            schema = schema[step]
        else:
            raise LookupError(ref)
    return schema


def _check_pattern(pattern: str) -> None:
    import regex

    try:
        regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"the pattern {pattern!r:.80} cannot be read: {error}") from error


# --- jsonschema, in bounded time ------------------------------------------------------------------


@cache
def _bounded(kind: Any) -> Any:
    """Return a validator class whose checks raise ``TimeoutError`` if they take too long."""
    import attrs
    from jsonschema.validators import extend

    own: dict[str, Keyword] = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "uniqueItems": _unique_items,
    }
    keywords = {name: _timed(own.get(name, check)) for name, check in kind.VALIDATORS.items()}
    integers = kind.TYPE_CHECKER.redefine("integer", _is_integer)
    bounded: Any = extend(kind, keywords, type_checker=integers)
    bounded.evolve = attrs.evolve  # the original switches to an unbounded class at a "$schema"
    return bounded


def _timed(check: Keyword) -> Keyword:
    def timed(validator: Validator, value: Any, instance: Any, schema: dict[str, Any]) -> Any:
        if time.thread_time() > _end.get():
            raise TimeoutError("a document takes too long to check")
        return check(validator, value, instance, schema)

    return timed


def _is_integer(_: object, instance: object) -> bool:
    integral = isinstance(instance, Decimal) and instance == instance.to_integral_value()
    return integral or (isinstance(instance, int) and not isinstance(instance, bool))


def _matches(pattern: str, text: str) -> bool:
    import regex

    left = min(_MATCHING_S, _end.get() - time.thread_time())
    if left <= 0:
        raise TimeoutError("a document takes too long to check")
    return regex.search(pattern, text, timeout=left) is not None


def _pattern(
    validator: Validator, pattern: str, instance: Any, schema: dict[str, Any]
) -> Iterator[ValidationError]:
    from jsonschema import ValidationError

    if isinstance(instance, str) and not _matches(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, patterns: dict[str, Any], instance: Any, schema: dict[str, Any]
) -> Iterator[ValidationError]:
    for name, value in instance.items() if isinstance(instance, dict) else ():
        for pattern, part in patterns.items():
            if _matches(pattern, name):
                yield from validator.descend(value, part, path=name, schema_path=pattern)


def _additional_properties(
    validator: Any, additional: Any, instance: Any, schema: dict[str, Any]
) -> Iterator[ValidationError]:
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for name, value in instance.items() if isinstance(instance, dict) else ():
        if name not in named and not any(_matches(pattern, name) for pattern in patterns):
            yield from validator.descend(value, additional, path=name)


def _unique_items(
    validator: Validator, unique: Any, instance: Any, schema: dict[str, Any]
) -> Iterator[ValidationError]:
    """Check by hashing, in linear time: jsonschema compares all pairs of items."""
    from jsonschema import ValidationError

    if unique is True and isinstance(instance, list) and len(set(map(hashable, instance))) < len(instance):
        yield ValidationError("a list has an item twice")


def hashable(value: Any) -> Any:
    """Return a hashable key that is equal for equal JSON values: 1 and 1.0 are equal, 1 and true are not."""
    if isinstance(value, dict):
        return dict, frozenset((name, hashable(part)) for name, part in value.items())
    if isinstance(value, list):
        return list, tuple(map(hashable, value))
    return (bool, value) if isinstance(value, bool) else value
