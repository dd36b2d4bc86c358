"""The shortest document of a schema: it fits, and none that fits is shorter."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rain_llm.models.validation import DocumentCheck
from rain_llm.search.shortest import shortest
from tests.examples import examples

NODE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
    "required": ["v", "next"],
}


@pytest.mark.parametrize(
    ("schema", "document"),
    [
        ({}, "0"),
        ({"type": "string", "minLength": 3}, '"aaa"'),
        ({"type": ["object", "boolean"], "required": ["a"]}, "true"),
        ({"type": "object", "properties": {"a": {"const": "x"}}, "required": ["a", "b"]}, '{"a":"x","b":0}'),
        (
            {"type": "array", "prefixItems": [{"type": "null"}], "items": {"enum": [10, 2]}, "minItems": 3},
            "[null,2,2]",
        ),
        ({"anyOf": [{"type": "string", "minLength": 9}, {"enum": ["yes", "no"]}]}, '"no"'),
        ({"allOf": [{"type": "string"}, {"type": "string", "minLength": 2}]}, '"aa"'),
        (NODE, '{"v":0,"next":null}'),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}}, "[]"),
        ({"type": "array", "items": {"$ref": "#/items"}, "minItems": 1}, ""),  # without an end
    ],
    ids=str,
)
def test_the_shortest_document(schema, document):
    assert shortest(json.dumps(schema)) == document
    if document:
        assert DocumentCheck(json.dumps(schema)).fits(document)


def test_long_documents_are_cut_and_many_parts_are_looked_at_once():
    assert len(shortest('{"type":"string","minLength":1000000000}')) <= 20_000
    assert (
        len(shortest('{"type":"array","minItems":1000000000,"items":{"type":"string","minLength":10000000}}'))
        <= 20_000
    )
    levels = {
        f"l{n}": {"type": "array", "minItems": 2, "items": {"$ref": f"#/$defs/l{n + 1}"}} for n in range(60)
    }
    assert (
        len(shortest(json.dumps({"$ref": "#/$defs/l0", "$defs": levels | {"l60": {"type": "null"}}})))
        <= 20_000
    )


SCHEMAS = st.recursive(
    st.one_of(
        st.builds(lambda n: {"type": "string", "minLength": n}, st.integers(0, 5)),
        st.sampled_from(
            [{"type": "integer"}, {"type": "boolean"}, {"const": [1, "x"]}, {"enum": ["a", 1]}, {}]
        ),
    ),
    lambda inner: st.one_of(
        st.builds(lambda one, n: {"type": "array", "items": one, "minItems": n}, inner, st.integers(0, 3)),
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner),
        st.builds(
            lambda parts, n: {"type": "object", "properties": parts, "required": [*parts][:n]},
            st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
            st.integers(0, 3),
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=examples(100), deadline=None, derandomize=True)
@given(SCHEMAS)
def test_the_shortest_document_fits(schema):
    text = json.dumps(schema)
    assert DocumentCheck(text).fits(shortest(text))
