"""Constrained decoding: compute which tokens may come next, so that a document matches its JSON schema.

This is the only module that uses llguidance. It restricts documents further than their schema, because small
models otherwise write endless ones: no white space between parts, no properties that the schema does not
mention, integers within 2^53, and numbers of about 18 characters at most.

A grammar restricts how a document is spelled, not everything that a schema requires. So a complete document
is also validated against its schema; one that does not match counts as incomplete. ``uniqueItems``, ``not``,
``if`` and overlapping alternatives are checked only there; so are repeated names in an object. A list of
different items ends when there are no further ones (``models/distinct.py``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rain_llm.bounds import GRAMMAR_ROW, LEXER_STATES
from rain_llm.errors import ModelError, ModelNotSupportedError, PromptError
from rain_llm.models.distinct import ended
from rain_llm.models.schema_size import check_size
from rain_llm.models.validation import DocumentCheck, changed, parts_of
from rain_llm.requests import Sample
from rain_llm.schemas import without_notes

if TYPE_CHECKING:
    import llguidance

Mask = NDArray[np.bool_]

_COMPILED = 32  # compiled schemas cached per vocabulary
_LARGEST_INTEGER = 2**53  # JSON readers that use doubles do not distinguish larger integers
_DIGITS = 15  # maximum digits of a schema's number with a decimal point
_LONG = 18  # characters of a number: a double's 17 digits, and a point or a sign

_COMBINED = {"$ref", "anyOf", "oneOf", "allOf"}
# Keywords that the grammar cannot enforce.
_CHECKED = {
    *("uniqueItems", "contains", "minContains", "maxContains", "unevaluatedItems"),
    *("propertyNames", "dependencies", "dependentRequired", "dependentSchemas", "unevaluatedProperties"),
    *("not", "if", "then", "else"),
}


class Vocabulary:
    """A model's tokens as bytes, with a cache of compiled grammars. Thread-safe.

    Args:
        tokens: llguidance's tokenizer; see :func:`spelled_out` and :func:`vocabulary_of`.
    """

    def __init__(self, tokens: llguidance.LLTokenizer) -> None:
        self.tokens = tokens
        self.size = tokens.vocab_size
        self.ends = np.zeros(self.size, np.bool_)
        self.ends[tokens.eos_tokens] = True
        self.special = np.array([tokens.is_special_token(i) for i in range(self.size)]) | self.ends
        pieces = [b"" if self.special[i] else tokens.decode_bytes([i]) for i in range(self.size)]
        self._pieces = pieces
        # Tokens to exclude from numbers: an exponent always, any continuation if the number is long.
        self.with_exponent = _matching(rb'[^"]*[0-9][eE]', pieces)
        self.exponent = _matching(rb"[eE]", pieces)
        self.more_of_number = _matching(rb"[-+.0-9eE]", pieces)
        self._compiled = lru_cache(_COMPILED)(self._compile)

    def matcher(self, schema: str) -> Matcher:
        """Create a matcher at the beginning of a document of ``schema``.

        Args:
            schema: JSON text.

        Raises:
            PromptError: it is not a schema, or is not supported; the message gives the reason.
        """
        compiled, check = self._compiled(schema)
        return Matcher(self, compiled.deep_copy(), check)

    def spelling(self, text: bytes) -> Mask:
        """Return a mask of the ordinary tokens that ``text`` can begin with."""
        found = [i for i, piece in enumerate(self._pieces) if piece and text.startswith(piece)]
        mask = np.zeros(self.size, np.bool_)
        mask[found] = True
        return mask

    def _compile(self, schema: str) -> tuple[llguidance.LLMatcher, DocumentCheck]:
        from llguidance import LLMatcher, LLParserLimits

        try:
            prepared = _prepared(schema)
            grammar = LLMatcher.grammar_from_json_schema(prepared.grammar)
            limits = LLParserLimits(
                verbose_errors=False, max_lexer_states=LEXER_STATES, max_items_in_row=GRAMMAR_ROW
            )
            compiled = LLMatcher(self.tokens, grammar, log_level=0, limits=limits)
            if compiled.is_error():
                raise ValueError(compiled.get_error())
            beginning = compiled.deep_copy()
            beginning.compute_bitmask()
            if beginning.is_error():
                raise ValueError(f"no document matches it ({beginning.get_error()})")
        except (ValueError, RecursionError) as error:
            raise PromptError(
                f"this schema is not supported: {' '.join(str(error).split())}: remove that part, or "
                "write it another way"
            ) from error
        return compiled, prepared.check


class Matcher:
    """The state of one document: which tokens may follow. Created by :meth:`Vocabulary.matcher`."""

    def __init__(self, vocabulary: Vocabulary, matcher: llguidance.LLMatcher, check: DocumentCheck) -> None:
        self._vocabulary = vocabulary
        self._matcher = matcher
        self._check = check
        self._text = bytearray()
        self._in_string = self._escaped = False
        self._number = 0  # length of the number at the document's end

    @property
    def whole(self) -> bool:
        """Return whether the document is complete and nothing may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def allowed(self) -> Mask:
        """Return a mask of the tokens that may follow, with end tokens once the document is complete.

        Raises:
            ModelError: no token may follow, or the grammar has exceeded its limits.
        """
        words = self._vocabulary
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        found: Mask = np.unpackbits(packed, count=words.size, bitorder="little").view(np.bool_)
        # A schema may contain the name of a special token: it must be written as ordinary tokens.
        if not self.may_end and (found & words.special).any():
            found = words.spelling(self._matcher.compute_ff_bytes())
        if self._matcher.is_error() or not found.any():
            why = " ".join(self._matcher.get_error().split()) or "no token can follow"
            raise ModelError(f"a document cannot be continued by its schema: {why}: simplify the schema")
        if not self._in_string:
            barred = words.with_exponent
            if self._number:
                barred = barred | (words.more_of_number if self._number >= _LONG else words.exponent)
            shorter = found & ~barred
            found = shorter if shorter.any() else found  # a schema may require a longer number
        return found

    def allows(self, text: bytes) -> bool:
        """Return whether ``text`` may follow; only for the vocabulary of single bytes."""
        return self._matcher.validate_tokens(list(text)) == len(text)

    @property
    def may_end(self) -> bool:
        """Return whether the document is complete, even if more may follow."""
        return self._matcher.is_accepting()

    @property
    def fits(self) -> bool:
        """Return whether the document, which is complete, matches its schema."""
        return self._check.fits(self._text.decode())

    def advance(self, tokens: Sequence[int]) -> None:
        """Append ``tokens``, which must be allowed and must not be end tokens."""
        self._matcher.consume_tokens(list(tokens))
        text = self._vocabulary.tokens.decode_bytes(list(tokens))
        self._text += text
        for byte in text:
            if self._in_string:
                self._in_string = self._escaped or byte != ord('"')
                self._escaped = not self._escaped and byte == ord("\\")
            elif byte in b"-0123456789" or (self._number and byte in b"+.eE"):
                self._number += 1
            else:
                self._number = 0
                self._in_string = byte == ord('"')


