"""Read a server's reply: JSON within bounds, each value checked for its type and range.

All replies are read by this module. A value that is missing, of another type or out of range raises
:class:`Unreadable`, which names the place in the reply.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from rain_llm.bounds import NAME_CHARACTERS, REPLY_FIELDS, REPLY_VALUES

_SHOWN = 1_000  # characters of a string; ``quoting`` hides the key, then shortens what an error repeats
_LARGE = 64  # bits of a number that is written out


class Unreadable(Exception):
    """A reply of status 200 that is not what was asked for; its text says what the server did."""


class Malformed(Unreadable):
    """A reply that no server should send: not JSON, or a value of the wrong type or out of range."""


def parsed(body: bytes) -> Any:
    """Read JSON in UTF-8.

    Raises:
        Malformed: it is not JSON, repeats a field, or is too large or too deep.
    """
    if sum(body.count(sign) for sign in b",[{") > REPLY_VALUES:
        raise Malformed(f"more than {REPLY_VALUES:,} values")
    if body.count(b":") > REPLY_FIELDS:
        raise Malformed(f"more than {REPLY_FIELDS:,} fields")
    try:
        return json.loads(
            body.decode("utf-8-sig"), object_pairs_hook=_object, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise Malformed("nested too deep") from None
    except UnicodeDecodeError as error:
        raise Malformed(f"not UTF-8 at byte {error.start}") from None
    except ValueError as error:  # of numbers with thousands of digits, too
        raise Malformed(str(error) if body.strip() else "it is empty") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the field {shown(twice)} appears twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


@dataclass(frozen=True, slots=True)
class Node:
    """A value in a reply, and its place there.

    The fields of a missing value (or null) are missing too. The methods that return a value raise
    :class:`Malformed` if it is missing, of another type, or out of range.
    """

    value: Any
    place: str = "the reply"

    @property
    def there(self) -> bool:
        """Whether it is present, and not null."""
        return self.value is not None

    def __getitem__(self, name: str) -> Node:
        """Return a field of an object."""
        if self.there and not isinstance(self.value, dict):
            raise self.wrong("an object")
        found = self.value.get(name) if self.there else None
        return Node(found, name if self.place == "the reply" else f"{self.place}.{name}")

    def items(self, most: int = REPLY_VALUES) -> list[Node]:
        """Return the items of a list; none if it is missing."""
        values = [] if self.value is None else self.value
        if not isinstance(values, list):
            raise self.wrong("a list")
        if len(values) > most:
            raise Malformed(f"returned {len(values):,} items in {self.place}, more than {most:,}")
        return [Node(value, f"{self.place}[{i}]") for i, value in enumerate(values)]

    def pairs(self) -> list[tuple[str, Node]]:
        """Return the fields of an object; none if it is missing."""
        if self.there and not isinstance(self.value, dict):
            raise self.wrong("an object")
        return [(name, Node(value, self.place)) for name, value in (self.value or {}).items()]

    def whole(self, least: int, most: int) -> int:
        """Return a whole number."""
        if type(self.value) is not int or not least <= self.value <= most:
            raise self.wrong(f"a whole number from {least:,} to {most:,}")
        return self.value

    def number(self, least: float, most: float) -> float:
        """Return a number."""
        if not is_number(self.value) or not least <= self.value <= most:
            raise self.wrong(f"a number from {least:g} to {most:g}")
        return float(self.value)

    def text(self, most: int = NAME_CHARACTERS) -> str:
        """Return a string of at most ``most`` characters, all of which can be encoded as UTF-8."""
        if not isinstance(self.value, str) or len(self.value) > most or not _encodes(self.value):
            raise self.wrong(f"a string of at most {most:,} characters")
        return self.value

    def tokens(self, size: int, most: int = REPLY_VALUES) -> tuple[int, ...]:
        """Return at most ``most`` token ids of a vocabulary of ``size``."""
        if not isinstance(self.value, list) or len(self.value) > most:
            raise self.wrong(f"a list of at most {most:,} token ids")
        return token_ids(self.value, size, self.place)

    def wrong(self, wanted: str) -> Malformed:
        """Make the error for a value that is not what was ``wanted``."""
        return Malformed(f"returned {shown(self.value)} for {self.place}, not {wanted}")


def token_ids(values: Sequence[Any], size: int, place: str) -> tuple[int, ...]:
    """Return ``values``, all of which must be token ids below ``size``.

    Raises:
        Malformed: one is not.
    """
    for value in values:
        if type(value) is not int or not 0 <= value < size:
            raise Malformed(f"returned {shown(value)} in {place}, not a token id below {size:,}")
    return tuple(values)


def is_number(value: Any) -> bool:
    """Return whether it is a finite JSON number; ``true`` is not a number."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


def shown(value: Any) -> str:
    """Describe a value for an error."""
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return repr(value[:_SHOWN])
    if isinstance(value, int) and value.bit_length() > _LARGE:
        return f"a number of {value.bit_length()} bits"
    return repr(value)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True
