"""The difference of two AUCs on the same answers, with its interval."""

from __future__ import annotations

import numpy as np

from rain_llm.doctor.measures import Floats, Groups, Interval, Labels

_RESAMPLES = 1000


def auc_difference(first: Floats, second: Floats, good: Labels, groups: Groups, seed: int) -> Interval:
    """Return the AUC of ``first`` minus that of ``second``, with a 95 % percentile bootstrap over groups."""
    ahead = _wins(first, good) - _wins(second, good)
    names, place = np.unique(groups, return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), _RESAMPLES
    )
    weights = drawn[:, place].astype(np.float64)
    goods, bads = weights[:, good], weights[:, ~good]
    pairs = goods.sum(1) * bads.sum(1)
    kept = pairs > 0  # a resample may miss a class
    values = ((goods @ ahead) * bads).sum(1)[kept] / pairs[kept]
    low, high = np.quantile(values, [0.025, 0.975]) if kept.any() else (-1.0, 1.0)
    return Interval(float(ahead.mean()), float(low), float(high))


def _wins(scores: Floats, good: Labels) -> Floats:
    return np.asarray(0.5 * np.sign(scores[good][:, None] - scores[~good][None, :]), np.float64)
