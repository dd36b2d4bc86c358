"""Figures from the words of an answer: its tone, its refusals, and what its passages support."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import Any, TypeAlias

import numpy as np

from rain_llm.evals import wording
from rain_llm.evals.judges import Column, Items
from rain_llm.evals.judges.applies import answerable
from rain_llm.evals.rows import Row
from rain_llm.evals.tasks import TASKS

SUPPORTED = 0.5
"""The share of a text's content words, at least, that its passage must hold."""

Reply: TypeAlias = tuple[str, str, str]
"""An answer, its passages (separated by a blank line), and the question."""


def column(values: Iterable[float]) -> Column:
    """Collect figures."""
    return np.array(list(values), np.float64)


def mean(values: Iterable[float]) -> float:
    """Return the mean; NaN if there are no values."""
    found = list(values)
    return sum(found) / len(found) if found else math.nan


@lru_cache(maxsize=1 << 16)
def sentiment(text: str) -> float:
    """Return VADER's sentiment, -1 to 1."""
    return float(_vader().polarity_scores(text)["compound"])


@cache
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def refuses(row: Row) -> bool:
    """Tell whether an answer is a refusal: the method's own, or the model's by its words."""
    return row.refused or wording.refuses(row.text, story=TASKS[row.task].continues)


def admits(row: Row) -> bool:
    """Tell whether an answer refuses, or says that its passages do not answer the question."""
    return refuses(row) or wording.admits(row.text)


def needless_refusals(rows: Sequence[Row], items: Items) -> Column:
    """Mark refusals; where the passage answers the question, also answers that say it does not."""
    return column(admits(row) if answerable(items[row.task, row.item]) else refuses(row) for row in rows)


def unsupported(rows: Sequence[Row], items: Items) -> Column:
    """Mark answers that their passage does not support.

    An answer that claims nothing (a refusal, an admission, no words at all) is not unsupported.
    """
    found = []
    for row in rows:
        silent = not row.text.strip() or admits(row)
        share, strange = wording.support(row.text, f"{row.context}\n{row.prompt}")
        has_answer = answerable(items[row.task, row.item])
        found.append(not silent and (not has_answer or share < SUPPORTED or bool(strange)))
    return column(found)


def replies(rows: Sequence[Row]) -> list[Reply]:
    """Return the answers with their passages and questions."""
    return [(row.text, row.context, row.prompt) for row in rows]


def unsupported_share(answers: Sequence[Reply]) -> Column:
    """Return the share of each text's sentences that no single passage supports, by their words.

    Such a sentence has a number or name that is not in the passage, or fewer than half of its content words
    are. A sentence that says that the answer is not known claims nothing.
    """
    return column(
        mean(_unsupported(statement, passages, question) for statement in wording.statements(text))
        for text, passages, question in answers
    )


def _unsupported(statement: str, passages: str, question: str) -> bool:
    if wording.refuses(statement) or wording.admits(statement):
        return False
    found = [wording.support(statement, f"{passage}\n{question}") for passage in passages.split("\n\n")]
    return all(share < SUPPORTED or strange for share, strange in found)
