"""JSON schemas inside sampling: which tokens may come next, so that a document fits its schema.

The only module that knows llguidance. Documents are compact: no white space between their parts, in which
small models lose themselves. For the same reason an object that names its properties gets no others unless
its schema speaks of them, whole numbers are those that every reader of JSON knows (within 2^53), and numbers
end after some 18 characters; all of this only narrows what a schema allows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rain_llm.errors import ModelError, ModelNotSupportedError, PromptError
from rain_llm.types import Sample

if TYPE_CHECKING:
    import llguidance

Mask = NDArray[np.bool_]

_COMPILED = 32  # schemas that a vocabulary remembers
_WHOLE = 2**53  # greater numbers are not told apart by what reads JSON into doubles
_DIGITS = 15  # of a number with a point, in a schema
_LONG = 18  # characters of a number: a double's 17 digits, and a point or a sign

# Where schemas hang in a schema: by name, in a row, alone.
_NAMED = {"properties", "patternProperties", "$defs", "definitions"}
_LISTED = {"anyOf", "oneOf", "allOf", "prefixItems"}
_ALONE = {"items", "additionalProperties"}
_COMBINED = {"$ref", "anyOf", "oneOf", "allOf"}


class Vocabulary:
    """A model's tokens as bytes, and the grammars that were compiled for them. May be used by any thread.

    Args:
        tokens: llguidance's view of them: see :func:`spelled_out`, :func:`vocabulary_of`.
    """

    def __init__(self, tokens: llguidance.LLTokenizer) -> None:
        self.tokens = tokens
        self.size = tokens.vocab_size
        self.ends = np.zeros(self.size, np.bool_)
        self.ends[tokens.eos_tokens] = True
        pieces = [b"" if self.ends[i] else tokens.decode_bytes([i]) for i in range(self.size)]
        # What to keep a number from, outside of strings: an exponent at any time, more when it is long.
        self.with_exponent = _matching(rb'[^"]*[0-9][eE]', pieces)
        self.exponent = _matching(rb"[eE]", pieces)
        self.more_of_number = _matching(rb"[-+.0-9eE]", pieces)
        self._compiled = lru_cache(_COMPILED)(self._compile)

    def matcher(self, schema: str) -> Matcher:
        """Return what leads a document that fits ``schema``, at its beginning.

        Args:
            schema: JSON text.

        Raises:
            PromptError: it is no schema, or no document can be held to it; says why.
        """
        return Matcher(self, self._compiled(schema).deep_copy())

    def _compile(self, schema: str) -> llguidance.LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        try:
            grammar = LLMatcher.grammar_from_json_schema(narrowed(schema))
            limits = LLParserLimits(verbose_errors=False)
            compiled = LLMatcher(self.tokens, grammar, log_level=0, limits=limits)
            if compiled.is_error():
                raise ValueError(compiled.get_error())
            beginning = compiled.deep_copy()
            beginning.compute_bitmask()
            if beginning.is_error():
                raise ValueError(f"no document fits it ({beginning.get_error()})")
        except (ValueError, RecursionError) as error:
            raise PromptError(
                f"this schema cannot be held to: {' '.join(str(error).split())}: leave that out of it, or "
                "say it another way"
            ) from error
        return compiled


class Matcher:
    """What a document may go on with; made by :meth:`Vocabulary.matcher`."""

    def __init__(self, vocabulary: Vocabulary, matcher: llguidance.LLMatcher) -> None:
        self._vocabulary = vocabulary
        self._matcher = matcher
        self._in_string = self._escaped = False
        self._number = 0  # characters of the number that the document ends with

    @property
    def whole(self) -> bool:
        """The document is whole, and nothing may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def allowed(self) -> Mask:
        """Return which tokens may follow; those that end a text, where the document is whole.

        Raises:
            ModelError: none may, or the schema has become too much for the grammar.
        """
        words = self._vocabulary
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        found: Mask = np.unpackbits(packed, count=words.size, bitorder="little").view(np.bool_)
        if self._matcher.is_error() or not found.any():
            why = " ".join(self._matcher.get_error().split()) or "no token can be the next"
            raise ModelError(f"a document cannot go on by its schema: {why}: simplify the schema")
        if not self._in_string:
            barred = words.with_exponent
            if self._number:
                barred = barred | (words.more_of_number if self._number >= _LONG else words.exponent)
            shorter = found & ~barred
            found = shorter if shorter.any() else found  # a schema may name a longer number
        return found

    def allows(self, text: bytes) -> bool:
        """Return whether ``text`` may follow; of a vocabulary of bytes."""
        return self._matcher.validate_tokens(list(text)) == len(text)

    @property
    def may_end(self) -> bool:
        """The document is whole, though more of it may follow."""
        return self._matcher.is_accepting()

    def advance(self, tokens: Sequence[int]) -> None:
        """Go on behind ``tokens``, which are allowed and end no text."""
        self._matcher.consume_tokens(list(tokens))
        for byte in self._vocabulary.tokens.decode_bytes(list(tokens)):
            if self._in_string:
                self._in_string = self._escaped or byte != ord('"')
                self._escaped = not self._escaped and byte == ord("\\")
            elif byte in b"-0123456789" or (self._number and byte in b"+.eE"):
                self._number += 1
            else:
                self._number = 0
                self._in_string = byte == ord('"')


