"""Find a shortest document that matches a JSON schema.

If even that is longer than ``max_new_tokens``, no rollout can complete a document.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from rain_llm.models.validation import part_at

_LONGEST = 20_000  # characters that are written out
_OF_TYPE = {"string": '""', "integer": "0", "number": "0", "boolean": "true", "null": "null"}


@lru_cache(maxsize=64)
def shortest(schema: str) -> str:
    """Return a lower bound for the documents that match a schema; "" if there is no simple one.

    Patterns, formats and the size of numbers are ignored, so real documents may have to be longer.

    Args:
        schema: JSON text of a schema; "": any text matches.
    """
    read = json.loads(schema) if schema else None
    return _Shortest(read).of(read) or ""


class _Shortest:
    """Finds short documents for the parts of a schema; None: only endless documents match the part."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        # By the part's identity. A part still in progress counts as endless: a recursion only adds length.
        self._found: dict[int, str | None] = {}

    def of(self, part: Any) -> str | None:
        """Return a shortest document of a part."""
        if not isinstance(part, dict):
            return "0" if part is True else None
        if id(part) not in self._found:
            self._found[id(part)] = None
            self._found[id(part)] = self._of(part)
        return self._found[id(part)]

    def _of(self, part: dict[str, Any]) -> str | None:
        """Combine the keywords that apply at once: the one that requires the longest document decides."""
        asked: list[str | None] = []
        if "const" in part:
            asked.append(_json(part["const"]))
        if isinstance(part.get("enum"), list):
            asked.append(_least(map(_json, part["enum"])))
        if isinstance(ref := part.get("$ref"), str) and (ref == "#" or "/" in ref):
            asked.append(self.of(part_at(self._schema, ref)))
        for several in ("anyOf", "oneOf"):
            if isinstance(part.get(several), list):
                asked.append(_least(map(self.of, part[several])))
        if isinstance(part.get("allOf"), list):
            asked += map(self.of, part["allOf"])
        if not asked or "type" in part:
            kinds = part.get("type")
            asked.append(
                _least(self._of_type(part, kind) for kind in (kinds if isinstance(kinds, list) else [kinds]))
            )
        if None in asked:
            return None
        return max(filter(None, asked), key=len)[:_LONGEST]

    def _of_type(self, part: dict[str, Any], kind: object) -> str | None:
        if kind == "object":
            parts, rest = part.get("properties", {}), part.get("additionalProperties", True)
            values = {name: self.of(parts.get(name, rest)) for name in part.get("required", [])}
            members = [f"{_json(name)}:{value}" for name, value in values.items()]
            return None if None in values.values() else "{" + ",".join(members) + "}"
        if kind == "array":
            number, first = _count(part.get("minItems")), part.get("prefixItems", [])
            items = [self.of(one) for one in first[:number]]
            if number > len(items) and (item := self.of(part.get("items", True))) is not None:
                items += [item] * min(number - len(items), _LONGEST // len(item) + 1)
            elif number > len(items):
                return None
            return None if None in items else f"[{','.join(filter(None, items))}]"
        if kind == "string":
            return f'"{"a" * _count(part.get("minLength"))}"'
        return _OF_TYPE.get(str(kind), "0")


def _least(documents: Iterable[str | None]) -> str | None:
    return min((one for one in documents if one is not None), key=len, default=None)


def _count(number: object) -> int:
    return min(_LONGEST, int(number)) if isinstance(number, int | float) else 0


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
