"""How many different values a part of a JSON schema allows, where that is a small number.

A grammar cannot hold to ``uniqueItems``. It can end a list that has no further item to take.
"""

from __future__ import annotations

import functools
from typing import Any

from rain_llm.models.validation import hashable, part_at

_MOST = 1000  # values that are worth counting
_DEEP = 16  # references and alternatives within each other
_OF_TYPE = {"null": 1, "boolean": 2}


def ended(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """Return a part of a schema in which a list of different items has no more of them than there are."""
    if part.get("uniqueItems") is not True:
        return part
    first = part.get("prefixItems", [])
    values = distinct(schema, part.get("items"))
    if values is None or not isinstance(first, list):
        return part
    most = part.get("maxItems")
    bound = len(first) + values
    return part | {"maxItems": min(most, bound) if isinstance(most, int | float) else bound}


def distinct(schema: Any, part: Any, depth: int = 0) -> int | None:
    """Return the most different values that fit ``part``, which is found in ``schema``; None: not known."""
    if part is False:
        return 0
    if not isinstance(part, dict) or depth > _DEEP:
        return None
    count = functools.partial(distinct, schema, depth=depth + 1)
    bounds: list[int | None] = [_of_type(part)]
    if "const" in part:
        bounds.append(1)
    if isinstance(part.get("enum"), list):
        bounds.append(len(set(map(hashable, part["enum"]))))
    if isinstance(part.get("$ref"), str):
        try:
            bounds.append(count(part_at(schema, part["$ref"])) if "/" in part["$ref"] else None)
        except (LookupError, ValueError):
            return None
    for several in ("anyOf", "oneOf"):
        if isinstance(part.get(several), list):
            counts = [count(one) for one in part[several]]
            bounds.append(None if None in counts else sum(filter(None, counts)))
    if isinstance(part.get("allOf"), list):
        bounds += map(count, part["allOf"])
    known = [bound for bound in bounds if bound is not None]
    return min(known) if known and min(known) <= _MOST else None


def _of_type(part: dict[str, Any]) -> int | None:
    kinds = part.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    counts: list[int] = []
    for kind in kinds:
        low, high = part.get("minimum"), part.get("maximum")
        if kind == "integer" and isinstance(low, int | float) and isinstance(high, int | float):
            counts.append(max(0, int(high // 1 - -(-low // 1)) + 1))
        elif isinstance(kind, str) and kind in _OF_TYPE:
            counts.append(_OF_TYPE[kind])
        else:
            return None
    return sum(counts)
