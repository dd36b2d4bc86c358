"""What a model is asked, and what it replies.

A search yields requests and receives replies, and knows no model: :class:`Samples` for a :class:`Sample`,
:class:`Scores` for a :class:`Score`, :class:`Values` for a :class:`Read`, :class:`Embeddings` for an
:class:`Embed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rain_llm.types import TokenIds

Vector: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sample:
    """Ask the writer for ``n`` continuations of ``prefix``.

    Attributes:
        prefix: token ids, at least one.
        n: how many continuations, >= 1.
        max_tokens: the most tokens of each, >= 1.
        seed: of this request's own random generator; the same request gives the same reply,
            whatever else shares its batch (within the numerical tolerance of the model).
        temperature: > 0; divides the logits.
        top_k: sample from the k most likely tokens only; 0 means all.
        top_p: sample from the smallest set of tokens with this much probability, in (0, 1].
        greedy_first: the first continuation takes the most likely token at every position.
        ranked: instead of sampling, return the ``n`` most likely next tokens in order
            (``max_tokens`` must be 1).
        ends: a continuation ends after the first token whose text ends with one of these.
        schema: JSON text of a JSON schema: a continuation is one compact JSON document that matches
            it, and has ``ended`` if it does (otherwise ``max_tokens`` cut it off, or it violates what no
            grammar can enforce, such as ``uniqueItems``); "": any text. Not with ``ranked``,
            ``greedy_first`` or ``ends``.
        start: number of tokens of an earlier part of this continuation, which stand at the prefix's end: a
            continuation that is drawn in parts, with one seed, is the same as in one. Only models in this
            process heed it.
    """

    prefix: TokenIds
    n: int
    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    greedy_first: bool = False
    ranked: bool = False
    ends: tuple[str, ...] = ()
    schema: str = ""
    start: int = 0


@dataclass(frozen=True, slots=True)
class Score:
    """Ask the judge for the log-probability of each of several continuations of ``prefix``.

    Attributes:
        prefix: token ids, at least one.
        options: the continuations, each of at least one token.
        relative: only differences between the options are needed: all log-probabilities may be off by one
            constant. This saves llama-server a request.
    """

    prefix: TokenIds
    options: tuple[TokenIds, ...]
    relative: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What to read from a model's hidden states: one number for each token.

    The number is the sum of the products of ``weights`` and the hidden states of the token.

    Attributes:
        name: digest of layers and weights: readings with the same name are the same.
        layers: the blocks whose output is read, counted from 0.
        weights: shape [layers, width].
    """

    name: str
    layers: tuple[int, ...]
    weights: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Read:
    """Ask the judge for the numbers that it reads from the hidden states of ``tokens`` after ``prefix``.

    Tokens that the model has already computed, for a ``Sample`` for example, cost nothing.

    Attributes:
        prefix: token ids, at least one.
        tokens: the tokens to read, at least one.
        readings: names of readings that the model watches; see :class:`~rain_llm.models.base.Readable`.
    """

    prefix: TokenIds
    tokens: TokenIds
    readings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Embed:
    """Ask for the sentence embedding of each text."""

    texts: tuple[str, ...]


Request: TypeAlias = Sample | Score | Read | Embed


@dataclass(frozen=True, slots=True)
class Continuation:
    """Tokens that follow a prefix.

    Attributes:
        tokens: never contains a special token.
        logprobs: one per token, nats: the model's own log-probability over its whole vocabulary
            at temperature 1, whatever the request's temperature, top_k and top_p.
        ended: the model ended the text after these tokens (then ``tokens`` may be empty), or the document
            that a schema asks for is complete and matches it.
        logprob: sum of ``logprobs``, plus that of the end token where ``ended``.
    """

    tokens: TokenIds
    logprobs: tuple[float, ...]
    ended: bool
    logprob: float


@dataclass(frozen=True, slots=True)
class Samples:
    """The reply to :class:`Sample`, with what it cost.

    Attributes:
        continuations: as many as were asked for.
        model_tokens: tokens that went through the model for this request (cached ones do not).
        forwards: forward passes in which this request took part.
        cached_tokens: of the prefix, that the model had read before.
    """

    continuations: tuple[Continuation, ...]
    model_tokens: int = 0
    forwards: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Scores:
    """The reply to :class:`Score`: one log-probability (nats) for each option, and its cost."""

    logprobs: tuple[float, ...]
    model_tokens: int = 0
    forwards: int = 0


@dataclass(frozen=True, slots=True)
class Values:
    """The reply to :class:`Read`: for each reading, one number for each token; and its cost."""

    values: tuple[tuple[float, ...], ...]
    model_tokens: int = 0
    forwards: int = 0


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The reply to :class:`Embed`: a unit vector for each text, of one common length."""

    vectors: tuple[Vector, ...]


Reply: TypeAlias = Samples | Scores | Values | Embeddings
