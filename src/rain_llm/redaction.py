"""Redact validation errors: they may contain numbers and names of settings, but no other input text.

An API key in the wrong place looks like any other text. So no error contains input text, unless the text
resembles the name of a setting, as a misspelt name does and a key does not.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    GetCoreSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from rain_llm.bounds import MISTAKES

MORE = "more"
"""Type of the last line of an error that does not list all mistakes."""

HIDDEN = "***"
"""Replaces redacted text in errors."""

UNKNOWN = "unknown setting"
"""Beginning of the error about an unknown field."""

SECRETIVE = re.compile("key|secret|passw|credential|bearer", re.IGNORECASE)
"""Matches names of settings whose numbers are redacted, too."""

# Words of lower-case letters; a few characters with digits (int4); or text that is already redacted.
_NAME = re.compile(r"(?!.{33})[a-z]{1,16}(?:_[a-z]{1,16})*|[a-z0-9]{1,4}|\*{3}\d*")
_LONGEST_NAME, _LONGEST_NUMBER, _LONGEST_LIST = 40, 10**12, 10**5
_LIKE = 0.75  # minimum difflib ratio
# Names of union members that pydantic inserts into the locations of its errors.
_KIND = re.compile(r"constrained-[a-z]+|[a-z-]+\[.*\]|(?:[A-Z][a-z]{2,15}){1,4}", re.DOTALL)
_KINDS = (
    "constrained-",
    "function-",
    "literal[",
    "is-instance[",
    "tuple[",
    "list[",
    "dict[",
    "lax-or-strict[",
    "nullable[",
)


def nearest(text: str, known: Iterable[str]) -> str:
    """Return the known name that a text may be a misspelling of; "" if there is none."""
    if len(text) > _LONGEST_NAME:
        return ""
    found = difflib.get_close_matches(text, [*known], n=1, cutoff=_LIKE)
    return found[0] if found and abs(len(found[0]) - len(text)) < 4 else ""


def shown_name(text: object, known: Iterable[str] = (), *, near: bool = False) -> str:
    """Return a name if it is safe to show in an error, or else :data:`HIDDEN`.

    Args:
        text: the input.
        known: the existing names.
        near: accept only names similar to a known one, in sections where any word may be an API key.
    """
    word = isinstance(text, str) and (nearest(text, known) or re.fullmatch(r"[a-z0-9]{1,4}|\*{3}\d*", text))
    known_like = word or (isinstance(text, str) and not near and _NAME.fullmatch(text))
    return str(text) if known_like else HIDDEN


def quoted_name(name: object, known: Iterable[str]) -> str:
    """Return a name in quotes, redacted by :func:`shown_name`; for other values, only their type."""
    return f"'{shown_name(name, known)}'" if isinstance(name, str) else f"of type {type(name).__name__}"


def shown(value: object) -> object:
    """Return a value if it is safe to show (a number, true, false, null, a name), or else :data:`HIDDEN`."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if abs(value) < _LONGEST_NUMBER else HIDDEN
    return shown_name(value)


def brief(value: object) -> str:
    """Describe a value for an error: a number or a name as it is, any other value by its type."""
    found = shown(value)
    return f"a {type(value).__name__}" if found == HIDDEN else repr(found)


def and_more(count: int) -> str:
    """Return the line that counts the mistakes that are not listed."""
    return f"and {count:,} more"


def hidden_mistakes(error: ValidationError) -> int:
    """Return how many mistakes an error counts without listing them."""
    lines = error.errors(include_url=False)
    return sum(line["ctx"][MORE] for line in lines if line["type"] == MORE)


def redacted(error: ValidationError, model: type[BaseModel]) -> ValidationError:
    """Return a copy of an error that contains no input text and lists at most ``MISTAKES`` mistakes.

    Args:
        error: pydantic's error.
        model: the validated model.
    """
    found = error.errors(include_url=False)
    more = hidden_mistakes(error)
    found = [item for item in found if item["type"] != MORE]
    lines = [_line(item, model) for item in found[:MISTAKES]]
    if more := more + len(found) - len(lines):
        kind = PydanticCustomError(MORE, "{reason}", {"reason": and_more(more), MORE: more})
        lines.append(InitErrorDetails(type=kind, loc=(), input=HIDDEN))
    return ValidationError.from_exception_data(error.title, lines)


