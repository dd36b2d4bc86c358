"""Examine a judge: ask it about labelled answers in every style, rank the styles, and fit the best.

The answers are split by pairs. One half is used to rank the styles and to fit calibration and threshold. The
results of the recommended style are measured on the other half, which was not used for fitting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
from rain_llm.errors import ModelNotSupportedError, SettingsError
from rain_llm.judging.evaluator import Evidence, log_odds, votes
from rain_llm.models.base import LanguageModel
from rain_llm.models.transcript import shows_chats
from rain_llm.settings import EvaluationSettings


def examine(
    judge: LanguageModel,
    criterion: Criterion,
    as_set: EvaluationSettings,
    items: Sequence[Item],
    seed: int,
    tell: Callable[[int], None] = lambda judged: None,
) -> Examination:
    """Examine how well a judge judges one criterion.

    Args:
        judge: the judge.
        criterion: the criterion that the items are labelled for.
        as_set: the current evaluation settings.
        items: labelled answers; see :mod:`rain_llm.doctor.items`.
        seed: seed of the split and of the intervals.
        tell: called with the number of answers judged since the last call, counted in each style.

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
    fitting, reporting = split(items, seed)
    to_fit, complete = ([item for item in half if not item.cut] for half in (fitting, reporting))
    judged = [*complete, *(item for item in reporting if item.cut), *(item.halved() for item in complete)]
    judged.sort(key=lambda item: item.pair)  # items with a common prefix are asked together

    to_rank = interview.evidence(candidates, to_fit, tell)
    blank = interview.on_nothing(candidates, any(item.dialogue for item in items))
    ranking = sorted(
        (_ranked(style, to_rank[style.name], to_fit, blank[style.name], seed) for style in candidates),
        key=lambda ranked: -ranked.measures.auc.value,
    )
    best = _recommended(ranking, candidates[0])
    finalists = list({style.name: style for style in (best, candidates[0])}.values())
    evidence = interview.evidence(finalists, judged, tell)
    current = as_set.model_copy(update={"criteria": (criterion,), "actions": ()})
    held = {
        style.name: _held(style, to_rank[style.name], to_fit, evidence[style.name], judged, seed)
        for style in finalists
    }
    return Examination(
        criterion,
        tuple(ranking),
        tuple(refused),
        held[best.name],
        held[candidates[0].name],
        _passing(interview.passed(current, complete), _good(complete)),
        held[best.name].trust,
        interview.model_tokens,
    )


def expected(criterion: Criterion, as_set: EvaluationSettings, items: Sequence[Item]) -> int:
    """Estimate how many answers an examination judges, as counted by ``tell``."""
    return (len(styles(criterion, as_set)) + 3) * len(items) // 2


def split(items: Sequence[Item], seed: int) -> tuple[list[Item], list[Item]]:
    """Split the items into two halves by pairs, alternating among pairs with the same labels.

    Raises:
        SettingsError: a half would have no good or no bad complete answers.
    """
    pairs: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        pairs.setdefault((item.source, item.pair), []).append(item)
    alike: dict[tuple[bool, ...], list[list[Item]]] = {}
    for pair in pairs.values():
        alike.setdefault(tuple(sorted(item.good for item in pair if not item.cut)), []).append(pair)
    rng = np.random.default_rng(seed)
    halves: tuple[list[Item], list[Item]] = ([], [])
    turn = 0  # continues over all kinds, so that the halves of odd kinds balance
    for kind in sorted(alike):
        for place in rng.permutation(len(alike[kind])):
            halves[turn % 2].extend(alike[kind][place])
            turn += 1
    for half in halves:
        if {item.good for item in half if not item.cut} != {True, False}:
            raise SettingsError(
                f"the labelled answers are {len(pairs)} pairs that cannot be halved into two sets with good "
                "and bad answers: use the same 'pair' only for answers to the same query"
            )
    return halves


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
    """Return the best style, or that of the settings if it is within a standard error of the best.

    Half of the answers are too few to distinguish a dozen styles, and a change should have a reason.
    """
    best = ranking[0]
    current = next(ranked for ranked in ranking if ranked.style == as_set)
    interval = best.measures.auc
    error = (interval.high - interval.low) / 4  # a 95 % interval is about four standard errors wide
    return as_set if current.measures.auc.value >= interval.value - error else best.style


def _held(
    style: Style,
    fitting_evidence: Sequence[Evidence],
    fitted_to: Sequence[Item],
    evidence: Sequence[Evidence],
    items: Sequence[Item],
    seed: int,
) -> Held:
    fitted = fit(_log_odds(fitting_evidence), _good(fitted_to))
    uncut, cut = (
        [(found, item) for found, item in zip(evidence, items, strict=True) if item.cut == cut]
        for cut in (False, True)
    )
    complete, halved = (_measures([e for e, _ in part], [i for _, i in part], seed) for part in (uncut, cut))
    if fitted is None:
        return Held(style, complete, halved, None, None, (), None)
    good = _good([item for _, item in uncut])
    probability = fitted.probability(_log_odds([found for found, _ in uncut]))
    bins = curve(probability, good)
    passing = _passing(probability > fitted.threshold, good)
    return Held(style, complete, halved, fitted, passing, bins, calibration_error(bins))


def _measures(evidence: Sequence[Evidence], items: Sequence[Item], seed: int) -> Measures:
    good, hard = _good(items), np.array([votes(found) for found in evidence])
    interval = auc_interval(_log_odds(evidence), good, _groups(items), seed)
    return Measures(len(items), interval, hard_accuracy(hard, good), ties(hard))


def _passing(passed: Labels, good: Labels) -> Passing:
    return Passing(float(passed[good].mean()), float(passed[~good].mean()))


def _log_odds(evidence: Sequence[Evidence]) -> Floats:
    return np.array([log_odds(found) for found in evidence])


def _good(items: Sequence[Item]) -> Labels:
    return np.array([item.good for item in items])


def _groups(items: Sequence[Item]) -> Groups:
    return np.unique([f"{item.source}\n{item.pair}" for item in items], return_inverse=True)[1]
