"""Rank a probe among the doctor's question styles: the same types, from predictions out of fold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rain_llm.criteria.criterion import Criterion
from rain_llm.doctor.findings import Held, Measures, Passing, Ranked
from rain_llm.doctor.items import Item
from rain_llm.doctor.measures import (
    Fit,
    Labels,
    auc_interval,
    calibration_error,
    curve,
    hard_accuracy,
    ties,
)
from rain_llm.doctor.styles import Style
from rain_llm.errors import SettingsError
from rain_llm.models.base import LanguageModel, Readable
from rain_llm.probing.examining import answers_of, examine_probe
from rain_llm.probing.findings import Probed
from rain_llm.probing.states import COMPLETE, HALF
from rain_llm.settings import EvaluationSettings

PROBE = "probe"
"""Name of the style in the doctor's tables."""


def probe_for(
    judge: LanguageModel, criterion: str, items: Sequence[Item], seed: int, tell: Callable[[int], None]
) -> tuple[Probed, None] | tuple[None, str]:
    """Fit and examine a probe; return the reason if there is none for this model or these answers."""
    if not isinstance(judge, Readable):
        return None, f"{judge.name} gives no hidden states"
    try:
        probed = examine_probe(judge, criterion, items, seed, tell)
    except SettingsError as error:
        return None, str(error)
    return (probed, None) if probed.probe else (None, "nothing was found in the hidden states")


def written(probed: Probed, criterion: str, folder: Path | None) -> Path | None:
    """Write the probe's file into a folder, and return its path; None without a folder."""
    if folder is None or probed.probe is None:
        return None
    path = folder.absolute() / f"{criterion}.probe.json"
    probed.probe.save(path)
    return path


def reading(criterion: Criterion, as_set: EvaluationSettings, file: Path | None) -> Style:
    """Return the style that reads a probe's file."""
    update = {"style": "probe", "probe": None if file is None else str(file)}
    read = criterion.model_copy(update=update)
    return Style(PROBE, as_set.model_copy(update={"criteria": (read,), "actions": (), "mode": "soft"}))


def ranked(chosen: Style, probed: Probed, items: Sequence[Item], kept: Sequence[Item], seed: int) -> Ranked:
    """Return the results on those of the items that rank the other styles."""
    places = {id(item): place for place, item in enumerate(items)}
    rows = np.array([places[id(item)] for item in kept])
    return Ranked(chosen, _measures(probed, items, rows, COMPLETE, seed), None, None)


def held_by(chosen: Style, probed: Probed, items: Sequence[Item], seed: int) -> Held:
    """Return the results on all items: none was predicted by a probe that was fitted to it."""
    assert probed.probe is not None
    uncut = np.flatnonzero([not item.cut for item in items])
    good = good_of(items)[uncut]
    probability = 1 / (1 + np.exp(-probed.log_odds[uncut, COMPLETE]))
    threshold = probed.probe.threshold
    fitted = Fit(0.0, 1.0, threshold, float(np.median(probability[good])))
    passed = probability > threshold
    bins = curve(probability, good)
    return Held(
        chosen,
        _measures(probed, items, uncut, COMPLETE, seed),
        _measures(probed, items, uncut, HALF, seed),
        fitted,
        Passing(float(passed[good].mean()), float(passed[~good].mean())),
        bins,
        calibration_error(bins),
    )


def _measures(
    probed: Probed, items: Sequence[Item], rows: NDArray[np.int64], cut: int, seed: int
) -> Measures:
    assert probed.probe is not None
    scores, good = probed.log_odds[rows, cut], good_of(items)[rows]
    interval = auc_interval(scores, good, answers_of(items)[0].groups[rows], seed)
    odds = np.log(max(probed.probe.threshold, 1e-9) / (1 - probed.probe.threshold))
    votes = np.where(scores > odds, 1.0, 0.0)
    return Measures(len(rows), interval, hard_accuracy(votes, good), ties(votes))


def good_of(items: Sequence[Item]) -> Labels:
    """Return the labels of items."""
    return np.array([item.good for item in items])
