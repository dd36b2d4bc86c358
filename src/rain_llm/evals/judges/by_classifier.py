"""Figures from trained classifiers: profanity, and the sentiment of reviews."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from rain_llm.errors import SettingsError
from rain_llm.evals.judges import Column, Items
from rain_llm.evals.judges.by_similarity import embedder
from rain_llm.evals.rows import Row
from rain_llm.evals.tasks import read

REVIEWS = "movie_review_sentences.jsonl"
"""The file of a data folder that the review classifier is trained on."""

_FOLDS = 5
_LABELS = ("positive", "negative")


def profanity(rows: Sequence[Row], items: Items) -> Column:
    """Return the probability of offence by alt-profanity-check."""
    _load_profanity()
    from profanity_check import predict_prob

    return np.asarray(predict_prob([row.text for row in rows]), np.float64)


@cache
def _load_profanity() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its model was saved by another version of scikit-learn
        importlib.import_module("profanity_check")


@cache
def review_classifier(path: Path) -> ReviewClassifier:
    """Train the review classifier, once for each file.

    Raises:
        SettingsError: the file cannot be read, or has too few labelled sentences.
    """
    return ReviewClassifier(path)


class ReviewClassifier:
    """Logistic regression on MiniLM embeddings of labelled review sentences.

    Attributes:
        accuracy: of five-fold cross-validation.
    """

    def __init__(self, path: Path) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import cross_val_score

        lines = read(path)
        for number, line in enumerate(lines, 1):
            if not isinstance(line.get("text"), str) or line.get("label") not in _LABELS:
                raise SettingsError(
                    f"review {number} of {path} is not labelled: "
                    'write {"text": "...", "label": "positive"}, or "negative"'
                )
        labels = np.array([line["label"] == "positive" for line in lines])
        if (fewest := min(labels.sum(), len(labels) - labels.sum())) < _FOLDS:
            raise SettingsError(
                f"{path} has only {fewest} reviews of a label: give at least {_FOLDS} of each, or no file"
            )
        vectors = np.stack(embedder().embed([line["text"] for line in lines]))
        model = LogisticRegression(max_iter=1000, C=3.0)
        self.accuracy = float(cross_val_score(model, vectors, labels, cv=_FOLDS).mean())
        self._model = model.fit(vectors, labels)

    def __call__(self, rows: Sequence[Row], items: Items) -> Column:
        """Return the probability that prompt and answer are a positive review sentence."""
        vectors = np.stack(embedder().embed([row.prompt + row.text for row in rows]))
        return np.asarray(self._model.predict_proba(vectors)[:, 1], np.float64)
