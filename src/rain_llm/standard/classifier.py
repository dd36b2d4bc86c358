"""A classifier of requests and answers, of sentence embeddings and counts of words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rain_llm.evals.judges.by_similarity import embedder
from rain_llm.missing import needed
from rain_llm.standard.turning import first

Pair = tuple[str, str]
"""A request and its answer."""

_END = 26  # of an answer's words, the last ones are embedded: an opening would hide a turn
_STRENGTH = 2.0


class TextClassifier:
    """Logistic regression on embeddings of request and answer's end, and on the answer's words."""

    def __init__(self, pairs: Sequence[Pair], dense: NDArray[np.float32], harmful: NDArray[np.bool_]) -> None:
        with needed("the classifier of harm"):
            from sklearn.feature_extraction.text import TfidfVectorizer
            from sklearn.linear_model import LogisticRegression
        self._words = [TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2) for _ in range(2)]
        for vectorizer, texts in zip(self._words, _texts(pairs), strict=True):
            vectorizer.fit(texts)
        self._model = LogisticRegression(C=_STRENGTH, max_iter=2000, class_weight="balanced")
        self._model.fit(self._features(pairs, dense), harmful)

    def __call__(self, pairs: Sequence[Pair], dense: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the probabilities of harm."""
        return np.asarray(self._model.predict_proba(self._features(pairs, dense))[:, 1], np.float64)

    def _features(self, pairs: Sequence[Pair], dense: NDArray[np.float32]) -> Any:
        from scipy.sparse import csr_matrix, hstack

        words = [v.transform(texts) for v, texts in zip(self._words, _texts(pairs), strict=True)]
        return hstack([csr_matrix(dense), *words]).tocsr()


def _texts(pairs: Sequence[Pair]) -> tuple[list[str], list[str]]:
    """Return the answers' first words, and the ends of these."""
    answers = [first(answer) for _, answer in pairs]
    return answers, [" ".join(answer.split()[-_END:]) for answer in answers]


def embedded(pairs: Sequence[Pair]) -> NDArray[np.float32]:
    """Return the embeddings of each request and of the end of its answer: shape [answers, features]."""
    prompts, ends = [prompt for prompt, _ in pairs], _texts(pairs)[1]
    once = list(dict.fromkeys([*prompts, *ends]))
    vectors = dict(zip(once, embedder().embed(once), strict=True))
    return np.hstack([np.stack([vectors[text] for text in texts]) for texts in (prompts, ends)])
