"""It works, on the real model, by a judge that is not the model (docs/results.md has the figures)."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.judges import vader
from benchmarks.openings import FILM, HOSTILE
from benchmarks.steering import interval, settings_for, write
from rain_llm import Rain


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(("criterion", "openings"), [("positive_sentiment", FILM), ("civility", HOSTILE)])
def test_guarded_sentences_have_the_better_tone(criterion, openings, real_model):
    rain = Rain(settings_for("default", criterion, None), model=real_model)
    gains, spent, written = [], 0, 0
    for seed in (0, 1):  # one seed, or half of the openings, is too few to tell
        plain = write("plain", rain, openings, seed)
        guarded = write("default", rain, openings, seed)
        gains.append(vader([text for text, *_ in guarded]) - vader([text for text, *_ in plain]))
        spent += sum(cost for _, cost, *_ in guarded)
        written += sum(output for _, _, output, _ in guarded)
    print(f"{criterion}: {np.mean(gains):+.3f}")
    assert np.mean(gains) > 0.1
    assert spent / written < 60  # through the model per output token; the paper's search takes hundreds


def test_the_interval_is_of_openings_with_all_their_seeds():
    mean, low, high = interval(np.array([1.0, 1.0, 0.0, 0.0]), ["a", "a", "b", "b"])
    assert (mean, low, high) == (0.5, 0.0, 1.0)
    assert interval(np.array([0.25, 0.75, 0.5]), ["a", "a", "b"]) == (0.5, 0.5, 0.5)