def vocabulary_of(tokenizer: Any, size: int, ends: frozenset[int]) -> Vocabulary:
    """Build the vocabulary of a transformers tokenizer, which takes about a second.

    Args:
        tokenizer: a fast tokenizer.
        size: number of the model's logits.
        ends: the tokens that end a text.

    Raises:
        ModelNotSupportedError: its tokens cannot be converted to bytes.
    """
    from llguidance.hf import from_tokenizer

    try:
        return Vocabulary(from_tokenizer(tokenizer, n_vocab=size, eos_token=sorted(ends)))
    except Exception as error:  # the library passes on any error of its parts
        raise ModelNotSupportedError(
            f"this model's tokenizer does not support constrained decoding: {error}"
        ) from error


class _Bytes:
    """What llguidance needs of a tokenizer."""

    def __init__(
        self,
        tokens: Sequence[bytes],
        special: Sequence[int],
        end: int,
        encode: Callable[[str], Sequence[int]],
    ) -> None:
        self.tokens = tokens
        self.special_token_ids = special
        self.eos_token_id = end
        self.bos_token_id = None
        self._encode = encode

    def __call__(self, text: str) -> list[int]:
        return list(self._encode(text))


def vocabulary_of_bytes(
    pieces: Sequence[bytes],
    special: frozenset[int],
    ends: frozenset[int],
    encode: Callable[[str], Sequence[int]],
) -> Vocabulary:
    """Build the vocabulary of a tokenizer whose tokens are known as bytes.

    Args:
        pieces: bytes of each token.
        special: the tokens that are never text.
        ends: those of them that end a text.
        encode: encodes text as ordinary tokens.

    Raises:
        ModelNotSupportedError: no token ends a text.
    """
    from llguidance import LLTokenizer, TokenizerWrapper

    if not ends:
        raise ModelNotSupportedError("this model has no end token, which constrained decoding needs")
    # A special token is never written, whatever its name is; llguidance marks it by a byte of no text.
    named = [b"\xff" + str(i).encode() if i in special else piece for i, piece in enumerate(pieces)]
    wrapped = TokenizerWrapper(_Bytes(named, sorted(special), min(ends), encode))
    return Vocabulary(LLTokenizer(wrapped, eos_token=sorted(ends)))


@cache
def spelled_out() -> Vocabulary:
    """Return a vocabulary of single bytes."""
    from llguidance import LLTokenizer

    return Vocabulary(LLTokenizer("byte"))


