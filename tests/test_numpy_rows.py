"""What is drawn from a row of logits, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rain_llm.errors import ModelError
from rain_llm.models.local.numpy_rows import NumpyRows
from rain_llm.requests import Sample


def rows(*logits: float) -> NumpyRows:
    return NumpyRows(np.array([logits], np.float32))


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_an_error_and_not_a_token(broken: float):
    logits = [broken] * 3 if broken == -math.inf else [1.0, broken, 0.0]
    with pytest.raises(ModelError, match="not numbers"):
        rows(*logits).draw(Sample((1,), 1, 1, 0), [0], 0, None)
    with pytest.raises(ModelError, match="not numbers"):
        rows(*logits).draw(Sample((1,), 1, 1, 0, greedy_first=True), [0], 0, None)
    with pytest.raises(ModelError, match="not numbers"):
        rows(*logits).logprobs([0], [2])


def test_a_mask_decides_whatever_the_logits_say():
    allowed = np.array([[False, False, True]])
    found = [rows(90.0, 80.0, -90.0).draw(Sample((1,), 1, 1, seed), [0], 0, allowed) for seed in range(20)]
    assert {token for ((token, _),) in found} == {2}
    assert found[0][0][1] == pytest.approx(
        -180, abs=1e-3
    )  # its own log-probability, over the whole vocabulary


def test_a_draw_does_not_depend_on_the_other_branches():
    request = Sample((1,), 4, 1, 7)
    logits = np.random.default_rng(0).normal(size=(1, 50)).astype(np.float32)
    together = NumpyRows(logits).draw(request, [0, 1, 2, 3], 5, None)
    assert [NumpyRows(logits).draw(request, [branch], 5, None)[0] for branch in range(4)] == together
    assert NumpyRows(logits).draw(request, [0, 1, 2, 3], 6, None) != together


def test_a_ranking_is_no_longer_than_the_vocabulary():
    assert [token for token, _ in rows(0.0, 2.0, 1.0).ranked(9)] == [1, 2, 0]
