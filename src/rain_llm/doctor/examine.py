"""The examination: asks a judge about labelled answers in every style, ranks, fits and reports.

The answers are split by pairs. One half ranks the styles and fits calibration and threshold; what is
reported of the recommended style comes from the other half, which nothing was fitted to.
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
    """Ask the judge about every item in every style.

    Args:
        judge: who is examined.
        criterion: what the items are labelled for.
        as_set: how it would be asked without an examination.
        items: see :mod:`rain_llm.doctor.items`.
        seed: of the split and of the intervals.
        tell: hears now and then how many more answers have been judged; each style counts.

    Raises:
        PromptError: an item does not fit into the judge's context, or lacks one that is needed.
        ModelNotSupportedError: the judge cannot be asked as the settings say.
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
    complete, whole = ([item for item in half if not item.cut] for half in (fitting, reporting))
    judged = [*whole, *(item for item in reporting if item.cut), *(item.halved() for item in whole)]
    judged.sort(key=lambda item: item.pair)  # what begins alike is asked together

    heard = interview.evidence(candidates, complete, tell)
    blank = interview.on_nothing(candidates, any(item.dialogue for item in items))
    ranking = sorted(
        (_ranked(style, heard[style.name], complete, blank[style.name], seed) for style in candidates),
        key=lambda ranked: -ranked.measures.auc.value,
    )
    best = _recommended(ranking, candidates[0])
    finalists = list({style.name: style for style in (best, candidates[0])}.values())
    told = interview.evidence(finalists, judged, tell)
    current = as_set.model_copy(update={"criteria": (criterion,), "actions": ()})
    held = {
        style.name: _held(style, heard[style.name], complete, told[style.name], judged, seed)
        for style in finalists
    }
    return Examination(
        criterion,
        tuple(ranking),
        tuple(refused),
        held[best.name],
        held[candidates[0].name],
        _passing(interview.passed(current, whole), _good(whole)),
        held[best.name].trust,
        interview.model_tokens,
    )


def expected(criterion: Criterion, as_set: EvaluationSettings, items: Sequence[Item]) -> int:
    """Return about how many answers an examination judges, as ``tell`` counts them."""
    return (len(styles(criterion, as_set)) + 3) * len(items) // 2


def split(items: Sequence[Item], seed: int) -> tuple[list[Item], list[Item]]:
    """Deal the pairs to two halves, those with the same labels by turns.

    Raises:
        SettingsError: a half would have no good or no bad complete answers.
    """
    pairs: dict[str, list[Item]] = {}
    for item in items:
        pairs.setdefault(item.pair, []).append(item)
    alike: dict[tuple[bool, ...], list[list[Item]]] = {}
    for pair in pairs.values():
        alike.setdefault(tuple(sorted(item.good for item in pair if not item.cut)), []).append(pair)
    rng = np.random.default_rng(seed)
    halves: tuple[list[Item], list[Item]] = ([], [])
    turn = 0  # goes on from kind to kind, so that odd ones out do not gather in one half
    for kind in sorted(alike):
        for place in rng.permutation(len(alike[kind])):
            halves[turn % 2].extend(alike[kind][place])
            turn += 1
    for half in halves:
        if {item.good for item in half if not item.cut} != {True, False}:
            raise SettingsError(
                f"the labelled answers come in {len(pairs)} pairs that cannot be halved into two sets with "
                "good and bad answers: let only answers that belong together share a 'pair'"
            )
    return halves


# --- from evidence to findings --------------------------------------------------------------------------


def _ranked(
    style: Style, heard: Sequence[Evidence], items: Sequence[Item], label_bias: float, seed: int
) -> Ranked:
    bias = None
    if style.criterion.style == "choice":
        as_is, swapped = np.array(heard).T
        bias = position_bias(as_is, swapped)
    return Ranked(style, _measures(heard, items, seed), label_bias, bias)


def _recommended(ranking: Sequence[Ranked], as_set: Style) -> Style:
    """Return the best style; that of the settings where it is within a standard error of the best.

    Half of the answers cannot tell a dozen styles apart, and a change should have a reason.
    """
    best = ranking[0]
    current = next(ranked for ranked in ranking if ranked.style == as_set)
    interval = best.measures.auc
    error = (interval.high - interval.low) / 4  # 95 % are four standard errors, about
    return as_set if current.measures.auc.value >= interval.value - error else best.style


def _held(
    style: Style,
    heard: Sequence[Evidence],
    fitted_to: Sequence[Item],
    told: Sequence[Evidence],
    items: Sequence[Item],
    seed: int,
) -> Held:
    fitted = fit(_log_odds(heard), _good(fitted_to))
    whole, cut = (
        [(evidence, item) for evidence, item in zip(told, items, strict=True) if item.cut == cut]
        for cut in (False, True)
    )
    complete, halved = (_measures([e for e, _ in part], [i for _, i in part], seed) for part in (whole, cut))
    if fitted is None:
        return Held(style, complete, halved, None, None, (), None)
    good = _good([item for _, item in whole])
    probability = fitted.probability(_log_odds([evidence for evidence, _ in whole]))
    bins = curve(probability, good)
    passing = _passing(probability > fitted.threshold, good)
    return Held(style, complete, halved, fitted, passing, bins, calibration_error(bins))


def _measures(heard: Sequence[Evidence], items: Sequence[Item], seed: int) -> Measures:
    good, hard = _good(items), np.array([votes(evidence) for evidence in heard])
    interval = auc_interval(_log_odds(heard), good, _groups(items), seed)
    return Measures(len(items), interval, hard_accuracy(hard, good), ties(hard))


def _passing(passed: Labels, good: Labels) -> Passing:
    return Passing(float(passed[good].mean()), float(passed[~good].mean()))


def _log_odds(heard: Sequence[Evidence]) -> Floats:
    return np.array([log_odds(evidence) for evidence in heard])


def _good(items: Sequence[Item]) -> Labels:
    return np.array([item.good for item in items])


def _groups(items: Sequence[Item]) -> Groups:
    return np.unique([item.pair for item in items], return_inverse=True)[1]
