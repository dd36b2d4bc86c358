"""Intervals: against hand-worked examples, against known distributions, and where they say nothing."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from rain_llm.evals.rows import Row
from rain_llm.evals.statistics import _level, difference, equal_tokens, mean, ratio, share


def values(*items):
    """One list of figures an item, a figure a seed."""
    return {(f"i{i}", seed): x for i, seeds in enumerate(items) for seed, x in enumerate(seeds)}


def row(method, item, seed, tokens):
    return Row("t", method, item, seed, "p", "", "x", True, False, "eos", 0.0, 1, tokens, 0, 1, None, "h")


# --- point estimates ---------------------------------------------------------------------------------


def test_an_item_counts_the_same_however_many_answers_it_has():
    found = mean(values([1.0, 1.0, 1.0], [0.0]))
    assert (found.value, found.items, found.answers) == (0.5, 2, 4)


def test_a_missing_figure_is_left_out():
    found = mean(values([1.0, math.nan], [0.0, 0.0], [math.nan]))
    assert (found.value, found.items, found.answers) == (0.5, 2, 3)


def test_a_difference_is_of_pairs_with_one_item_and_seed():
    found = difference(values([1.0, 3.0], [5.0], [9.0]), values([0.5, 1.0], [5.5]))
    assert found.value == pytest.approx(((0.5 + 2.0) / 2 - 0.5) / 2)
    assert (found.items, found.answers) == (2, 3)  # the third item is in one of them only


def test_a_ratio_is_that_of_the_means():
    found = ratio(values([10.0], [30.0]), values([5.0], [5.0]))
    assert found.value == 4.0
    assert (found.low, found.high) == (2.0, 6.0)  # both draws of one item, and of the other


def test_nothing_to_estimate_from():
    nothing, one = mean({}), mean(values([2.0]))
    assert (nothing.items, nothing.answers) == (0, 0)
    assert math.isnan(nothing.value)
    assert one.value == 2.0
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert not one.differs_from(0)
    assert not difference(values([2.0]), values([1.0])).differs_from(0)


# --- intervals ---------------------------------------------------------------------------------------


def test_the_interval_of_two_items_is_all_that_can_be_drawn():
    found = mean(values([1.0, 1.0], [0.0, 0.0]))  # draws: 1 in a quarter of them, 0 in a quarter
    assert (found.low, found.high) == (0.0, 1.0)


def test_the_same_figures_give_the_same_interval():
    one = values(*np.random.default_rng(0).normal(size=(9, 2)).tolist())
    assert mean(one) == mean(one)


def test_levels_are_those_of_students_t():
    assert NormalDist().cdf(-2.2622 * math.sqrt(10 / 9)) == pytest.approx(_level(10), rel=0.02)
    assert NormalDist().cdf(-2.0227 * math.sqrt(40 / 39)) == pytest.approx(_level(40), rel=0.02)
    assert _level(10**6) == pytest.approx(0.025, rel=0.001)


@pytest.mark.parametrize("items", [12, 40])
@pytest.mark.parametrize("kind", ["items differ", "shares", "skewed"])
def test_intervals_cover_the_truth_nineteen_times_in_twenty(items, kind):
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(400):
        if kind == "items differ":  # much more than seeds: answers are not independent
            found = mean(values(*(rng.normal(size=(items, 1)) + 0.3 * rng.normal(size=(items, 3))).tolist()))
            truth = 0.0
        elif kind == "shares":
            chance = rng.beta(2, 6, size=(items, 1))
            found = share(values(*(rng.random((items, 3)) < chance).astype(float).tolist()))
            truth = 0.25
        else:
            found = mean(values(*rng.exponential(size=(items, 3)).tolist()))
            truth = 1.0
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / 400 <= 0.985


def test_drawing_answers_instead_of_items_would_be_too_sure():
    rng = np.random.default_rng(3)
    table = rng.normal(size=(30, 1)) + 0.1 * rng.normal(size=(30, 4))
    by_item = mean(values(*table.tolist()))
    by_answer = mean(values(*([x] for x in table.ravel().tolist())))
    assert by_item.high - by_item.low > 1.8 * (by_answer.high - by_answer.low)


def test_pairing_takes_out_what_both_have_in_common():
    rng = np.random.default_rng(3)
    common = rng.normal(size=(30, 1))
    base = common + 0.1 * rng.normal(size=(30, 2))
    better = common + 0.2 + 0.1 * rng.normal(size=(30, 2))
    found = difference(values(*better.tolist()), values(*base.tolist()))
    assert found.differs_from(0)
    assert found.low > 0.1
    assert not (mean(values(*better.tolist())).low > mean(values(*base.tolist())).high)


# --- shares --------------------------------------------------------------------------------------------


def test_none_of_forty_is_not_never():
    found = share(values(*[[0.0, 0.0]] * 40))
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(0.0881, abs=1e-4)  # Clopper and Pearson, 0 of 40
    found = share(values(*[[1.0]] * 10))
    assert found.low == pytest.approx(0.6915, abs=1e-4)  # 10 of 10
    assert found.high == 1.0


@pytest.mark.parametrize(("differing", "apart"), [(0, False), (5, False), (6, True), (20, True)])
def test_a_handful_of_items_tells_nothing_apart(differing, apart):
    base = values(*[[0.0]] * 40)
    found = difference(values(*([[1.0]] * differing + [[0.0]] * (40 - differing))), base)
    assert found.value == differing / 40
    assert found.differs_from(0) is apart


def test_no_claim_where_there_is_no_difference():
    rng = np.random.default_rng(5)
    claims = 0
    for _ in range(300):
        one, other = (rng.random((2, 25, 2)) < 0.2).astype(float).tolist()
        claims += difference(values(*one), values(*other)).differs_from(0)
    assert claims / 300 <= 0.08


# --- equal tokens -------------------------------------------------------------------------------------------


def ladder(*sizes, items=("a", "b")):
    return [row(f"best-of-{n}", item, 0, 100 * n) for n in sizes for item in items]


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        ((250, 250), (4, 2)),
        ((100, 300), (2, 1)),  # by the mean: 200
        ((200, 202), (4, 2)),
        ((20, 30), (1, None)),  # cheaper than one draft
        ((900, 1000), (None, 8)),  # dearer than the largest
    ],
)
def test_the_smallest_n_that_costs_as_much(tokens, found):
    rows = ladder(1, 2, 4, 8) + [row("rain", item, 0, t) for item, t in zip("ab", tokens, strict=True)]
    assert equal_tokens(rows, "rain") == found


def test_only_answers_that_all_have_are_weighed():
    rows = [*ladder(1, 2, 4), row("rain", "a", 0, 150), row("rain", "c", 0, 10**6)]
    assert equal_tokens(rows, "rain") == (2, 1)


def test_nothing_to_compare_with():
    assert equal_tokens([row("rain", "a", 0, 5)], "rain") == (None, None)
    assert equal_tokens(ladder(1, 2), "rain") == (None, None)
    assert equal_tokens([*ladder(1, 2), row("rain", "z", 0, 5)], "rain") == (None, None)
