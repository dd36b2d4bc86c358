"""A linear classifier by ridge regression on the labels -1 and 1, in closed form.

Its AUC on hidden states is that of logistic regression, at a fraction of the time: one matrix serves all
strengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rain_llm.doctor.measures import Floats, Labels

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Strengths of regularisation to choose from, as shares of the mean squared length of a row."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear function of features: ``features @ weights + bias``."""

    weights: Floats
    bias: float

    def __call__(self, features: NDArray[np.floating[Any]]) -> Floats:
        """Return the score of each row; higher means good."""
        return np.asarray(features @ self.weights + self.bias, np.float64)


def ridge(
    features: NDArray[np.floating[Any]],
    good: Labels,
    weights: Floats,
    strengths: Sequence[float],
    standardise: bool,
) -> list[Linear]:
    """Fit one classifier for each strength.

    Args:
        features: shape [rows, features].
        good: the labels.
        weights: of the rows, > 0; their sum is the number of independent answers.
        strengths: see ``STRENGTHS``.
        standardise: divide each feature by its standard deviation.
    """
    share = weights / weights.sum()
    mean = share @ features
    centred = np.asarray(features, np.float64) - mean
    spread = np.ones(len(mean))
    if standardise:
        spread = np.sqrt(share @ centred**2)
        spread[spread < 1e-6 * max(float(spread.max()), 1e-30)] = np.inf  # a constant feature says nothing
    root = np.sqrt(weights)[:, None]
    rows = np.asarray(centred / spread * root, np.float32)
    target = np.where(good, 1.0, -1.0)
    middle = float(share @ target)
    aim = np.asarray((target - middle) * root[:, 0], np.float32)
    wide = rows.shape[1] > rows.shape[0]  # then the dual form is smaller
    gram = np.asarray(rows @ rows.T if wide else rows.T @ rows, np.float64)
    unit = max(float(np.trace(gram)) / float(weights.sum()), 1e-30)
    found = []
    for strength in strengths:
        solved = np.linalg.solve(gram + strength * unit * np.eye(len(gram)), aim if wide else rows.T @ aim)
        line = (rows.T @ solved if wide else solved) / spread
        found.append(Linear(line, middle - float(mean @ line)))
    return found
