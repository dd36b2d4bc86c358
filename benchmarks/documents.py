"""How many guarded JSON documents of the embedded model fit their schemas: all, or an error says why not.

    python -m benchmarks.documents [--tries 500]

Ten schemas, answers of at most 8 to 128 tokens, sixteen answers side by side.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import jsonschema
from rich.console import Console
from rich.table import Table

from rain_llm import IncompleteError, Message, Rain, RainSettings, StopReason, Task

LENGTHS = (8, 24, 64, 128)

_WORD = {"type": "string", "maxLength": 12}
_POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "number"}},
    "required": ["x", "y"],
}
SCHEMAS: dict[str, dict[str, object]] = {
    "one word": {"type": "object", "properties": {"word": _WORD}, "required": ["word"]},
    "free text": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    "a choice": {"enum": ["yes", "no", "perhaps"]},
    "optional parts": {"type": "object", "properties": {"a": _WORD, "b": {"type": "boolean"}}},
    "list of numbers": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 5},
    "list of any length": {"type": "array", "items": _WORD},
    "objects in objects": {
        "type": "object",
        "properties": {"from": _POINT, "to": _POINT, "note": {"anyOf": [_WORD, {"type": "null"}]}},
        "required": ["from", "to"],
    },
    "a tree": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "name": _WORD,
                    "below": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
                },
                "required": ["name"],
            }
        },
    },
    "constants": {
        "type": "object",
        "properties": {"kind": {"const": "gift"}, "price": {"type": "integer", "minimum": 1, "maximum": 99}},
        "required": ["kind", "price"],
    },
    "any object": {"type": "object"},
}


def attempt(rain: Rain, number: int) -> tuple[str, int, str]:
    """Ask for one document; return its schema's name, the length that it was given and what came of it."""
    name, schema = list(SCHEMAS.items())[number % len(SCHEMAS)]
    length = LENGTHS[number // len(SCHEMAS) % len(LENGTHS)]
    settings = rain.settings.updated(generation={"max_new_tokens": length, "seed": number})
    prompt = [Message("user", f"Suggest a gift for my neighbour, as JSON. Number {number}.")]
    try:
        result = rain.generate(Task(prompt, schema=schema), settings=settings)
    except IncompleteError:
        return name, length, "IncompleteError"
    if result.stop_reason is StopReason.REFUSED:
        return name, length, "refused"
    try:
        jsonschema.validate(json.loads(result.text), schema)
    except (ValueError, jsonschema.ValidationError):
        return name, length, "INVALID"
    return name, length, "valid"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=500)
    tries = parser.parse_args().tries
    rain = Rain(RainSettings())
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda number: attempt(rain, number), range(tries)))
    outcomes = ("valid", "IncompleteError", "refused", "INVALID")
    table = Table("tokens at most", *outcomes)
    for length in LENGTHS:
        counts = Counter(outcome for _, given, outcome in found if given == length)
        table.add_row(str(length), *(str(counts[outcome]) for outcome in outcomes))
    Console().print(table)
    cut = Counter(name for name, given, outcome in found if given == LENGTHS[-1] and outcome != "valid")
    Console().print(f"not valid with {LENGTHS[-1]} tokens: {dict(cut) or 'none'}")
    if any(outcome == "INVALID" for _, _, outcome in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
