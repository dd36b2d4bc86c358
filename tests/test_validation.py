"""Whole documents against their schemas: as readers read them, in bounded time, by nothing fetched."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from rain_llm.models.validation import DocumentCheck, read_document

LADDER = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)} | {"d40": {}}


def fits(document: str, schema: dict[str, Any]) -> bool:
    return DocumentCheck(json.dumps(schema)).fits(document)


@pytest.mark.parametrize(
    "document, schema",
    [
        (json.dumps({"a" * 40: 1}), {"patternProperties": {"^(a|aa)+b$": {}}}),
        (json.dumps({"a" * 40: 1}), {"patternProperties": {"^(a|aa)+b$": {}}, "additionalProperties": False}),
        (json.dumps("a" * 60 + "b"), {"not": {"pattern": "^(a|aa)+$"}}),
        ("5", {"if": {"$ref": "#/$defs/d0"}, "$defs": LADDER}),
        (
            "[" * 60 + "]" * 60,
            {"items": {"$ref": "#"}, "contains": {"$ref": "#"}, "minContains": 0, "type": "array"},
        ),
        ("[" * 3000 + "]" * 3000, {}),
    ],
    ids=["names", "other names", "pattern", "ladder of references", "doubling depth", "depth"],
)
def test_a_check_ends_and_what_takes_too_long_does_not_fit(document: str, schema: dict[str, Any]):
    begun = time.monotonic()
    assert not fits(document, schema)
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize("number, fitting", [("5", False), ("5.0", False), ("5.5", True), ("50.0", True)])
def test_whole_numbers_are_whole_however_they_are_written(number: str, fitting: bool):
    schema = {"type": "number", "if": {"type": "integer"}, "then": {"minimum": 10}}
    assert fits(number, schema) is Draft202012Validator(schema).is_valid(json.loads(number)) is fitting


@pytest.mark.parametrize(
    "document, schema, fitting",
    [
        ('{"Äb":1,"x":2}', {"patternProperties": {r"^\p{Lu}": {"const": 1}}}, True),
        ('{"Äb":2}', {"patternProperties": {r"^\p{Lu}": {"const": 1}}}, False),
        ('{"a":1,"b":"x"}', {"properties": {"a": {}}, "additionalProperties": {"type": "string"}}, True),
        ('{"a":1,"b":2}', {"properties": {"a": {}}, "additionalProperties": {"type": "string"}}, False),
        ('{"a":1,"b":2}', {"properties": {"a": {}}, "additionalProperties": False}, False),
        ('{"x1":1}', {"patternProperties": {"^x": {}}, "additionalProperties": False}, True),
        ('{"$id":"here"}', {"properties": {"$id": {"$ref": "#/$defs/text"}}, "$defs": {"text": {}}}, True),
        ("100000000000000000", {"multipleOf": 1e-11}, False),  # more digits than are calculated with
        ("0.3", {"multipleOf": 0.1}, True),
    ],
)
def test_keywords_mean_what_they_mean_elsewhere(document: str, schema: dict[str, Any], fitting: bool):
    assert fits(document, schema) is fitting


@pytest.mark.parametrize(
    "schema, named",
    [
        ({"$schema": 5}, "schema"),
        ({"$schema": []}, "schema"),
        ({"contains": {"pattern": "^x[^]$"}}, "cannot be read"),
        ({"patternProperties": {"(": {}}}, "cannot be read"),
        ({"unevaluatedProperties": False, "allOf": [{"patternProperties": {"a": {}}}]}, "unevaluated"),
        ({"properties": {"$id": {}}, "items": {"$ref": "#/$defs/gone"}}, "does not refer"),
        ({"$ref": "http://127.0.0.1:9/schema.json"}, "does not refer"),
    ],
    ids=str,
)
def test_a_schema_that_documents_cannot_be_checked_by_is_refused(schema: dict[str, Any], named: str):
    with pytest.raises(ValueError, match=named):
        DocumentCheck(json.dumps(schema))


@pytest.mark.parametrize("text", ['{"a":1,"\\u0061":2}', '"\\ud800"', "{", "NaN]"])
def test_what_readers_would_not_agree_on_is_no_document(text: str):
    with pytest.raises(ValueError):
        read_document(text)
    assert not DocumentCheck("{}").fits(text)
