"""Classifiers of the text alone: a probe that does not beat them has learnt words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rain_llm.doctor.items import Item
from rain_llm.errors import ModelError, ModelNotFoundError
from rain_llm.missing import needed
from rain_llm.models.local.similarity import SentenceEmbedder
from rain_llm.probing.fitting import Answers, Predicted, predict

TFIDF, MINILM = "TF-IDF of the answer", "MiniLM of request and answer"


def predictions(
    items: Sequence[Item], answers: Answers, seed: int
) -> tuple[dict[str, Predicted], dict[str, str]]:
    """Predict the answers by each baseline, in the folds of the probe.

    Returns:
        The predictions by the baseline's name; for others, why they cannot be computed.
    """
    found, missing = {}, {}
    for name, features, standardise in ((TFIDF, _tfidf, False), (MINILM, _minilm, True)):
        try:
            rows = features(items)[:, None]
        except (ModelError, ModelNotFoundError) as error:
            missing[name] = str(error)
            continue
        found[name] = predict(lambda _, rows=rows: rows, [()], answers, seed, standardise)  # type: ignore[misc]
    return found, missing


def _tfidf(items: Sequence[Item]) -> NDArray[np.float32]:
    """Return the TF-IDF weights of single words and pairs of words, turned to as few numbers as answers."""
    with needed("the TF-IDF baseline"):
        from sklearn.feature_extraction.text import TfidfVectorizer
    try:
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit_transform(
            [item.answer for item in items]
        )
    except ValueError:  # no word in any answer
        return np.zeros((len(items), 1), np.float32)
    values, vectors = np.linalg.eigh((words @ words.T).toarray())  # a rotation: all distances are kept
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)), np.float32)


def _minilm(items: Sequence[Item]) -> NDArray[np.float32]:
    """Return the sentence embedding of each request and answer."""
    return np.stack(SentenceEmbedder().embed([f"{item.query}\n{item.answer}".strip() for item in items]))
