"""Figures from sentence embeddings (MiniLM): similarity to prompts, passages and reference answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import numpy as np

from rain_llm.doctor.measures import auc
from rain_llm.evals import wording
from rain_llm.evals.judges import Column, Items
from rain_llm.evals.judges.by_words import Reply, column, mean
from rain_llm.evals.rows import Row
from rain_llm.evals.tasks import Item
from rain_llm.models.local.similarity import SentenceEmbedder
from rain_llm.requests import Vector


@cache
def embedder() -> SentenceEmbedder:
    """Return the embedder that all judges share."""
    return SentenceEmbedder("minilm")


def _embedded(texts: Iterable[str]) -> dict[str, Vector]:
    once = list(dict.fromkeys(texts))
    return dict(zip(once, embedder().embed(once), strict=True))


def relevance(rows: Sequence[Row], items: Items) -> Column:
    """Return the similarity of prompt and answer."""
    vectors = _embedded(text for row in rows for text in (row.prompt, row.text))
    return column(float(vectors[row.prompt] @ vectors[row.text]) for row in rows)


def nearness(answers: Sequence[Reply]) -> Column:
    """Return the mean similarity of each text's sentences to the nearest sentence of its passages."""
    split = [(wording.statements(text), wording.statements(passages)) for text, passages, _ in answers]
    vectors = _embedded(sentence for own, source in split for sentence in (*own, *source))
    return column(
        mean(max(float(vectors[one] @ vectors[other]) for other in source) for one in own)
        for own, source in split
    )


def like_reference(rows: Sequence[Row], items: Items) -> Column:
    """Return the similarity to the nearest correct reference answer."""
    return _nearest(rows, [items[row.task, row.item].correct for row in rows])


def truth_margin(rows: Sequence[Row], items: Items) -> Column:
    """Return the similarity to the nearest correct reference answer minus that to the nearest incorrect."""
    asked = [items[row.task, row.item] for row in rows]
    return _nearest(rows, [i.correct for i in asked]) - _nearest(rows, [i.incorrect for i in asked])


def _nearest(rows: Sequence[Row], answers: Sequence[tuple[str, ...]]) -> Column:
    vectors = _embedded([*(row.text for row in rows), *(text for texts in answers for text in texts)])
    return column(
        max(float(vectors[row.text] @ vectors[text]) for text in texts)
        for row, texts in zip(rows, answers, strict=True)
    )


# --- how good these figures are, measured on the reference answers themselves ---------------------------


def truth_auc(items: Iterable[Item]) -> float:
    """Measure how well the truth margin separates the reference answers, each left out once.

    Returns:
        The probability that a correct reference answer has a larger margin than an incorrect one (to
        whatever questions); 0.5 is chance, NaN without questions that have two of both.
    """
    asked = [item for item in items if len(set(item.correct)) > 1 and len(set(item.incorrect)) > 1]
    vectors = _embedded(text for item in asked for text in (*item.correct, *item.incorrect))
    margins, true = [], []
    for item in asked:
        for text in (*item.correct, *item.incorrect):
            near, far = (
                max(float(vectors[text] @ vectors[other]) for other in answers if other != text)
                for answers in (item.correct, item.incorrect)
            )
            margins.append(near - far)
            true.append(text in item.correct)
    return auc(np.array(margins), np.array(true)) if margins else math.nan


def support_auc(score: Callable[[Sequence[Reply]], Column], items: Iterable[Item]) -> float:
    """Measure how well a score separates supported reference answers from unsupported ones.

    Returns:
        The probability that a supported answer has a larger score than an unsupported one (to whatever
        questions); 0.5 is chance, NaN without both.
    """
    asked = [item for item in items if item.context and item.correct and item.incorrect]
    if not asked:
        return math.nan
    answers = [(text, i.context, i.prompt) for i in asked for text in (*i.correct, *i.incorrect)]
    supported = [text in i.correct for i in asked for text in (*i.correct, *i.incorrect)]
    return auc(score(answers), np.array(supported))


def support_note(score: Callable[[Sequence[Reply]], Column]) -> Callable[[Items], str]:
    """Return a ``Judge.note`` that reports :func:`support_auc`."""

    def note(items: Items) -> str:
        value = support_auc(score, items.values())
        if math.isnan(value):
            return ""
        return f"separates supported from unsupported reference answers with AUC {value:.2f} (0.5: chance)"

    return note
