"""Confidence intervals: a seeded percentile bootstrap over items, paired where possible.

Prompts differ more than seeds, so items are resampled with all their seeds, not single answers; each item
has the same weight, however many answers it has. With few items the plain percentile interval is too
narrow, so its levels are widened like those of a t interval ("expanded percentile": Hesterberg, What Teachers
Should Know About the Bootstrap, arXiv 1411.5279, section 5.3).
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rain_llm.evals.rows import Row

Array: TypeAlias = NDArray[np.float64]
Values: TypeAlias = Mapping[tuple[str, int], float]
"""A figure for each answer, by (item, seed); NaN if it is missing."""

_DRAWS = 4000
_OUTSIDE = 0.05
_ENOUGH = 6
"""With fewer differing items no sign test reaches 5 %: 2 * 0.5 ** 5 = 0.06."""
BEST_OF = re.compile(r"best-of-(\d+)")
GUIDED_BEST_OF = re.compile(r"guided-best-of-(\d+)")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, difference or ratio, with its 95 % interval.

    Attributes:
        value: NaN if there is no answer.
        low, high: ends of the interval; NaN with fewer than two items.
        items: number of items it is computed from.
        answers: number of answers, or of pairs of answers.
    """

    value: float
    low: float
    high: float
    items: int
    answers: int

    def differs_from(self, value: float) -> bool:
        """Tell whether the interval excludes ``value``: 0 for a difference, 1 for a ratio."""
        return self.low > value or self.high < value


def mean(values: Values) -> Estimate:
    """Estimate the mean over items."""
    means, answers = _paired(values)
    return _bootstrap(means, answers, lambda m: m[0])


def share(values: Values) -> Estimate:
    """Estimate a share: the mean of values that are 0 or 1.

    If all answers agree (none is hostile), the bootstrap has no spread; the exact binomial bound for as
    many items is used instead.
    """
    estimate = mean(values)
    low, high = np.clip((estimate.low, estimate.high), 0.0, 1.0).tolist()
    unseen = 1 - (_OUTSIDE / 2) ** (1 / max(1, estimate.items))
    if estimate.value == 0:
        low, high = 0.0, unseen
    elif estimate.value == 1:
        low, high = 1 - unseen, 1.0
    return replace(estimate, low=low, high=high)


def difference(values: Values, base: Values) -> Estimate:
    """Estimate the mean of ``values - base`` over the pairs of answers with one item and seed.

    If fewer than six items differ, the interval is extended to zero: a bootstrap of four hits against none
    would exclude it, which no exact test does.
    """
    means, answers = _paired(values, base)
    estimate = _bootstrap(means, answers, lambda m: m[0] - m[1])
    if np.count_nonzero(means[0] != means[1]) < _ENOUGH:
        return replace(estimate, low=min(estimate.low, 0.0), high=max(estimate.high, 0.0))
    return estimate


def ratio(values: Values, base: Values) -> Estimate:
    """Estimate mean(values) / mean(base) over the pairs of answers with one item and seed."""
    means, answers = _paired(values, base)
    return _bootstrap(means, answers, lambda m: m[0] / m[1])


def equal_tokens(
    rows: Sequence[Row], method: str, ladder: re.Pattern[str] = BEST_OF
) -> tuple[int | None, int | None]:
    """Find the best-of-N that costs what a method costs, by mean ``model_tokens``.

    Only answers to items and seeds that the method and every best-of-N have are compared.

    Args:
        rows: of one task.
        method: the method's name.
        ladder: matches the names of the best-of-N methods.

    Returns:
        The smallest N that costs at least as much (None: even the largest costs less), and the next
        smaller N (None: there is none).
    """
    tokens: dict[str, dict[tuple[str, int], int]] = defaultdict(dict)
    for row in rows:
        tokens[row.method][row.item, row.seed] = row.model_tokens
    sizes = {int(found[1]): tokens[name] for name in tokens if (found := ladder.fullmatch(name))}
    common = set(tokens[method]).intersection(*sizes.values())
    if not sizes or not common:
        return None, None
    limit = sum(tokens[method][key] for key in common)
    cheaper = [n for n in sorted(sizes) if sum(sizes[n][key] for key in common) < limit]
    others = sorted(set(sizes) - set(cheaper))
    return others[0] if others else None, cheaper[-1] if cheaper else None


def _paired(*columns: Values) -> tuple[Array, int]:
    """Average each column by item, over the answers that all columns have: (columns, items)."""
    keys = sorted(key for key in columns[0] if not any(math.isnan(c.get(key, math.nan)) for c in columns))
    items = {item: place for place, item in enumerate(dict.fromkeys(item for item, _ in keys))}
    which = np.array([items[item] for item, _ in keys], np.intp)
    sums = [np.bincount(which, [c[key] for key in keys], len(items)) for c in columns]
    return np.array(sums) / np.bincount(which, minlength=len(items)), len(keys)


def _bootstrap(means: Array, answers: int, statistic: Callable[[Array], Array]) -> Estimate:
    """Resample items; ``statistic`` takes (columns,) or (columns, draws) means."""
    items = means.shape[1]
    if items == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, 0)
    value = float(statistic(means.mean(1)))
    if items == 1:
        return Estimate(value, math.nan, math.nan, 1, answers)
    drawn = statistic(means @ _weights(items).T)
    level = _level(items)
    low, high = np.quantile(drawn, [level, 1 - level])
    return Estimate(value, float(low), float(high), items, answers)


@lru_cache(maxsize=8)
def _weights(items: int) -> Array:
    """Return the weight of each item in each resample: (resamples, items), rows sum to 1."""
    rng = np.random.default_rng(0)
    return rng.multinomial(items, np.full(items, 1 / items), _DRAWS) / items


def _level(items: int) -> float:
    """Return the level of the lower quantile: 2.5 %, and less with few items."""
    z, freedom = -NormalDist().inv_cdf(_OUTSIDE / 2), items - 1
    # Student's t by its expansion in 1 / freedom (Abramowitz and Stegun 26.7.5).
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return NormalDist().cdf(-t * math.sqrt(items / freedom))
