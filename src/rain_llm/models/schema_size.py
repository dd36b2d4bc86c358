"""Check the size of a JSON schema before it is compiled, since schemas may come from untrusted sources.

The libraries that compile and check schemas do not bound all of this: a single repetition in a pattern can
take gigabytes of memory.
"""

from __future__ import annotations

import json
import re
from typing import Any

from rain_llm.bounds import PATTERN_SIZE, SCHEMA_BYTES, SCHEMA_DEPTH, SCHEMA_PARTS

_MEETING = 16  # different patterns that may apply to one string: each one doubles the grammar's time
_NAMING = 64  # patterns for the names in one object: every pair is compared
_LONG = 1000  # characters; shorter literals do not count, because an enum may have many
_PATTERN_PART = re.compile(
    r"""\\.                               # an escaped character, or a class
    | \[\^?\]?(?:\\.|[^]\\])*\]           # a class
    | \(\?\#[^)]*\)                       # a comment
    | \(\?[a-zA-Z]*[xV]                   # flags that change the syntax of the rest
    | \{\s*(\d*)\s*(?:(,)\s*(\d*)\s*)?\}  # a repetition
    | .""",
    re.DOTALL | re.VERBOSE,
)


def check_size(schema: str) -> None:
    """Check that a schema is small enough to be compiled.

    Args:
        schema: JSON text.

    Raises:
        ValueError: it is too large or not JSON; the message names the bound.
        RecursionError: it is nested too deeply.
    """
    size = len(schema.encode("utf-8", "surrogatepass"))
    if size > SCHEMA_BYTES:
        raise ValueError(f"it has {size} bytes, more than {SCHEMA_BYTES}")
    parts = patterns = literals = 0
    combines, different = False, set[str]()
    level = [json.loads(schema)]
    for _ in range(SCHEMA_DEPTH + 1):
        parts += sum(isinstance(value, dict) for value in level)
        if parts > SCHEMA_PARTS:
            raise ValueError(f"it has more than {SCHEMA_PARTS} parts")
        for pattern in _patterns_of(level):
            patterns += pattern_size(pattern)
            if patterns > PATTERN_SIZE:
                raise ValueError(f"its patterns repeat and list more than {PATTERN_SIZE} characters")
        combines |= any(map(_combines, level))
        different.update(_patterns_of(level), _texts(level, "format"))
        if combines and len(different) > _MEETING:
            raise ValueError(
                "it combines schemas (allOf, or $ref, anyOf or oneOf beside other keywords), and has more "
                f"than {_MEETING} patterns and formats"
            )
        if any(len(names) > _NAMING for value in level if (names := _named_by_patterns(value))):
            raise ValueError(f"patternProperties has more than {_NAMING} patterns")
        literals += sum(size for size in _literals_of(level) if size > _LONG)
        if literals > PATTERN_SIZE:
            raise ValueError(f"its long names and values have more than {PATTERN_SIZE} characters")
        level = [part for value in level for part in _within(value)]
        if not level:
            return
    raise ValueError(f"it is nested more than {SCHEMA_DEPTH} deep")


def _within(value: Any) -> list[Any]:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [part for part in values if isinstance(part, dict | list)]


def _patterns_of(values: list[Any]) -> list[str]:
    """Return everything that may be a pattern in some objects, whether or not they are schemas."""
    return [*_texts(values, "pattern"), *(name for value in values for name in _named_by_patterns(value))]


def _texts(values: list[Any], key: str) -> list[str]:
    return [value[key] for value in values if isinstance(value, dict) and isinstance(value.get(key), str)]


def _named_by_patterns(value: Any) -> dict[str, Any]:
    several = value.get("patternProperties") if isinstance(value, dict) else None
    return several if isinstance(several, dict) else {}


def _combines(value: Any) -> bool:
    """Return whether two schemas may apply to one value, so that all their patterns apply together."""
    if not isinstance(value, dict):
        return False
    both = value.get("allOf")
    others = sum(key in value for key in ("$ref", "anyOf", "oneOf"))
    own = any(key in value for key in ("pattern", "format", "properties", "patternProperties", "items"))
    return (len(both) if isinstance(both, list) else 0) + others + own > 1


def _literals_of(values: list[Any]) -> list[int]:
    """Return the lengths of all literals (names, constants, enum values) in some objects."""
    found: list[int] = []
    for value in values:
        if isinstance(value, dict):
            found += map(len, value)
            several = value.get("enum")
            literals = [value.get("const"), *(several if isinstance(several, list) else ())]
            found += (len(json.dumps(literal, ensure_ascii=False)) for literal in literals)
    return found


def pattern_size(pattern: str) -> int:
    """Return the length of a regular expression with all repetitions expanded, in characters.

    Counting stops soon after ``PATTERN_SIZE``.

    Raises:
        ValueError: it has flags that change its syntax.
    """
    groups = [0]  # sizes of the open groups
    size = last = 0  # of the complete pattern; of the part that a repetition would repeat
    for part in _PATTERN_PART.finditer(pattern):
        text = part[0]
        if text.startswith("(?") and not text.startswith("(?#"):
            raise ValueError(f"a pattern has the flags {text!r}")
        if text == "(":
            groups.append(0)
            last = 1
        elif text == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1] += last
            continue
        elif text.startswith("{") and text.endswith("}"):
            times = max(1, int((part[1] or "0")[:9]), int((part[3] or "0")[:9]))
            last *= times
            groups[-1] += last - last // times
            size += last - last // times
            continue
        else:
            last = 1
        groups[-1] += 1
        size += 1
        if size > PATTERN_SIZE:
            break
    return size
