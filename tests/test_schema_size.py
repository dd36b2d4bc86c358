"""Schemas come from anywhere: each compiles soon and small, or is refused before anything compiles it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rain_llm import ModelError, PromptError
from rain_llm.bounds import PATTERN_SIZE
from rain_llm.models.distinct import distinct
from rain_llm.models.grammar import check, narrowed, spelled_out
from rain_llm.models.schema_size import pattern_size
from tests.examples import examples

MANY = 10**9
DRAFT4 = "http://json-schema.org/draft-04/schema#"


def ladder(**step: Any) -> dict[str, Any]:
    """Forty definitions, each of which refers twice to the next."""
    text = json.dumps(step)
    steps = {f"d{i}": json.loads(text.replace("NEXT", f"#/$defs/d{i + 1}")) for i in range(40)}
    return {"$ref": "#/$defs/d0", "$defs": steps | {"d40": {"type": "string"}}}


MEETING = [f"x{{{i + 1}}}.*y{{{i + 1}}}" for i in range(30)]


def ladder_of_patterns(**step: Any) -> dict[str, Any]:
    """Thirty definitions, each of which refers to the next and has a pattern of its own."""
    text = json.dumps(step)
    steps = {
        f"d{i}": json.loads(text.replace("NEXT", f"#/$defs/d{i + 1}").replace("PATTERN", pattern))
        for i, pattern in enumerate(MEETING)
    }
    return {"$ref": "#/$defs/d0", "$defs": steps | {"d30": {"type": "string"}}}


def nested(depth: int) -> str:
    return '{"items": ' * depth + "{}" + "}" * depth


NEXT = {"$ref": "NEXT"}
PATTERNS = [
    "a{10000000}",
    "((a{1000}){1000}){1000}",
    "(?#[)(a{1000}){1000}",
    "(?V1)[[a]](a{9})",
    "(?=a{1000000})b",
    "^(" + "|".join(f"x{i}" for i in range(20000)) + ")$",
    "^[a-z]{1,1000000}$",
    "(a|b)*a(a|b){18}",
    "(a{1,300}b?){1,60}",
]
ATTACKS: dict[str, Any] = {
    **{f"the pattern {p[:20]}": {"type": "string", "pattern": p} for p in PATTERNS},
    "many patterns": {"properties": {f"p{i}": {"type": "string", "pattern": "a{9000}"} for i in range(50)}},
    "names": {"patternProperties": {"a{10000000}": {}}, "type": "object"},
    "least items": {"type": "array", "items": {"type": "integer"}, "minItems": MANY},
    "most items": {"type": "array", "items": {"type": "integer"}, "maxItems": MANY},
    "least length": {"type": "string", "minLength": MANY},
    "most length": {"type": "string", "maxLength": MANY},
    "least properties": {"type": "object", "additionalProperties": {"type": "null"}, "minProperties": MANY},
    "most properties": {"type": "object", "additionalProperties": {"type": "null"}, "maxProperties": MANY},
    "patterns that meet": ladder_of_patterns(allOf=[{"$ref": "NEXT"}, {"pattern": "PATTERN"}]),
    "patterns beside references": ladder_of_patterns(**{"$ref": "NEXT", "pattern": "PATTERN"}),
    "patterns beside alternatives": ladder_of_patterns(anyOf=[{"$ref": "NEXT"}], pattern="PATTERN"),
    "patterns of one property": {
        "allOf": [{"properties": {"a": {"type": "string", "pattern": p}}} for p in MEETING],
        "type": "object",
    },
    "patterns out of sight": {
        "x-of": ladder_of_patterns(allOf=[{"$ref": "NEXT"}, {"pattern": "PATTERN"}]),
        "$ref": "#/x-of/$defs/d0",
    },
    "patterns for names": {
        "type": "object",
        "patternProperties": {f"^k{i:03d}[a-z]*$": {"type": "null"} for i in range(400)},
    },
    "a long name": {"type": "object", "properties": {"x" * 100_000: {}}, "required": ["x" * 100_000]},
    "long values": {"enum": ["x" * 50_000, {"a": "x" * 60_000}]},
    "a million values": {"enum": list(range(10**6))},
    "many values": {"enum": list(range(30000))},
    "many objects": {"$schema": DRAFT4, "enum": [{"a": i} for i in range(15000)]},
    "many names": {"required": [i if i % 2 else str(i) for i in range(30000)]},
    "many properties": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1900)}},
    "too many properties": {
        "type": "object",
        "properties": {f"p{i}": {"type": "string"} for i in range(5000)},
    },
    "a long tuple": {"type": "array", "prefixItems": [{"type": "string"}] * 9000},
    "a long constant": {"const": "x" * 200_000},
    "itself": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    "all of itself": {"allOf": [{"$ref": "#"}, {"type": "object"}]},
    "all twice": ladder(allOf=[NEXT, NEXT]),
    "any twice": ladder(anyOf=[NEXT, NEXT]),
    "one twice": ladder(oneOf=[NEXT, NEXT]),
    "both twice": ladder(type="object", properties={"a": NEXT, "b": NEXT}, required=["a", "b"]),
    "unique twice": ladder(anyOf=[NEXT, NEXT])
    | {"type": "array", "uniqueItems": True, "items": {"$ref": "#/$defs/d0"}},
    "a product": {
        "allOf": [
            {"anyOf": [{"type": "object", "properties": {f"p{i}{j}": {"const": j}}} for j in range(10)]}
            for i in range(10)
        ]
    },
    "lists of lists": {"type": "array", "minItems": 5000, "items": {"type": "array", "minItems": 5000}},
    "a factor": {"type": "integer", "multipleOf": 999999937},
}
DEEP = {"deep": nested(60), "too deep": nested(200), "far too deep": nested(50_000), "lists": "[" * 60_000}
TEXTS = {name: json.dumps(schema) for name, schema in ATTACKS.items()} | DEEP
CHILD = """
import json, resource, time
from rain_llm import PromptError
from rain_llm.models.grammar import check, spelled_out
from tests.test_schema_size import TEXTS

