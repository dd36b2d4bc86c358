"""Documents held to JSON schemas: each fits, a half one says so, and what cannot be held to is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from rain_llm import ModelError, ModelNotSupportedError, PromptError
from rain_llm.models.grammar import Matcher, Vocabulary, check, fits, spelled_out, vocabulary_of
from rain_llm.models.local.jobs import SampleJob
from rain_llm.models.local.transformers import TransformersModel
from rain_llm.models.scripted import END, ScriptedModel, script
from rain_llm.requests import Continuation, Sample, Samples

SIZE = 330  # of the logits: ten more than the tokenizer has
SPECIAL = frozenset({0, 1, 2})
MOST = 200  # tokens of a document

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "address": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Köln", "São Paulo", "東京"]},
                "zip": {"type": ["string", "null"]},
            },
            "required": ["city"],
        },
    },
    "required": ["name", "age", "address"],
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "leaf": {"type": "boolean"},
                "below": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
            },
            "required": ["leaf"],
        }
    },
    "$ref": "#/$defs/node",
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "nested objects": PERSON,
    "recursion": TREE,
    "an enumeration": {"enum": ["yes", "no", None, 3, -2.5, {"a": [1]}, 'a "quoted" \\ word']},
    "a constant": {"const": {"kind": "é\n☃", "v": [True, False]}},
    "alternatives": {
        "anyOf": [{"type": "integer"}, {"type": "string", "minLength": 2, "maxLength": 5}, PERSON]
    },
    "disjoint alternatives": {"oneOf": [{"type": "boolean"}, {"type": "null"}]},
    "numbers": {
        "type": "array",
        "items": {"type": ["number", "integer"], "exclusiveMinimum": -5},
        "minItems": 2,
        "maxItems": 6,
    },
    "whole numbers": {"type": "array", "items": {"type": "integer"}, "maxItems": 4},
    "a tuple": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "boolean"}], "items": False},
    "a pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{2,30}$"},
    "a format": {
        "type": "object",
        "properties": {"day": {"type": "string", "format": "date"}},
        "required": ["day"],
    },
    "free keys": {
        "type": "object",
        "additionalProperties": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        "maxProperties": 3,
    },
    "both at once": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "integer", "maximum": 9}}, "required": ["b"]},
        ],
    },
    "a string": {"type": "string", "maxLength": 40},
}


@pytest.fixture(scope="module")
def words(make_tokenizer: Callable[..., Any]) -> Vocabulary:
    return vocabulary_of(make_tokenizer(), SIZE, SPECIAL)


def text_of(vocabulary: Vocabulary, tokens: list[int]) -> str:
    return vocabulary.tokens.decode_bytes(tokens).decode()


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def write(vocabulary: Vocabulary, schema: Mapping[str, Any], rng: np.random.Generator) -> str | None:
    """Write with random logits; None if there is no end in ``MOST`` tokens."""
    matcher = vocabulary.matcher(json.dumps(schema))
    liking = rng.normal(0, 2, vocabulary.size)  # a writer has favourites
    tokens: list[int] = []
    while not matcher.whole:
        allowed = matcher.allowed()
        token = int(np.where(allowed, liking + rng.gumbel(size=vocabulary.size), -np.inf).argmax())
        if allowed[vocabulary.ends].any():
            assert is_json(text_of(vocabulary, tokens))
        if vocabulary.ends[token]:
            break
        tokens.append(token)
        matcher.advance([token])
        if len(tokens) == MOST:
            return None
    assert not vocabulary.ends[tokens].any()
    return text_of(vocabulary, tokens)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_document_fits_its_schema(name: str, words: Vocabulary):
    """Fourteen schemas, 36 whole documents each: 504."""
    schema = SCHEMAS[name]
    found: list[str] = []
    for seed in count():
        text = write(words if seed % 2 else spelled_out(), schema, np.random.default_rng(seed))
        if text is not None:
            Draft202012Validator(schema).validate(json.loads(text))
            compact = json.dumps(json.loads(text), separators=(",", ":"))
            assert compact.count(" ") == text.count(" ")
            found.append(text)
        if len(found) == 36:
            break
    assert len(set(found)) > 1 or "const" in schema


# --- what cannot be held to -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schema, named",
    [
        ("{", "Expecting property name"),
        ("[1]", "not a JSON object"),
        ("true", "not a JSON object"),
        ('{"type": "banana"}', "banana"),
        ('{"type": "object", "properties": 3}', "3 is not of type 'object'"),
        ('{"not": 3}', "3 is not of type"),
        ('{"not": {"$ref": "#/$defs/gone"}}', "/$defs/gone"),
        ('{"type": "string", "not": {"$ref": "other.json"}}', "other.json"),
        (json.dumps({"allOf": [{"pattern": f".*{i}.*"} for i in range(30)]}), "16 patterns"),
        ('{"properties": {"a": {}}, "required": 3}', "3"),
        ('{"properties": {"a": {}}, "required": [["a"]]}', "['a'] is not of type"),
        ('{"properties": {"a": {}}, "dependentRequired": {"a": 3}}', "3 is not of type"),
        ('{"type": "array", "uniqueItems": "yes"}', "'yes' is not of type"),
        ('{"type": "string", "pattern": "(?=a)b"}', "look-around"),
        ('{"x-guidance": {"lenient": true}, "pattern": "(?=a)b"}', "look-around"),
        ('{"$ref": "https://example.org/schema.json"}', "https://example.org/schema.json"),
        ('{"$ref": "#/$defs/gone"}', "/$defs/gone"),
        ('{"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}', "no document matches it"),
        ('{"enum": []}', "empty"),
        ('{"type": "integer", "minimum": 5, "maximum": 2}', "minimum"),
        ('{"const": 123456789012345678901}', "2^53"),
        ('{"const": 0.12345678901234567}', "15 digits"),
        ('{"maximum": NaN}', "NaN"),
        ('{"properties": {"a": false}, "type": "object", "required": ["a"]}', "'a'"),
        ('{"items": ' * 5000 + "{}" + "}" * 5000, "recursion"),
        ('{"items": ' * 300 + "{}" + "}" * 300, "more than 64 deep"),
    ],
)
def test_a_schema_that_cannot_be_held_to_is_refused_by_name(schema: str, named: str):
    with pytest.raises(PromptError, match="this schema is not supported") as caught:
        check(schema)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def written(text: str, schema: dict[str, Any]) -> tuple[str, bool]:
    """Let a script say ``text``, piece by piece; return what came of it, and whether it has ended."""
    model = ScriptedModel(lambda said: {text[len(said) - 1 :][:1] or END: 1.0})
    (reply,) = model.sample([Sample(model.encode("?"), 1, 99, 1, schema=json.dumps(schema))])
    (one,) = reply.continuations
    return model.decode(one.tokens), one.ended


OPEN = {
    "type": "object",
    "properties": {"n": {"type": "integer", "maximum": 9}},
    "additionalProperties": True,
}


@pytest.mark.parametrize(
    "text, schema",
    [
        (r'{"\u006e":99}', OPEN),  # another spelling of a name that is bounded
        ('{"n":1,"m":1,"m":2}', OPEN),  # readers differ in which one they take
        ('{"m":1,"m":2}', {"additionalProperties": {"type": "integer"}, "minProperties": 2}),
        (r'"9\"lb"', {"type": "string", "pattern": '^[^"]*$'}),
        ("0", {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}),
        (f'"{"a" * 60}b"', {"type": "string", "not": {"pattern": "^(a|aa)+$"}}),  # it would take for ever
    ],
)
def test_a_document_is_checked_as_it_is_read(text: str, schema: dict[str, Any]):
    said, ended = written(text, schema)
    assert said == text and not ended
    assert not fits(text, json.dumps(schema))


@pytest.mark.parametrize(
    "text, schema",
    [
        (r'{"\u006e":9,"m":"\n\u000b\""}', OPEN),
        ("0.07", {"type": "number", "multipleOf": 0.01}),
        ('{"a":0.5}', {"properties": {"a": {"type": "number", "exclusiveMinimum": True, "minimum": 0}}}),
        ('["a"]', {"type": "array", "items": [{"type": "string"}]}),  # drafts 4 to 7
        (f'"{"a" * 30}b"', {"type": "string", "pattern": "^(a+)+b$"}),
    ],
)
def test_what_fits_is_not_held_up_by_the_check(text: str, schema: dict[str, Any]):
    assert written(text, schema) == (text, True)


def test_a_document_too_deep_to_be_checked_does_not_fit():
    schema = json.dumps({"type": "array", "items": {"$ref": "#"}, "uniqueItems": True})
    assert fits("[[],[[]]]", schema) and not fits("[" * 600 + "]" * 600, schema)


LETTERS = {"enum": ["a", "b", "c"]}
CHECKED: dict[str, dict[str, Any]] = {
    "no item twice": {"type": "array", "items": LETTERS, "uniqueItems": True, "maxItems": 3},
    "one item of a kind": {"type": "array", "items": LETTERS, "contains": {"const": "b"}, "maxItems": 2},
    "alternatives that overlap": {
        "type": "array",
        "items": {"oneOf": [{"enum": [1, 2]}, {"enum": [2, 3]}]},
        "maxItems": 2,
    },
    "all but one": {"allOf": [LETTERS], "not": {"const": "b"}},
    "one needs another": {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"type": "boolean"}},
        "dependentRequired": {"a": ["b"]},
    },
    "one decides on another": {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"enum": [1, 2]}},
        "required": ["a", "b"],
        "if": {"properties": {"a": {"const": True}}},
        "then": {"properties": {"b": {"const": 1}}},
    },
    "numbers of tenths": {"type": "array", "items": {"enum": [0.1, 0.7]}, "uniqueItems": True, "maxItems": 2},
    "a form that nobody knows": {"type": "string", "format": "colour", "maxLength": 3},
}


@pytest.mark.parametrize("name", CHECKED)
def test_what_no_grammar_can_hold_to_is_checked_of_a_whole_document(name: str):
    schema = CHECKED[name]
    seen = {True: 0, False: 0}
    for seed in range(60):
        text = write(spelled_out(), schema, np.random.default_rng(seed))
        assert text is not None
        fitting = Draft202012Validator(schema).is_valid(json.loads(text))
        assert fits(text, json.dumps(schema)) is fitting
        seen[fitting] += 1
    assert seen[True] > 5
    assert seen[False] > 0 or name == "a form that nobody knows"


def test_a_document_that_misses_it_has_not_ended(tiny: TransformersModel):
    schema = {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "minItems": 2, "maxItems": 2}
    found = {
        (tiny.decode(one.tokens), one.ended)
        for seed in range(12)
        for one in documents(tiny, json.dumps(schema), n=8, seed=seed, temperature=3.0)
    }
    assert found == {("[1,1]", False), ("[2,2]", False), ("[1,2]", True), ("[2,1]", True)}


def test_a_schema_without_an_end_is_told_when_it_is_met():
    matcher = spelled_out().matcher(
        '{"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"]}'
    )
    with pytest.raises(ModelError, match="simplify the schema"):
        for byte in b'{"x":{"x":':
            assert matcher.allowed()[byte]
            matcher.advance([byte])
    assert not matcher.whole


def test_a_tokenizer_that_cannot_be_told_as_bytes_is_refused():
    with pytest.raises(ModelNotSupportedError, match="tokenizer"):
        vocabulary_of(object(), SIZE, SPECIAL)


# --- what only narrows a schema -------------------------------------------------------------------------


def follow(matcher: Matcher, text: str) -> bool:
    """Return whether the bytes of a text may follow one another."""
    for byte in text.encode():
        if not matcher.allowed()[byte]:
            return False
        matcher.advance([byte])
    return True


def may_be(schema: dict[str, Any], text: str) -> bool:
    matcher = spelled_out().matcher(json.dumps(schema))
    return follow(matcher, text) and matcher.may_end


def test_white_space_never_stands_between_the_parts():
    schema = {"type": "array", "items": {"type": "string"}, "x-guidance": {"whitespace_flexible": True}}
    assert may_be(schema, '["a b","c"]')
    for text in (' ["a"]', '[ "a"]', '["a"] ', '["a", "b"]', '["a"\n]'):
        assert not may_be(schema, text)


def test_an_object_that_names_its_properties_gets_no_others():
    named = {"type": "object", "properties": {"a": {"type": "null"}}}
    assert may_be(named, '{"a":null}')
    assert not may_be(named, '{"b":1}')
    assert not may_be({"type": "array", "items": named}, '[{"b":1}]')
    assert not may_be({"anyOf": [named]}, '{"b":1}')
    assert may_be(named | {"additionalProperties": {"type": "integer"}}, '{"b":1}')
    assert may_be(named | {"required": ["b"]}, '{"b":1}')
    assert may_be({"type": "object"}, '{"b":1}')
    # Beside another schema of the same object, what one does not name the other one may.
    assert may_be({"allOf": [named, {"properties": {"b": {"type": "integer"}}}]}, '{"a":null,"b":1}')
    assert may_be(named | {"$defs": {"b": {"required": ["b"]}}, "$ref": "#/$defs/b"}, '{"b":1}')
    # What only looks like a schema stays as it is.
    assert may_be({"const": {"properties": {}}}, '{"properties":{}}')
    assert may_be({"type": "object", "properties": {"properties": {"type": "null"}}}, '{"properties":null}')


@pytest.mark.parametrize(
    "schema", [{"type": "integer"}, {"type": "number"}, {}, {"type": "number", "minimum": 0}]
)
@pytest.mark.parametrize("liked", [b"0123456789", b"19.", b"19.eE+", b"0"])
def test_numbers_come_to_an_end(schema: dict[str, Any], liked: bytes, words: Vocabulary):
    for vocabulary in (words, spelled_out()):
        matcher = vocabulary.matcher(json.dumps({"type": "array", "items": schema, "maxItems": 2}))
        matcher.advance(vocabulary.tokens.greedy_tokenize("["))
        text = ""
        while True:
            allowed = np.flatnonzero(matcher.allowed() & ~vocabulary.ends)
            pieces = {int(token): vocabulary.tokens.decode_bytes([int(token)]) for token in allowed}
            greedy = max(
                pieces, key=lambda token: bytes(b for b in pieces[token] if b in liked) == pieces[token]
            )
            if not set(pieces[greedy]) <= set(liked):
                break
            matcher.advance([greedy])
            text += pieces[greedy].decode()
        assert 0 < len(text) <= 24
        assert float(text.rstrip(".")) < 1e25


def test_whole_numbers_are_those_that_every_reader_knows():
    for schema in ({}, {"minimum": 5}, {"exclusiveMinimum": 0}):
        assert may_be({"type": "integer"} | schema, str(2**53))
        assert not may_be({"type": "integer"} | schema, str(2**53 + 1))
    assert may_be({"type": "integer"}, str(-(2**53)))
    assert not may_be({"type": "integer", "maximum": -3}, str(-(2**53) - 1))
    assert may_be({"type": "integer", "enum": [2**53, 1]}, "1")


def test_a_schema_may_name_a_longer_number():
    for number in ("1e-15", "-0.000000000000123", "12345678901234.5"):
        schema = {"const": json.loads(number)}
        text = write(spelled_out(), schema, np.random.default_rng(0))
        assert text is not None
        Draft202012Validator(schema).validate(json.loads(text))


# --- local models ---------------------------------------------------------------------------------------

BOUNDED = json.dumps(SCHEMAS["numbers"])


def request(model: TransformersModel, schema: str = BOUNDED, **changes: Any) -> Sample:
    return replace(Sample(model.encode("the film"), n=3, max_tokens=120, seed=5, schema=schema), **changes)


def documents(model: TransformersModel, schema: str = BOUNDED, **changes: Any) -> tuple[Continuation, ...]:
    (reply,) = model.sample([request(model, schema, **changes)])
    return reply.continuations


@pytest.mark.parametrize(
    "changes", [{}, {"temperature": 3.0}, {"top_k": 2}, {"top_p": 0.3}, {"top_k": 1, "n": 1}]
)
@pytest.mark.parametrize("name", ["numbers", "nested objects", "an enumeration", "a pattern"])
def test_a_model_writes_documents_that_fit(tiny: TransformersModel, name: str, changes: dict[str, Any]):
    for one in documents(tiny, json.dumps(SCHEMAS[name]), **changes):
        assert tiny.text.special.isdisjoint(one.tokens)
        assert one.ended or len(one.tokens) == 120
        if one.ended:
            Draft202012Validator(SCHEMAS[name]).validate(json.loads(tiny.decode(one.tokens)))


@pytest.mark.parametrize("word", ["<|im_end|>", "a<|im_start|>b"])
def test_a_special_token_that_a_schema_spells_is_text(word: str, tiny: TransformersModel):
    schema = {
        "type": "object",
        "properties": {word: {"const": f"x{word}"}, "n": {"const": 1}},
        "required": [word, "n"],
    }
    for one in documents(tiny, json.dumps(schema), n=2):
        assert one.ended and tiny.text.special.isdisjoint(one.tokens)
        assert json.loads(tiny.decode(one.tokens)) == {word: f"x{word}", "n": 1}


def test_a_whole_document_costs_no_pass_more(tiny: TransformersModel):
    tiny.forget()
    (reply,) = tiny.sample([request(tiny, '{"const": [1, 2]}', n=1)])
    (one,) = reply.continuations
    assert tiny.decode(one.tokens) == "[1,2]"
    assert one.ended
    assert one.logprob == pytest.approx(sum(one.logprobs))
    assert reply.forwards == len(one.tokens)
    assert reply.model_tokens == len(tiny.encode("the film")) + len(one.tokens) - 1


def test_a_document_that_may_go_on_ends_by_the_models_own_end(tiny: TransformersModel):
    found = [one for one in documents(tiny, '{"type": "integer"}', n=8) if len(one.tokens) < 15]
    assert found
    for one in found:
        assert one.ended
        assert one.logprob < sum(one.logprobs)  # the end's share
        int(tiny.decode(one.tokens))


def test_max_tokens_cuts_a_document_off(tiny: TransformersModel):
    wholes = (documents(tiny, n=1, seed=seed)[0] for seed in range(20))
    seed, whole = next((seed, whole) for seed, whole in enumerate(wholes) if len(whole.tokens) > 31)
    for most in (1, 2, 3, 10, 30, len(whole.tokens) - 1):
        (cut,) = documents(tiny, n=1, seed=seed, max_tokens=most)
        assert (cut.tokens, cut.ended) == (whole.tokens[:most], False)
    (again,) = documents(tiny, n=1, seed=seed, max_tokens=len(whole.tokens))
    assert (again.tokens, again.ended) == (whole.tokens, True)


def test_a_document_is_the_same_alone_and_in_a_batch(tiny: TransformersModel):
    asked = [request(tiny, json.dumps(s), seed=i, max_tokens=24) for i, s in enumerate(SCHEMAS.values())]
    asked.append(Sample(tiny.encode("the film is"), n=2, max_tokens=9, seed=3))
    alone = [tiny.sample([one])[0].continuations for one in asked]
    together = [reply.continuations for reply in tiny.sample(asked)]
    for one, other in zip(alone, together, strict=True):
        assert [(c.tokens, c.ended) for c in one] == [(c.tokens, c.ended) for c in other]


def test_a_pass_that_fails_leaves_a_document_as_it_was(
    tiny: TransformersModel, monkeypatch: pytest.MonkeyPatch
):
    expected = documents(tiny)
    job, other = tiny.begin(request(tiny)), tiny.begin(request(tiny, seed=6))

    def broken(self: SampleJob, rows: Any) -> Any:
        if self is other:
            raise RuntimeError("broken")
        return real(self, rows)

    real = SampleJob.weigh
    while job.reply is None:
        monkeypatch.setattr(SampleJob, "weigh", broken)
        with pytest.raises(RuntimeError, match="broken"):
            tiny.step([job, other])
        monkeypatch.setattr(SampleJob, "weigh", real)
        tiny.step([job])
    assert isinstance(job.reply, Samples)
    assert [c.tokens for c in job.reply.continuations] == [c.tokens for c in expected]


def test_a_schema_that_cannot_be_held_to_spoils_no_other_request(tiny: TransformersModel):
    passes = tiny.forwards
    with pytest.raises(PromptError, match="look-around"):
        documents(tiny, '{"pattern": "(?=a)b", "type": "string"}')
    assert tiny.forwards == passes
    assert documents(tiny)


def test_what_was_read_before_is_told(tiny: TransformersModel):
    tiny.forget()
    prefix = tiny.encode("the film is good and kind people answer")
    asked = Sample(prefix, n=2, max_tokens=3, seed=1)
    (first,) = tiny.sample([asked])
    (second,) = tiny.sample([asked])
    (longer,) = tiny.sample([replace(asked, prefix=prefix + prefix)])
    assert (first.cached_tokens, second.cached_tokens, longer.cached_tokens) == (
        0,
        len(prefix) - 1,
        len(prefix),
    )
    assert first.model_tokens - second.model_tokens == len(prefix) - 1


# --- the scripted model ---------------------------------------------------------------------------------

ANSWER = json.dumps({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]})


def scripted(words: dict[str, float]) -> ScriptedModel:
    return ScriptedModel(lambda text: words)


def test_a_script_says_only_what_the_schema_allows():
    model = scripted(dict.fromkeys(("{", '"', "ok", ":", "true", "false", "}", " ", "no", END), 1.0))
    (reply,) = model.sample([Sample(model.encode("Well?"), n=20, max_tokens=20, seed=1, schema=ANSWER)])
    texts = {model.decode(one.tokens) for one in reply.continuations}
    assert texts == {'{"ok":true}', '{"ok":false}'}
    assert all(one.ended and len(one.tokens) == 7 for one in reply.continuations)
    assert (reply.forwards, reply.cached_tokens) == (7, 0)
    assert reply.model_tokens == len(model.encode("Well?")) + 20 * 6


def test_a_script_may_end_a_document_that_may_go_on():
    model = ScriptedModel(script({"": {"1": 1.0}, "11": {END: 1.0}}))
    (reply,) = model.sample([Sample(model.encode("How many?"), 1, 9, 1, schema='{"type": "integer"}')])
    (one,) = reply.continuations
    assert (model.decode(one.tokens), one.ended, reply.forwards) == ("11", True, 3)


def test_a_script_that_cannot_say_what_is_asked_for_is_told_so():
    model = scripted({"{": 1.0, "yes": 2.0})
    with pytest.raises(ModelError, match=r"the script offers '\{', 'yes', and the schema allows none"):
        model.sample([Sample(model.encode("Well?"), 1, 9, 1, schema=ANSWER)])


def test_a_script_is_checked_at_the_end():
    model = scripted({'"b"': 1.0})
    for schema, whole in ((LETTERS, True), (CHECKED["all but one"], False)):
        (reply,) = model.sample([Sample(model.encode("Which?"), 1, 9, 1, schema=json.dumps(schema))])
        (one,) = reply.continuations
        assert (model.decode(one.tokens), one.ended) == ('"b"', whole)


# --- the real model -------------------------------------------------------------------------------------


@pytest.mark.real
def test_the_embedded_model_writes_documents_that_fit(real_model: TransformersModel):
    prefix = real_model.encode("A person, as JSON: ")
    asked = [
        Sample(prefix, n=4, max_tokens=80, seed=i, temperature=0.7 + i % 3 * 0.5, schema=json.dumps(schema))
        for i, schema in enumerate(SCHEMAS.values())
    ]
    whole = 0
    for schema, reply in zip(SCHEMAS.values(), real_model.sample(asked), strict=True):
        for one in reply.continuations:
            assert real_model.text.special.isdisjoint(one.tokens)
            if one.ended:
                Draft202012Validator(schema).validate(json.loads(real_model.decode(one.tokens)))
                whole += 1
            else:
                assert len(one.tokens) == 80
    assert whole >= 48  # of 56