def check(schema: str) -> None:
    """Check that a schema is supported, before any model runs.

    Args:
        schema: JSON text.

    Raises:
        PromptError: it is not a schema, or has an unsupported part; the message names it.
    """
    spelled_out().matcher(schema)


def narrowed(schema: str) -> str:
    """Return the restricted schema from which a grammar is compiled; its documents also pass :func:`fits`.

    Servers that use llguidance also read ``x-guidance`` in it; others ignore that.

    Args:
        schema: JSON text.

    Raises:
        ValueError: it is not a schema, or contains an unsupported number.
        RecursionError: it is nested too deeply.
    """
    return _prepared(schema).grammar


class _Prepared(NamedTuple):
    """A schema in two forms: the input of the grammar, and the check of complete documents."""

    grammar: str
    check: DocumentCheck


@lru_cache(_COMPILED)
def _prepared(schema: str) -> _Prepared:
    from llguidance import LLMatcher

    check_size(schema)
    read = json.loads(schema, parse_int=_exact, parse_float=_exact, parse_constant=_exact)
    if not isinstance(read, dict):
        raise ValueError(f"it is not a JSON object but {schema[:40]}")
    check = DocumentCheck(schema)
    read = changed(read, without_notes)
    listed = changed(read, lambda part: ended(read, part))
    closed = listed if _combines(read) else changed(listed, _closed)
    exact = closed | {"x-guidance": {"whitespace_flexible": False, "lenient": False}}
    if not LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(exact)):
        return _Prepared(json.dumps(exact), check)
    guidance = {"whitespace_flexible": False, "lenient": True, "coerce_one_of": True}
    return _Prepared(json.dumps(changed(closed, _loosened) | {"x-guidance": guidance}), check)


def fits(text: str, schema: str) -> bool:
    """Return whether a complete JSON document matches a schema and the restrictions of this module.

    Args:
        text: JSON, possibly with white space between its parts.
        schema: JSON text of a supported schema.
    """
    if not _prepared(schema).check.fits(text):
        return False
    compact = json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":")).encode()
    matcher = spelled_out().matcher(schema)
    if not matcher.allows(compact):
        return False
    matcher.advance(compact)
    return matcher.whole or matcher.may_end


def check_sample(request: Sample) -> None:
    """Check that a request with a schema has no options that cannot be combined with one.

    Raises:
        PromptError: it has one; the message names it.
    """
    if request.schema:
        for name in ("ranked", "greedy_first", "ends"):
            if getattr(request, name):
                raise PromptError(f"a schema and {name}={getattr(request, name)!r} cannot be combined")


def _exact(number: str) -> float:
    """Parse a number of a schema; raise an error if llguidance would not reproduce it exactly."""
    value = float(number)
    if not abs(value) <= _LARGEST_INTEGER:
        raise ValueError(f"the number {number} is beyond 2^53")
    if number.lstrip("-").isdigit():
        return int(number)
    if not float(f"{value:.{_DIGITS}g}") == float(f"{value:.{_DIGITS}f}") == value:
        raise ValueError(f"the number {number} has more than {_DIGITS} digits")
    return value


def _matching(pattern: bytes, pieces: Sequence[bytes]) -> Mask:
    matches = re.compile(pattern).match
    return np.fromiter((matches(piece) is not None for piece in pieces), np.bool_, len(pieces))


def _combines(schema: dict[str, Any]) -> bool:
    """Return whether two schemas with properties may apply to the same object."""
    return any(
        "allOf" in part or ("properties" in part and _COMBINED & part.keys()) for part in parts_of(schema)
    )


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Forbid unmentioned properties and unbounded integers in a schema; see the module's docstring."""
    closed = dict(schema)
    named = closed.get("properties")
    if isinstance(named, dict) and named.keys() >= _mentioned(closed):
        closed.setdefault("additionalProperties", False)
    if closed.get("type") == "integer" and not closed.keys() & {"const", "enum"}:
        closed = {"minimum": -_LARGEST_INTEGER, "maximum": _LARGEST_INTEGER} | closed
    return closed


def _mentioned(schema: Any) -> set[str]:
    """Return all properties that an object's schema mentions."""
    if isinstance(schema, list):
        return {name for name in schema if isinstance(name, str)}
    if not isinstance(schema, dict):
        return set()
    parts = [schema.get(key) for key in ("required", "if", "then", "else")]
    for key in ("dependencies", "dependentRequired", "dependentSchemas"):
        parts += schema[key].values() if isinstance(schema.get(key), dict) else ()
    named = schema.get("properties")
    return set(named if isinstance(named, dict) else ()).union(*map(_mentioned, parts))


def _loosened(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in _CHECKED}
