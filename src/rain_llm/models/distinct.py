"""Count the different values that a part of a JSON schema allows, if there are few.

A grammar cannot enforce ``uniqueItems``. But it can end a list when no further item is possible.
"""

from __future__ import annotations

import functools
from typing import Any

from rain_llm.models.validation import hashable, part_at

_MOST = 1000  # values; more are not counted
_DEEP = 16  # nesting of references and alternatives
_OF_TYPE = {"null": 1, "boolean": 2}


def ended(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """Limit a list with ``uniqueItems`` to the number of different items that its schema allows."""
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
    """Return the maximum number of different values that match ``part`` of ``schema``; None: unknown."""
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
