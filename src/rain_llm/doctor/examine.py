"""Examine a judge: ask it about labelled answers in every style, rank the styles, and fit the best.

The answers are split by pairs. One half is used to rank the styles and to fit calibration and threshold. The
results of the recommended style are measured on the other half, which was not used for fitting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rain_llm.criteria.criterion import Criterion
from rain_llm.doctor.findings import Examination, Held, Measures, Passing, Ranked
from rain_llm.doctor.interview import Interview
from rain_llm.doctor.items import Item
from rain_llm.doctor.measures import (
    Floats,
    Groups,
    Labels,
    auc_interval,
    calibration_error,
    curve,
    fit,
    hard_accuracy,
    position_bias,
    ties,
)
from rain_llm.doctor.styles import Style, askable, styles
from rain_llm.errors import ModelNotSupportedError
from rain_llm.judging.evaluator import Evidence, log_odds, votes
from rain_llm.models.base import LanguageModel
from rain_llm.models.transcript import shows_chats
from rain_llm.probing.halves import split, subset
from rain_llm.probing.ranking import PROBE, good_of, held_by, probe_for, ranked, reading, written
from rain_llm.settings import EvaluationSettings

MOST_ASKED = 60
"""Answers that the judge is asked about, where it is also read: asking takes a dozen questions an answer."""


def examine(
    judge: LanguageModel,
    criterion: Criterion,
    as_set: EvaluationSettings,
    items: Sequence[Item],
    seed: int,
    tell: Callable[[int], None] = lambda judged: None,
    folder: Path | None = None,
    reads: bool = False,
) -> Examination:
    """Examine how well a judge judges one criterion.

    Args:
        judge: the judge.
        criterion: the criterion that the items are labelled for.
        as_set: the current evaluation settings.
        items: labelled answers; see :mod:`rain_llm.doctor.items`.
        seed: seed of the split and of the intervals.
        tell: called with the number of answers judged since the last call, counted in each style.
        folder: where a probe's file is written.
        reads: fit a probe, too. It is fitted to all items; at most ``MOST_ASKED`` are asked about.

    Raises:
        PromptError: an item exceeds the judge's context length, or has no context and needs one.
        ModelNotSupportedError: the judge does not support the question style of the settings.
    """
    if as_set.chat_template and not shows_chats(judge):
        as_set = as_set.model_copy(update={"chat_template": False})
    candidates, refused = [], []
    for style in styles(criterion, as_set):
        reason = askable(style, judge)
        if reason is None:
            candidates.append(style)
        elif not candidates:
            raise ModelNotSupportedError(f"{criterion.name}, asked as the settings say: {reason}")
        else:
            refused.append((style.name, reason))
    interview = Interview(judge)
    interview.check(candidates, items)
    read, reason = probe_for(judge, criterion.name, items, seed, tell) if reads else (None, None)
    if reason:
        refused.append((PROBE, reason))
    fitting, reporting = split(subset(items, MOST_ASKED, seed) if read else items, seed)
    to_fit, complete = ([item for item in half if not item.cut] for half in (fitting, reporting))
    judged = [*complete, *(item for item in reporting if item.cut), *(item.halved() for item in complete)]
    judged.sort(key=lambda item: item.pair)  # items with a common prefix are asked together

    to_rank = interview.evidence(candidates, to_fit, tell)
    blank = interview.on_nothing(candidates, any(item.dialogue for item in items))
    ranking = [_ranked(style, to_rank[style.name], to_fit, blank[style.name], seed) for style in candidates]
    if read is not None:
        probe = reading(criterion, as_set, written(read, criterion.name, folder))
        ranking.append(ranked(probe, read, items, to_fit, seed))
    ranking.sort(key=lambda ranked: -ranked.measures.auc.value)
    best = _recommended([one for one in ranking if one.style.name != PROBE], candidates[0])
    finalists = list({style.name: style for style in (best, candidates[0])}.values())
    evidence = interview.evidence(finalists, judged, tell)
    as_asked = criterion.model_copy(update={"style": candidates[0].criterion.style, "probe": None})
    current = as_set.model_copy(update={"criteria": (as_asked,), "actions": ()})
    held = {
        style.name: _held(style, to_rank[style.name], to_fit, evidence[style.name], judged, seed)
        for style in finalists
    }
    if read is not None:  # the best of a dozen questions looks good on one half: the other one decides
        held[PROBE] = held_by(probe, read, items, seed)
        own = ranked(probe, read, items, complete, seed).measures.auc.value
        best = probe if own >= held[best.name].complete.auc.value else best
    return Examination(
        criterion,
        tuple(ranking),
        tuple(refused),
        held[best.name],
        held[candidates[0].name],
        _passing(interview.passed(current, complete), good_of(complete)),
        held[best.name].trust,
        interview.model_tokens + (read.model_tokens if read else 0),
        read.findings if read else None,
    )


def expected(criterion: Criterion, as_set: EvaluationSettings, items: Sequence[Item], reads: bool) -> int:
    """Estimate how many answers an examination judges, as counted by ``tell``."""
    asked = min(len(items), MOST_ASKED) if reads else len(items)
    return (len(styles(criterion, as_set)) + 3) * asked // 2 + reads * len(items)


# --- from evidence to findings --------------------------------------------------------------------------


def _ranked(
    style: Style, evidence: Sequence[Evidence], items: Sequence[Item], label_bias: float, seed: int
) -> Ranked:
    bias = None
    if style.criterion.style == "choice":
        as_is, swapped = np.array(evidence).T
        bias = position_bias(as_is, swapped)
    return Ranked(style, _measures(evidence, items, seed), label_bias, bias)


def _recommended(ranking: Sequence[Ranked], as_set: Style) -> Style:
    """Return the best style, or that of the settings if it is within a standard error of the best."""
    best = ranking[0]
    current = next(ranked for ranked in ranking if ranked.style == as_set)
    auc = best.measures.auc
    error = (auc.high - auc.low) / 4  # a 95 % interval is about four standard errors wide
    return as_set if current.measures.auc.value >= auc.value - error else best.style


def _held(
    style: Style,
    fitting_evidence: Sequence[Evidence],
    fitted_to: Sequence[Item],
    evidence: Sequence[Evidence],
    items: Sequence[Item],
    seed: int,
) -> Held:
    fitted = fit(_log_odds(fitting_evidence), good_of(fitted_to))
    uncut, cut = (
        [(found, item) for found, item in zip(evidence, items, strict=True) if item.cut == cut]
        for cut in (False, True)
    )
    complete, halved = (_measures([e for e, _ in part], [i for _, i in part], seed) for part in (uncut, cut))
    if fitted is None:
        return Held(style, complete, halved, None, None, (), None)
    good = good_of([item for _, item in uncut])
    probability = fitted.probability(_log_odds([found for found, _ in uncut]))
    bins = curve(probability, good)
    passing = _passing(probability > fitted.threshold, good)
    return Held(style, complete, halved, fitted, passing, bins, calibration_error(bins))


def _measures(evidence: Sequence[Evidence], items: Sequence[Item], seed: int) -> Measures:
    good, hard = good_of(items), np.array([votes(found) for found in evidence])
    interval = auc_interval(_log_odds(evidence), good, _groups(items), seed)
    return Measures(len(items), interval, hard_accuracy(hard, good), ties(hard))


def _passing(passed: Labels, good: Labels) -> Passing:
    return Passing(float(passed[good].mean()), float(passed[~good].mean()))


def _log_odds(evidence: Sequence[Evidence]) -> Floats:
    return np.array([log_odds(found) for found in evidence])


def _groups(items: Sequence[Item]) -> Groups:
    return np.unique([f"{item.source}\n{item.pair}" for item in items], return_inverse=True)[1]