check("{}")
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (300 << 20)
resource.setrlimit(resource.RLIMIT_AS, (size, size))
found = {}
for name, text in TEXTS.items():
    begun = time.process_time()
    try:
        came = check(text)
    except PromptError as error:
        came = str(error)
    found[name] = [came, time.process_time() - begun]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_schema_compiles_soon_and_small_or_is_refused():
    """One after the other, in a process that may take 300 MB more than it begins with."""
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-500:]
    found = json.loads(done.stdout)
    assert found.keys() == TEXTS.keys()
    for name, (came, seconds) in found.items():
        assert seconds < 2, name
        assert came is None or len(came) < 500, name
    assert "more than 20000 characters" in found["the pattern a{10000000}"][0]
    assert "more than 262144" in found["a million values"][0]
    assert "more than 2000 parts" in found["too many properties"][0]
    assert "more than 64 deep" in found["too deep"][0]
    assert found["many properties"][0] is found["deep"][0] is found["least items"][0] is None


@pytest.mark.parametrize(
    "pattern, size",
    [
        ("abc", 3),
        ("a{10}", 10),
        ("a{3,}", 3),
        ("a{,5}", 5),
        ("a{ 2 , 6 }", 6),
        ("(ab){3,7}", 21),
        ("((a{10}){10}){10}", 1110),
        (r"\\{3}", 3),
        ("[a-z{5}]{4}", 4),
        ("[]a]{9}", 9),
        ("a{5", 3),
        ("a)", 2),
        ("((a", 3),
    ],
)
def test_a_pattern_is_as_large_as_it_is_when_written_out(pattern: str, size: int):
    assert pattern_size(pattern) == size


def test_no_number_in_a_pattern_is_too_large_to_be_read():
    assert pattern_size("a{" + "9" * 100_000 + "}") > PATTERN_SIZE
    assert pattern_size("(" * 50_000 + ")" * 50_000) > PATTERN_SIZE


# --- different items ---

SCHEMA = {"$defs": {"colour": {"enum": ["red", "green", "red"]}, "self": {"$ref": "#/$defs/self"}}}


