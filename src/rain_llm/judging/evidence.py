"""Select the sentences of the passages that an answer is judged against.

A judge that reads all passages also reads any text injected into them, and a small judge overlooks the
sentence that matters. So for each sentence of the answer, the judge sees only the passage sentence that
shares most words with it and the question, or nothing if none shares a word.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

_Index: TypeAlias = tuple[list[str], list[float], dict[str, list[int]]]

_SENTENCE = re.compile(r"(?<=[.!?…])\s+|(?<=[\u3002\uff01\uff1f])|\n+")
_WORD = re.compile(r"[^\W_]+")
# Scripts that put no spaces between words: Thai to Burmese, Khmer, Japanese and Chinese.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]{2,}")
_LONG = 20_000  # characters; an index takes about ten times as much memory as its text
_STEM = 4  # letters: "cook", "cooks" and "cooking" count as one word


def pertinent(context: str, question: str, answer: str) -> str:
    """Select the passage sentences that an answer is judged against.

    A shared word weighs ``log((1 + n) / m)``, where n is the number of passage sentences and m the number of
    those that contain the word. A sentence's score is the sum over its shared words, divided by the square
    root of its length in words.

    Args:
        context: the passages.
        question: the question.
        answer: the answer, possibly unfinished; "": select by the question alone.

    Returns:
        The best passage sentence for each sentence of the answer, without duplicates, in passage order,
        joined by spaces; "" if none shares a word.
    """
    index, asked = _read(context), _words(question)
    places = {
        _best(index, dict.fromkeys(asked | _words(statement), 1.0))
        for statement in _SENTENCE.split(answer.strip())
    }
    return " ".join(index[0][place] for place in sorted(place for place in places if place is not None))


def nearest(
    passages: Sequence[str], question: str, statements: Sequence[str]
) -> list[tuple[int, str] | None]:
    """Find the passage sentence that each statement is most likely about.

    Scores are those of :func:`pertinent`, except that a word that only the question contains counts a
    quarter, so that a statement off the question finds its own subject.

    Args:
        passages: the passages in order; joined by blank lines, they are the context of :func:`pertinent`.
        question: the question.
        statements: the statements, each scored as one unit.

    Returns:
        For each statement, the index of the passage (from 0) and its sentence; None if no sentence shares a
        word.
    """
    index, asked = _read("\n\n".join(passages)), _words(question)
    owners = iter([i for i, one in enumerate(passages) for part in _SENTENCE.split(one) if part.strip()])
    owner = {place: next(owners) for place, sentence in enumerate(index[0]) if sentence}
    found = (
        _best(index, dict.fromkeys(asked, 0.25) | dict.fromkeys(_words(statement), 1.0))
        for statement in statements
    )
    return [None if place is None else (owner[place], index[0][place]) for place in found]


def _best(index: _Index, words: Mapping[str, float]) -> int | None:
    """Return the index of the sentence that best matches these weighted words; None if none shares a word."""
    sentences, roots, having = index
    shared: dict[int, float] = {}
    for word in sorted(words):  # a fixed order, because sums of floats depend on it
        for place in (places := having.get(word, ())):
            rarity = math.log((1 + len(sentences)) / len(places))
            shared[place] = shared.get(place, 0.0) + words[word] * rarity
    return max(sorted(shared), key=lambda place: shared[place] / roots[place]) if shared else None


def _read(context: str) -> _Index:
    """Return the cached index of a context; few long contexts are cached, and more short ones."""
    return (_read_long if len(context) > _LONG else _read_short)(context)


def _index(context: str) -> _Index:
    """Return the sentences of a context, the roots of their lengths, and the sentences with each word."""
    sentences = [sentence.strip() for sentence in _SENTENCE.split(context)]
    words_of = [_words(sentence) for sentence in sentences]
    having: dict[str, list[int]] = {}
    for place, words in enumerate(words_of):
        for word in words:
            having.setdefault(word, []).append(place)
    return sentences, [math.sqrt(max(1, len(words))) for words in words_of], having


_read_short = lru_cache(maxsize=64)(_index)
_read_long = lru_cache(maxsize=4)(_index)


def _words(text: str) -> frozenset[str]:
    text = text.casefold()
    pairs = {run[i : i + 2] for run in _UNSPACED.findall(text) for i in range(len(run) - 1)}
    words = _WORD.findall(_UNSPACED.sub(" ", text))
    return frozenset(word if word.isdigit() else word[:_STEM] for word in words) | pairs