def vocabulary_of(tokenizer: Any, size: int, ends: frozenset[int]) -> Vocabulary:
    """Return the vocabulary of a tokenizer of transformers. Takes about a second.

    Args:
        tokenizer: a fast one.
        size: of the model's logits.
        ends: the tokens that end a text.

    Raises:
        ModelNotSupportedError: its tokens cannot be told as bytes.
    """
    from llguidance.hf import from_tokenizer

    try:
        return Vocabulary(from_tokenizer(tokenizer, n_vocab=size, eos_token=sorted(ends)))
    except Exception as error:  # the library raises what its parts raise
        raise ModelNotSupportedError(f"this model's tokenizer cannot write by a schema: {error}") from error


@cache
def spelled_out() -> Vocabulary:
    """Return a vocabulary of single bytes."""
    from llguidance import LLTokenizer

    return Vocabulary(LLTokenizer("byte"))


def check(schema: str) -> None:
    """See that documents can be held to a schema, before any model runs.

    Args:
        schema: JSON text.

    Raises:
        PromptError: it is no schema, or it asks for what cannot be held to; names it.
    """
    spelled_out().matcher(schema)


def narrowed(schema: str) -> str:
    """Return a schema of which every document fits ``schema`` and is compact; see the module.

    Servers that hold to schemas by llguidance read ``x-guidance`` in it too; others leave it.

    Args:
        schema: JSON text.

    Raises:
        ValueError: it is no schema, or holds a number that cannot be held to. RecursionError: it is too deep.
    """
    read = json.loads(schema, parse_int=_exact, parse_float=_exact, parse_constant=_exact)
    if not isinstance(read, dict):
        raise ValueError(f"it is not a JSON object but {schema[:40]}")
    closed = read if _combines(read) else _closed(read)
    return json.dumps(closed | {"x-guidance": {"whitespace_flexible": False, "lenient": False}})


def fits(document: object, schema: str) -> bool:
    """Tell whether a JSON document is one that local models could have written by a schema.

    Args:
        document: as ``json.loads`` gives it.
        schema: JSON text that was checked.
    """
    matcher = spelled_out().matcher(schema)
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    if not matcher.allows(text):
        return False
    matcher.advance(text)
    return matcher.whole or matcher.may_end


def check_sample(request: Sample) -> None:
    """See that nothing is asked for that does not go with a schema.

    Raises:
        PromptError: it is; names it.
    """
    if request.schema:
        for name in ("ranked", "greedy_first", "ends"):
            if getattr(request, name):
                raise PromptError(f"a schema and {name}={getattr(request, name)!r} do not go together")


def _exact(number: str) -> float:
    """Read a number of a schema, of which llguidance would otherwise write another one."""
    value = float(number)
    if not abs(value) <= _WHOLE:
        raise ValueError(f"the number {number} is beyond 2^53")
    if number.lstrip("-").isdigit():
        return int(number)
    if not float(f"{value:.{_DIGITS}g}") == float(f"{value:.{_DIGITS}f}") == value:
        raise ValueError(f"the number {number} has more than {_DIGITS} digits")
    return value


def _matching(pattern: bytes, pieces: Sequence[bytes]) -> Mask:
    matches = re.compile(pattern).match
    return np.fromiter((matches(piece) is not None for piece in pieces), np.bool_, len(pieces))


def _parts(schema: dict[str, Any]) -> list[Any]:
    """Return the schemas that hang directly in a schema."""
    found: list[Any] = [schema[key] for key in _ALONE & schema.keys()]
    for key in _NAMED & schema.keys():
        found += schema[key].values() if isinstance(schema[key], dict) else ()
    for key in _LISTED & schema.keys():
        found += schema[key] if isinstance(schema[key], list) else ()
    return found


def _combines(schema: Any) -> bool:
    """Return whether two schemas, each with properties of its own, may speak of one object."""
    if not isinstance(schema, dict):
        return False
    both = "properties" in schema and bool(_COMBINED & schema.keys())
    return both or "allOf" in schema or any(map(_combines, _parts(schema)))


def _closed(schema: Any) -> Any:
    """Return the schema without properties that are not named and endless numbers; see the module."""
    if not isinstance(schema, dict):
        return schema
    closed = dict(schema)
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, dict):
            closed[key] = {name: _closed(part) for name, part in value.items()}
        elif key in _LISTED and isinstance(value, list):
            closed[key] = [_closed(part) for part in value]
        elif key in _ALONE:
            closed[key] = _closed(value)
    named = closed.get("properties")
    if isinstance(named, dict) and named.keys() >= set(closed.get("required") or ()):
        closed.setdefault("additionalProperties", False)
    if closed.get("type") == "integer" and not closed.keys() & {"const", "enum"}:
        closed = {"minimum": -_WHOLE, "maximum": _WHOLE} | closed
    return closed