def _line(item: Any, model: type[BaseModel]) -> InitErrorDetails:
    """Redact one mistake of an error."""
    kind, reason, place = item["type"], item["msg"], item["loc"]
    if kind in ("extra_forbidden", "invalid_key", "unexpected_keyword_argument"):
        kind, reason = "unknown_setting", unknown(str(place[-1]) if place else "", model)
    if isinstance(item["input"], str):  # shown only if it resembles one of the expected names
        expected = re.findall("'([^']*)'", reason) if kind in ("literal_error", "enum") else None
        value: object = (
            HIDDEN if expected is None else shown_name(item["input"], expected, near=_holds_key(model))
        )
    else:
        value = shown(item["input"])
        if _holds_key(model) and len(place) == 1:
            near = nearest(str(place[0]), model.model_fields)
            value = value if near in _numbers(model) else HIDDEN  # a number in another field may be a key
    if any(
        isinstance(part, str) and (SECRETIVE.search(part) or nearest(part, ["api_key"])) for part in place
    ):
        value = HIDDEN
    return InitErrorDetails(
        type=PydanticCustomError(kind, "{reason}", {"reason": reason}),
        loc=tuple(_part(part, model, i == 0) for i, part in enumerate(place)),
        input=value,
    )


def _part(part: int | str, model: type[BaseModel], first: bool) -> int | str:
    """Return a part of a location if it is safe to show, or else :data:`HIDDEN`."""
    if isinstance(part, int):
        return part if abs(part) < _LONGEST_LIST else HIDDEN
    kind = _KIND.fullmatch(part) and (part[0].isupper() or part.startswith(_KINDS))
    return part if kind else shown_name(part, model.model_fields, near=first and _holds_key(model))


def _holds_key(model: type[BaseModel]) -> bool:
    """Return whether a model has a field for an API key."""
    return issubclass(model, Redacted) and model.holds_key


def unknown(name: str, model: type[BaseModel]) -> str:
    """Return the message about an unknown field, with the most similar field and all existing ones."""
    if issubclass(model, Redacted) and name in model.elsewhere:
        return f"{UNKNOWN} '{name}': {model.elsewhere[name]}"
    known = [*model.model_fields]
    near = difflib.get_close_matches(name[:_LONGEST_NAME], known, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    shown = shown_name(name, known, near=_holds_key(model))
    return f"{UNKNOWN} '{shown}': {hint}{model.__name__} has {', '.join(known)}"


@functools.cache
def _numbers(model: type[BaseModel]) -> frozenset[str]:
    """Return the fields of a model that take numbers but not booleans."""
    kinds = {name: str(field.annotation) for name, field in model.model_fields.items()}
    return frozenset(
        name for name, kind in kinds.items() if re.search(r"\b(int|float)\b", kind) and "bool" not in kind
    )


class Redacted(BaseModel):
    """A pydantic model whose errors contain no input text, and which does not accept booleans as numbers.

    This covers every way of validation: the constructor, ``model_validate`` and its variants, assignment,
    and validation as a field of another model.
    """

    holds_key: ClassVar[bool] = False
    """Whether the model has an API key: errors then show no word or number that may be one."""

    elsewhere: ClassVar[Mapping[str, str]] = {}
    """Fields of related models, with advice for users who pass them to this one."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Reject true and false for a number; pydantic would convert them to 1 and 0."""
        values = value if isinstance(value, list | tuple) else (value,)
        if any(isinstance(one, bool) for one in values) and info.field_name in _numbers(cls):
            raise ValueError("this must be a number, not true or false")
        return value

    @model_validator(mode="wrap")
    @classmethod
    def _redacted(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            safe = redacted(error, cls)
        raise safe  # outside of the handler: a chained error would contain the input

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Make the redaction the outermost validator, also around those that subclasses define."""
        validators = cls.__pydantic_decorators__.model_validators
        validators["_redacted"] = validators.pop("_redacted")
        return handler(source)

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """Validate JSON text; see pydantic. Errors do not contain invalid JSON."""
        try:
            return super().model_validate_json(json_data, **options)
        except ValidationError as error:
            safe = redacted(error, cls)
        raise safe

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field; errors do not contain the value."""
        try:
            return super().__setattr__(name, value)
        except ValidationError as error:
            safe = redacted(error, type(self))
        raise safe
