"""Statistics of scores against labels: AUC, accuracy, calibration (numpy only).

``scores`` are numbers, higher for better answers. ``good`` are their labels. ``groups`` are the numbers of
their pairs: the bootstrap resamples pairs, because the answers of a pair are similar.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Labels: TypeAlias = NDArray[np.bool_]
Groups: TypeAlias = NDArray[np.int64]

_Z = 1.959964  # 97.5 % quantile of the normal distribution
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Bin:
    """One bin of a calibration curve: ``n`` answers, the mean probability, and the share of good ones."""

    n: int
    said: float
    was: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A calibration: ``sigmoid((log-odds - center) / scale)`` is the probability that an answer is good.

    Attributes:
        center: in nats.
        scale: in nats, > 0.
        threshold: the probability above which an answer passes, in [0, 1): the one with the largest balanced
            accuracy; of several, the one nearest to 0.5.
        clear: the median probability of the good answers, in (0, 1).
    """

    center: float
    scale: float
    threshold: float
    clear: float

    def probability(self, log_odds: Floats) -> Floats:
        """Return the calibrated probabilities."""
        return _sigmoid((log_odds - self.center) / self.scale)


def auc(scores: Floats, good: Labels) -> float:
    """Return the probability that a good answer scores above a bad one; a tie counts half."""
    return float(wins(scores, good).mean())


def auc_interval(scores: Floats, good: Labels, groups: Groups, seed: int) -> Interval:
    """Return the AUC and its 95 % interval.

    Each end is the outer one of two methods: a percentile bootstrap over pairs, and Newcombe's interval
    (Statistics in Medicine 25, 2006, method 5), which keeps a width if a small sample has no error.
    """
    value = auc(scores, good)
    low, high = bootstrap(wins(scores, good), good, groups, seed) or (0.0, 1.0)
    widest = _newcombe(value, int(good.sum()), int((~good).sum()))
    return Interval(value, min(low, widest[0]), max(high, widest[1]))


def balanced_accuracy(scores: Floats, good: Labels, threshold: float) -> float:
    """Return the mean of two shares: good answers above the threshold, and bad answers not above it."""
    return float(((scores[good] > threshold).mean() + (scores[~good] <= threshold).mean()) / 2)


def hard_accuracy(votes: Floats, good: Labels) -> float:
    """Return the share of correct votes (in [0, 1], above 0.5 means good); a tie counts half."""
    return float(np.where(good, np.sign(votes - 0.5), -np.sign(votes - 0.5)).mean() / 2 + 0.5)


def ties(votes: Floats) -> float:
    """Return the share of votes that are ties (exactly 0.5)."""
    return float((votes == 0.5).mean())


def position_bias(as_is: Floats, swapped: Floats) -> float:
    """Return the mean preference for the first letter, whatever its option is, in nats.

    Both arguments are the evidence for good in a choice question: with the good option first, and with the
    options swapped. The preference for a letter is half of their difference.
    """
    return float((as_is - swapped).mean() / 2)


def curve(probability: Floats, good: Labels, bins: int = 5) -> tuple[Bin, ...]:
    """Return the calibration curve: answers ordered by probability, in bins of equal size."""
    order = np.argsort(probability, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    return tuple(Bin(len(p), float(probability[p].mean()), float(good[p].mean())) for p in parts)


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the mean difference between predicted and observed shares (expected calibration error)."""
    return sum(b.n * abs(b.said - b.was) for b in bins) / sum(b.n for b in bins)


def fit(log_odds: Floats, good: Labels) -> Fit | None:
    """Fit center, scale and threshold; None if higher log-odds do not mean better answers.

    This is Platt's logistic fit (1999): maximum likelihood with targets slightly inside of 0 and 1, so that
    perfectly separated answers do not lead to an infinitely steep curve.
    """
    spread = float(log_odds.std())
    if spread == 0:
        return None
    x = (log_odds - log_odds.mean()) / spread
    target = np.where(good, (good.sum() + 1) / (good.sum() + 2), 1 / ((~good).sum() + 2))
    design = np.stack([x, np.ones_like(x)], 1)
    weights = np.zeros(2)
    for _ in range(100):  # Newton steps, halved until the loss decreases
        chance = _sigmoid(design @ weights)
        gradient = design.T @ (chance - target)
        hessian = (design * (chance * (1 - chance))[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while size > 1e-6 and _loss(design @ (weights - size * step), target) > _loss(
            design @ weights, target
        ):
            size /= 2
        weights = weights - size * step
        if np.abs(step).max() < 1e-10:
            break
    slope, shift = (float(w) for w in weights)
    if slope <= 0:
        return None
    center, scale = float(log_odds.mean()) - shift / slope * spread, spread / slope
    probability = _sigmoid((log_odds - center) / scale)
    return Fit(center, scale, _threshold(probability, good), float(np.median(probability[good])))


def _threshold(probability: Floats, good: Labels) -> float:
    values = np.unique(probability)
    between = (values[1:] + values[:-1]) / 2
    merit = [(balanced_accuracy(probability, good, t), -abs(t - 0.5), t) for t in between]
    return float(max(merit)[2])


def wins(scores: Floats, good: Labels) -> Floats:
    """Compare each good score (rows) with each bad one: 1 above, 0 below, 0.5 equal."""
    return np.asarray(0.5 + 0.5 * np.sign(scores[good][:, None] - scores[~good][None, :]), np.float64)


def bootstrap(won: Floats, good: Labels, groups: Groups, seed: int) -> tuple[float, float] | None:
    """Return a 95 % interval of the mean of ``won``, by resampling pairs; None if all miss a class."""
    names, place = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), _RESAMPLES)
    weights = drawn[:, place].astype(np.float64)
    goods, bads = weights[:, good], weights[:, ~good]
    pairs = goods.sum(1) * bads.sum(1)
    kept = pairs > 0
    values = ((goods @ won) * bads).sum(1)[kept] / pairs[kept]
    low, high = np.quantile(values, [0.025, 0.975]) if kept.any() else (np.nan, np.nan)
    return (float(low), float(high)) if kept.any() else None


def _newcombe(value: float, good: int, bad: int) -> tuple[float, float]:
    """Return Newcombe's 95 % interval: the AUCs whose own 95 % range contains ``value``, by bisection."""

    def reaches(assumed: float) -> bool:
        more = (good + bad) / 2 - 1
        spread = 1 + more * ((1 - assumed) / (2 - assumed) + assumed / (1 + assumed))
        variance = assumed * (1 - assumed) * spread / (good * bad)
        return bool(abs(value - assumed) <= _Z * np.sqrt(variance))

    ends = []
    for outer in (0.0, 1.0):
        inside = value
        for _ in range(50):
            middle = (inside + outer) / 2
            if reaches(middle):
                inside = middle
            else:
                outer = middle
        ends.append(inside)
    return ends[0], ends[1]


def _sigmoid(logit: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(logit, -700, 700))), np.float64)


def _loss(logit: Floats, target: Floats) -> float:
    return float((np.logaddexp(0, logit) - target * logit).sum())
