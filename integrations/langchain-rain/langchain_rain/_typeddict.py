"""``TypedDict`` classes as pydantic reads them, on every Python and by LangChain's conventions.

Pydantic refuses those of ``typing`` before Python 3.12. In LangChain's, ``Annotated[int, ..., "its use"]``
and ``Annotated[int, 3, "its use"]`` hold a default (``...``: there is none) and a description.
"""

from __future__ import annotations

import functools
import operator
import types
from typing import Annotated, Any, NotRequired, Required, Union, get_args, get_origin, get_type_hints

from pydantic import Field
from pydantic.fields import FieldInfo
from typing_extensions import ReadOnly, TypedDict, is_typeddict

_FORMS = (NotRequired, Required, ReadOnly)


def readable(kind: Any) -> Any:
    """Return a class, or a type that holds some, with ``TypedDict`` classes that pydantic can read.

    Raises:
        NameError: an annotation names what cannot be found.
    """
    return _read(kind, {})


def _read(kind: Any, made: dict[Any, Any]) -> Any:
    if is_typeddict(kind):
        return made[kind] if kind in made else _made(kind, made)
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return Annotated[(_read(args[0], made), *args[1:])]
    inner = tuple(_read(arg, made) for arg in args) if origin is not None else ()
    if inner == args:
        return kind
    if origin in (Union, types.UnionType):
        return functools.reduce(operator.or_, inner)
    return origin[inner[0]] if origin in _FORMS else types.GenericAlias(origin, inner)


def _made(kind: Any, made: dict[Any, Any]) -> Any:
    """Make a class of the same name: known before its fields, in which it may stand itself."""
    hints = get_type_hints(kind, include_extras=True)
    made[kind] = new = TypedDict(kind.__name__, dict.fromkeys(hints, Any))  # type: ignore[operator]
    new.__doc__, new.__module__ = kind.__doc__, kind.__module__
    required = set(kind.__required_keys__)
    fields = {}
    for name, hint in hints.items():
        fields[name], has_default = _field(_read(hint, made))
        required -= {name} if has_default else set()
    new.__annotations__ = fields
    new.__required_keys__ = frozenset(required)
    new.__optional_keys__ = frozenset(fields.keys() - required)
    return new


def _field(hint: Any) -> tuple[Any, bool]:
    """Return a field's type with its description, and whether it has a default."""
    if get_origin(hint) in _FORMS:
        field, has_default = _field(get_args(hint)[0])
        return get_origin(hint)[field], has_default
    if get_origin(hint) is not Annotated:
        return hint, False
    kind, *notes = get_args(hint)
    if isinstance(notes[0], FieldInfo) or len(notes) > 2 or not all(isinstance(n, str) for n in notes[1:]):
        return hint, False
    described = Annotated[kind, Field(description=notes[1])] if len(notes) > 1 else kind
    return described, notes[0] is not ...