@pytest.mark.parametrize(
    "items, values",
    [
        ({"enum": ["a", "b", "c"]}, 3),
        ({"enum": [1, 1.0, True, "1", [1], [1.0]]}, 4),
        ({"const": "a"}, 1),
        ({"type": "boolean"}, 2),
        ({"type": ["boolean", "null"]}, 3),
        ({"type": "integer", "minimum": 1, "maximum": 6}, 6),
        ({"type": "integer", "minimum": 0.5, "maximum": 3.5}, 3),
        ({"$ref": "#/$defs/colour"}, 2),
        ({"anyOf": [{"const": "a"}, {"const": "b"}, {"$ref": "#/$defs/colour"}]}, 4),
        ({"oneOf": [{"const": "a"}, {"type": "null"}]}, 2),
        ({"allOf": [{"enum": [1, 2, 3]}, {"type": "integer"}]}, 3),
        ({"enum": [1, 2, 3], "type": "boolean"}, 2),
        (False, 0),
        ({"$ref": "#/$defs/self"}, None),
        ({"$ref": "#/$defs/gone"}, None),
        ({"$ref": "#here"}, None),
        ({"anyOf": [{"const": "a"}, {"type": "string"}]}, None),
        ({"type": "integer", "minimum": 0}, None),
        ({"type": "integer", "minimum": 0, "maximum": 10**9}, None),
        ({"type": ["boolean", "string"]}, None),
        ({"type": "string"}, None),
        ({}, None),
        (True, None),
        (None, None),
    ],
)
def test_how_many_values_there_are_is_known(items: Any, values: int | None):
    assert distinct(SCHEMA, items) == values


@pytest.mark.parametrize(
    "given, most",
    [({}, 2), ({"maxItems": 1}, 1), ({"maxItems": 9}, 2), ({"prefixItems": [{"type": "string"}]}, 3)],
)
def test_a_list_of_different_items_ends(given: dict[str, Any], most: int):
    part = {"type": "array", "items": {"$ref": "#/$defs/colour"}, "uniqueItems": True} | given
    made = json.loads(narrowed(json.dumps(SCHEMA | {"properties": {"a": part}, "type": "object"})))
    assert made["properties"]["a"]["maxItems"] == most


def test_a_list_that_may_repeat_goes_on():
    part = {"type": "array", "items": {"enum": ["a"]}, "uniqueItems": False}
    assert "maxItems" not in json.loads(narrowed(json.dumps(part)))


def test_more_different_items_than_there_are_is_refused():
    part = {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True, "minItems": 3}
    with pytest.raises(PromptError, match="this schema is not supported"):
        check(json.dumps(part))


# --- any schema ---

COUNTS = st.sampled_from([0, 1, 3, 1000, 10**5, 10**9])
PIECES = st.sampled_from(["a", ".", "[a-z]", r"\\w", "(a|b)", "(ab?)", "^", "$"])
REPEATS = st.sampled_from(["", "*", "+", "?", "{3}", "{2,50}", "{1000}", "{99999}"])
PARTS = st.builds("{}{}".format, PIECES, REPEATS)
PATTERN = st.builds("({}){}{}".format, PARTS, REPEATS, PARTS)
LEAVES: st.SearchStrategy[Any] = st.one_of(
    st.builds(lambda p: {"type": "string", "pattern": p}, PATTERN),
    st.builds(lambda low, high: {"type": "string", "minLength": low, "maxLength": high}, COUNTS, COUNTS),
    st.builds(lambda n: {"enum": list(range(n % 20_000))}, COUNTS),
    st.builds(lambda n: {"type": "integer", "minimum": -n, "multipleOf": n or 1}, COUNTS),
    st.sampled_from([{"$ref": "#"}, {"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}, {"format": "email"}, {}]),
)


def _more(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=1, max_size=4)
    return st.one_of(
        st.builds(
            lambda items, low, high: {"type": "array", "items": items, "minItems": low, "maxItems": high},
            inner,
            COUNTS,
            COUNTS,
        ),
        st.builds(lambda items: {"type": "array", "items": items, "uniqueItems": True}, inner),
        st.builds(lambda key, parts: {key: parts}, st.sampled_from(["allOf", "anyOf", "oneOf"]), several),
        st.builds(
            lambda a, b, n: {"type": "object", "properties": {f"p{i}": a for i in range(n % 600)} | {"b": b}},
            inner,
            inner,
            COUNTS,
        ),
        st.builds(lambda name, part: {"type": "object", "patternProperties": {name: part}}, PATTERN, inner),
    )


SCHEMAS = st.recursive(LEAVES, _more, max_leaves=8)


@pytest.mark.slow
@settings(max_examples=examples(40))
@given(SCHEMAS, SCHEMAS, SCHEMAS)
def test_any_schema_compiles_soon_or_is_refused(whole: Any, first: Any, second: Any):
    begun = time.thread_time()
    try:
        matcher = spelled_out().matcher(json.dumps(whole | {"$defs": {"a": first, "b": second}}))
        for _ in range(3):
            allowed = matcher.allowed()
            matcher.advance([int(allowed.argmax())])
    except (PromptError, ModelError):
        pass
    assert time.thread_time() - begun < 2
