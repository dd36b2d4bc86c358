"""Which sentences of the passages speak of an answer: what it is judged against.

A judge that reads all passages reads whatever somebody has written into them, and a small one loses the
sentence that matters among the others. So it is shown, for each sentence of the answer, the one sentence
that shares most words with it and the question. Where none shares any, it is shown nothing.
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
_LONG = 20_000  # characters; what was read takes some ten times as much
_STEM = 4  # letters: "cook", "cooks" and "cooking" meet


def pertinent(context: str, question: str, answer: str) -> str:
    """Pick the sentences of the passages that an answer is to be judged against.

    A shared word counts by its rarity in the passages: the logarithm of the number of their sentences,
    and one, over the number of those that have it. A sentence counts by the sum over its shared words,
    divided by the root of its length in words.

    Args:
        context: the passages.
        question: what was asked.
        answer: what was answered, perhaps not to its end; "": the evidence is of the question alone.

    Returns:
        The best sentence of the passages for each one of the answer: each once, in their order, as
        written, with a space between them; "" if none shares a word.
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
    """Name, for each statement, the passage with the sentence that it is most likely about.

    Sentences are weighed as in :func:`pertinent`, but a word that only the question has counts a quarter:
    a statement that is off the question is to find what it is about itself.

    Args:
        passages: in their order; joined by blank lines, they are the context of :func:`pertinent`.
        question: what was asked.
        statements: each weighed as a whole.

    Returns:
        The passage's place in ``passages``, from 0, and that sentence of it; None: no sentence of any
        passage shares a word.
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
    """Return the place of the sentence that shares most with these words, by their weights, if any does."""
    sentences, roots, having = index
    shared: dict[int, float] = {}
    for word in sorted(words):  # in one order, as sums of floats depend on it
        for place in (places := having.get(word, ())):
            rarity = math.log((1 + len(sentences)) / len(places))
            shared[place] = shared.get(place, 0.0) + words[word] * rarity
    return max(sorted(shared), key=lambda place: shared[place] / roots[place]) if shared else None


def _read(context: str) -> _Index:
    """Read a context, which is asked about many times: what was read is kept, of few long ones."""
    return (_read_long if len(context) > _LONG else _read_short)(context)


def _index(context: str) -> _Index:
    """Return the sentences of the passages, the roots of their lengths, and in which ones each word is."""
    sentences = [sentence.strip() for sentence in _SENTENCE.split(context)]
    told = [_words(sentence) for sentence in sentences]
    having: dict[str, list[int]] = {}
    for place, words in enumerate(told):
        for word in words:
            having.setdefault(word, []).append(place)
    return sentences, [math.sqrt(max(1, len(words))) for words in told], having


_read_short = lru_cache(maxsize=64)(_index)
_read_long = lru_cache(maxsize=4)(_index)


def _words(text: str) -> frozenset[str]:
    text = text.casefold()
    pairs = {run[i : i + 2] for run in _UNSPACED.findall(text) for i in range(len(run) - 1)}
    words = _WORD.findall(_UNSPACED.sub(" ", text))
    return frozenset(word if word.isdigit() else word[:_STEM] for word in words) | pairs
