"""Judges that are not the model: VADER, and a classifier on sentence embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def vader(texts: list[str]) -> NDArray[np.float64]:
    """Return VADER's compound score of each text, in [-1, 1]."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    return np.array([analyzer.polarity_scores(text)["compound"] for text in texts])


class ReviewClassifier:
    """MiniLM embeddings and logistic regression, trained on labelled review sentences.

    Attributes:
        accuracy: five-fold, held out.
    """

    def __init__(self, path: Path) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import cross_val_score

        from rain_llm.similarity import SentenceEmbedder

        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        self._embedder = SentenceEmbedder("minilm")
        features = np.stack(self._embedder.embed([row["text"] for row in rows]))
        labels = np.array([row["label"] == "positive" for row in rows])
        model = LogisticRegression(max_iter=1000, C=3.0)
        self.accuracy = float(cross_val_score(model, features, labels, cv=5).mean())
        self._model = model.fit(features, labels)

    def __call__(self, texts: list[str]) -> NDArray[np.float64]:
        """Return the probability that each text is positive."""
        features = np.stack(self._embedder.embed(texts))
        return np.asarray(self._model.predict_proba(features)[:, 1])
