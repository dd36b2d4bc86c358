"""What an error may repeat of what was given: numbers and names, and no other text.

A key that was put in the wrong place is a text like any other. So no error repeats a text, unless it
looks like the name of a setting: that is what a misspelt name looks like, and no key does.
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
"""The type of the last line of an error that lists not all mistakes."""

HIDDEN = "***"
"""Stands in errors for what they do not repeat."""

UNKNOWN = "unknown setting"
"""How the error about an unknown field begins."""

SECRETIVE = re.compile("key|secret|passw|credential|bearer", re.IGNORECASE)
"""Names of settings whose numbers are not shown either."""

# Words of lower-case letters; a few characters with digits (int4); or what is hidden already.
_NAME = re.compile(r"(?!.{33})[a-z]{1,16}(?:_[a-z]{1,16})*|[a-z0-9]{1,4}|\*{3}\d*")
_LONGEST_NAME, _LONGEST_NUMBER, _LONGEST_LIST = 40, 10**12, 10**5
_LIKE = 0.75  # of difflib's ratio
# How pydantic names the kinds of a value that may be of several, in the place of its errors.
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
    """Return the known name that a text may be a misspelling of; "": none is near."""
    if len(text) > _LONGEST_NAME:
        return ""
    found = difflib.get_close_matches(text, [*known], n=1, cutoff=_LIKE)
    return found[0] if found and abs(len(found[0]) - len(text)) < 4 else ""


def shown_name(text: object, known: Iterable[str] = (), *, near: bool = False) -> str:
    """Return a name as an error may repeat it: one that looks like a known one's, or :data:`HIDDEN`.

    Args:
        text: what was given.
        known: the names that there are.
        near: only one that is near to a known one; where keys belong, any word may be one.
    """
    word = isinstance(text, str) and (nearest(text, known) or re.fullmatch(r"[a-z0-9]{1,4}|\*{3}\d*", text))
    known_like = word or (isinstance(text, str) and not near and _NAME.fullmatch(text))
    return str(text) if known_like else HIDDEN


def quoted_name(name: object, known: Iterable[str]) -> str:
    """Return a name in quotes, as :func:`shown_name` shows it; of what is no text, only the type."""
    return f"'{shown_name(name, known)}'" if isinstance(name, str) else f"of type {type(name).__name__}"


def shown(value: object) -> object:
    """Return a value as an error may repeat it: a number, true, false, null, a name, or :data:`HIDDEN`."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if abs(value) < _LONGEST_NUMBER else HIDDEN
    return shown_name(value)


def brief(value: object) -> str:
    """Say what was given as an error may say it: a number or a name, else what kind of thing it is."""
    found = shown(value)
    return f"a {type(value).__name__}" if found == HIDDEN else repr(found)


def and_more(count: int) -> str:
    """Say how many mistakes are not listed."""
    return f"and {count:,} more"


def hidden_mistakes(error: ValidationError) -> int:
    """Return how many mistakes an error counts without listing them."""
    lines = error.errors(include_url=False)
    return sum(line["ctx"][MORE] for line in lines if line["type"] == MORE)


def redacted(error: ValidationError, model: type[BaseModel]) -> ValidationError:
    """Make an error anew that holds no text of what was given, and lists so many mistakes and no more.

    Args:
        error: as pydantic has made it.
        model: what was to be made.
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
    """Make one mistake of an error anew."""
    kind, reason, place = item["type"], item["msg"], item["loc"]
    if kind in ("extra_forbidden", "invalid_key", "unexpected_keyword_argument"):
        kind, reason = "unknown_setting", unknown(str(place[-1]) if place else "", model)
    if isinstance(item["input"], str):  # a name is looked for only where one of some is expected
        expected = re.findall("'([^']*)'", reason) if kind in ("literal_error", "enum") else None
        value: object = (
            HIDDEN if expected is None else shown_name(item["input"], expected, near=_holds_key(model))
        )
    else:
        value = shown(item["input"])
        if _holds_key(model) and len(place) == 1:
            near = nearest(str(place[0]), model.model_fields)
            value = value if near in _numbers(model) else HIDDEN  # a number where none belongs may be a key
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
    """Return a part of a place as an error may repeat it."""
    if isinstance(part, int):
        return part if abs(part) < _LONGEST_LIST else HIDDEN
    kind = _KIND.fullmatch(part) and (part[0].isupper() or part.startswith(_KINDS))
    return part if kind else shown_name(part, model.model_fields, near=first and _holds_key(model))


def _holds_key(model: type[BaseModel]) -> bool:
    """Whether a mapping is of a model's settings, where the key of a server belongs."""
    return issubclass(model, Redacted) and model.holds_key


def unknown(name: str, model: type[BaseModel]) -> str:
    """Say that a model has no such field, which one was meant perhaps, and which there are."""
    if issubclass(model, Redacted) and name in model.elsewhere:
        return f"{UNKNOWN} '{name}': {model.elsewhere[name]}"
    known = [*model.model_fields]
    near = difflib.get_close_matches(name[:_LONGEST_NAME], known, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    shown = shown_name(name, known, near=_holds_key(model))
    return f"{UNKNOWN} '{shown}': {hint}{model.__name__} has {', '.join(known)}"


@functools.cache
def _numbers(model: type[BaseModel]) -> frozenset[str]:
    """Return the fields of a model that hold numbers, and nothing else that true could be."""
    kinds = {name: str(field.annotation) for name, field in model.model_fields.items()}
    return frozenset(
        name for name, kind in kinds.items() if re.search(r"\b(int|float)\b", kind) and "bool" not in kind
    )


class Redacted(BaseModel):
    """A model that takes no truth value for a number, and whose errors hold no text of what was given.

    All ways to validate are covered: the constructor, ``model_validate`` and its sisters, an assignment,
    and being a field of another model.
    """

    holds_key: ClassVar[bool] = False
    """Whether the key of a server belongs into it: then no word or number is repeated that may be one."""

    elsewhere: ClassVar[Mapping[str, str]] = {}
    """Names that another model has, and what to do where they are given to this one."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where a number stands; pydantic takes them for 1 and 0."""
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
        raise safe  # outside, so that the error that holds everything is not chained

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Put the redaction around all validators: of those that are defined later, it were within."""
        validators = cls.__pydantic_decorators__.model_validators
        validators["_redacted"] = validators.pop("_redacted")
        return handler(source)

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """Validate a JSON text; see pydantic. What is no JSON is not repeated."""
        try:
            return super().model_validate_json(json_data, **options)
        except ValidationError as error:
            safe = redacted(error, cls)
        raise safe

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field; what cannot be set is not repeated."""
        try:
            return super().__setattr__(name, value)
        except ValidationError as error:
            safe = redacted(error, type(self))
        raise safe
