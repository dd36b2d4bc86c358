"""The examination: asks a judge about labelled answers in every style, ranks, fits and reports.

The answers are split by pairs. One half ranks the styles and fits calibration and threshold; what is
reported of the recommended style comes from the other half, which nothing was fitted to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar, cast

import numpy as np

from rain_llm.criteria import Criterion
from rain_llm.doctor.items import Item
from rain_llm.doctor.measures import (
    Bin,
    Fit,
    Floats,
    Groups,
    Interval,
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
from rain_llm.errors import ModelNotSupportedError, PromptError, SettingsError
from rain_llm.evaluation import CONTENT_FREE, Asking, Evidence, SelfEvaluator, Subject, log_odds, votes
from rain_llm.models.base import LanguageModel
from rain_llm.settings import EvaluationSettings, ModelSettings
from rain_llm.types import Score, Scores, TokenIds

TRUSTED = 0.6
"""The least lower end of the AUC's interval that a judgement is trusted for."""

CHANCE = 0.5

USEFUL = 0.75
"""An interval that holds chance and this too tells nothing: it takes more answers."""

_AT_ONCE = 8  # answers whose questions are asked in one round, in all styles

Answered = TypeVar("Answered")


class Trust(StrEnum):
    """Whether a criterion can be judged, by the interval of the AUC on answers not fitted to."""

    YES = "yes"  # all of it above TRUSTED
    WEAK = "weak"  # all of it above chance
    NO = "no"  # chance is within, and nothing useful
    UNKNOWN = "unknown"  # both are within
    INVERTED = "inverted"  # all of it below chance


SAID = {
    Trust.YES: "can be judged",
    Trust.WEAK: "can be judged, but weakly",
    Trust.NO: "can't be judged",
    Trust.UNKNOWN: "can't be told: too few answers",
    Trust.INVERTED: "is judged the wrong way round",
}
"""What is said of a criterion."""


@dataclass(frozen=True, slots=True)
class Measures:
    """What a style's answers are worth.

    Attributes:
        answers: how many were judged.
        auc: chance that a good answer has higher log-odds than a bad one.
        hard: share of right hard votes; a tie is half right.
        ties: share of hard votes that are ties.
    """

    answers: int
    auc: Interval
    hard: float
    ties: float

    @property
    def trust(self) -> Trust:
        """Say what the interval allows to say."""
        if self.auc.low > CHANCE:
            return Trust.YES if self.auc.low > TRUSTED else Trust.WEAK
        if self.auc.high < CHANCE:
            return Trust.INVERTED
        return Trust.UNKNOWN if self.auc.high >= USEFUL else Trust.NO


@dataclass(frozen=True, slots=True)
class Passing:
    """Shares of the good and of the bad answers that pass."""

    good: float
    bad: float


@dataclass(frozen=True, slots=True)
class Ranked:
    """A style on the fitting half, complete answers.

    Attributes:
        label_bias: mean log-odds of texts that say nothing, nats.
        position_bias: mean preference for the letter A, nats; None where there are no letters.
    """

    style: Style
    measures: Measures
    label_bias: float
    position_bias: float | None


@dataclass(frozen=True, slots=True)
class Held:
    """A style on the other half.

    Attributes:
        complete, cut: complete answers, and answers that were cut off.
        fit: from the fitting half; None where higher log-odds did not mean better answers there.
        passing: with the fit, complete answers.
        curve: with the fit, complete answers. calibration_error: mean distance of it from the truth.
    """

    style: Style
    complete: Measures
    cut: Measures
    fit: Fit | None
    passing: Passing | None
    curve: tuple[Bin, ...]
    calibration_error: float | None

    @property
    def trust(self) -> Trust:
        """Whether it can be trusted on complete answers; what could not be fitted cannot."""
        trust = self.complete.trust
        return Trust.NO if self.fit is None and trust in (Trust.YES, Trust.WEAK) else trust


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found about one criterion.

    Attributes:
        ranking: all styles that the judge can be asked in, best first.
        refused: the other styles, with the reason.
        recommended: the style as it is set, unless another one is better by more than a standard error.
        as_set: the style as it is set. passing_as_set: with calibration, threshold and mode as set.
        trust: in the recommended judgement of complete answers.
        model_tokens: that went through the judge for it.
    """

    criterion: Criterion
    ranking: tuple[Ranked, ...]
    refused: tuple[tuple[str, str], ...]
    recommended: Held
    as_set: Held
    passing_as_set: Passing
    trust: Trust
    model_tokens: int


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found about a model.

    Attributes:
        model: the judge's name. settings: how it is loaded. judges_only: another model writes.
        data: where the labelled answers come from. seed: of the split and the intervals.
        seconds: that it took.
    """

    model: str
    settings: ModelSettings
    judges_only: bool
    data: str
    seed: int
    examinations: tuple[Examination, ...]
    seconds: float


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
    candidates, refused = [], []
    for style in styles(criterion, as_set):
        reason = askable(style, judge)
        if reason is None:
            candidates.append(style)
        elif not candidates:
            raise ModelNotSupportedError(f"{criterion.name}, asked as the settings say: {reason}")
        else:
            refused.append((style.name, reason))
    _check(judge, candidates, items)
    fitting, reporting = split(items, seed)
    complete, whole = ([item for item in half if not item.cut] for half in (fitting, reporting))
    judged = [*whole, *(item for item in reporting if item.cut), *(item.halved() for item in whole)]
    judged.sort(key=lambda item: item.pair)  # what begins alike is asked together

    interview = _Interview(judge)
    heard = interview.evidence(candidates, complete, tell)
    blank = interview.on_nothing(candidates, any(item.dialogue for item in items))
    ranking = sorted(
        (_ranked(style, heard[style.name], complete, blank[style.name], seed) for style in candidates),
        key=lambda ranked: -ranked.measures.auc.value,
    )
    best = _recommended(ranking, candidates[0])
    finalists = list({style.name: style for style in (best, candidates[0])}.values())
    told = interview.evidence(finalists, judged, tell)
    current = as_set.model_copy(update={"criteria": (criterion,)})
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


# --- asking -------------------------------------------------------------------------------------------


def _check(judge: LanguageModel, candidates: Sequence[Style], items: Sequence[Item]) -> None:
    """Refuse items that cannot be asked about, before the model runs."""
    for style in candidates:
        evaluator = SelfEvaluator(style.settings, judge)
        for item in items:
            try:
                evaluator.check(item.subject, len(judge.encode(item.said)))
            except PromptError as error:
                raise PromptError(f"item {item.id}: {error}") from error


class _Interview:
    """A judge and what it has answered: no question is asked twice.

    Questions that differ in their options alone become one, and the model may read what many of a
    round begin with once.
    """

    def __init__(self, judge: LanguageModel) -> None:
        self._judge = judge
        self.model_tokens = 0
        self._known: dict[tuple[TokenIds, TokenIds], float] = {}

    def evidence(
        self, asked: Sequence[Style], items: Sequence[Item], tell: Callable[[int], None]
    ) -> dict[str, list[Evidence]]:
        """Return, for each style, the evidence on every item."""
        evaluators = [SelfEvaluator(style.settings, self._judge) for style in asked]
        found: dict[str, list[Evidence]] = {style.name: [] for style in asked}
        for some in _portions(items):
            answers = iter(
                self._answers([e.evidence(item.subject, [item.said]) for e in evaluators for item in some])
            )
            for style in asked:
                found[style.name] += [next(answers)[0][0] for _ in some]
            tell(len(asked) * len(some))
        return found

    def on_nothing(self, asked: Sequence[Style], dialogue: bool) -> dict[str, float]:
        """Return, for each style, the mean log-odds of texts that say nothing."""
        nothing = Subject("", "", dialogue)
        evaluators = [SelfEvaluator(style.settings, self._judge) for style in asked]
        answers = self._answers([e.evidence(nothing, CONTENT_FREE) for e in evaluators])
        return {
            style.name: float(np.mean([log_odds(evidence) for (evidence,) in answer]))
            for style, answer in zip(asked, answers, strict=True)
        }

    def passed(self, settings: EvaluationSettings, items: Sequence[Item]) -> Labels:
        """Tell which items pass by these settings."""
        evaluator = SelfEvaluator(settings, self._judge)
        verdicts = [
            verdict
            for some in _portions(items)
            for (verdict,) in self._answers([evaluator.judge(item.subject, [item.said]) for item in some])
        ]
        return np.array([verdict.passed for verdict in verdicts])

    def _answers(self, askings: Sequence[Asking[Answered]]) -> list[Answered]:
        """Let each asking have its round answered, all of them in one batch."""
        rounds = [cast("Sequence[Score]", next(asking)) for asking in askings]
        unknown: dict[TokenIds, dict[TokenIds, None]] = {}
        for question in (question for questions in rounds for question in questions):
            for option in question.options:
                if (question.prefix, option) not in self._known:
                    unknown.setdefault(question.prefix, {})[option] = None
        asked = [Score(prefix, tuple(options)) for prefix, options in unknown.items()]
        for question, reply in zip(asked, self._judge.score(asked) if asked else (), strict=True):
            self.model_tokens += reply.model_tokens
            for option, logprob in zip(question.options, reply.logprobs, strict=True):
                self._known[question.prefix, option] = logprob
        return [self._ended(asking, questions) for asking, questions in zip(askings, rounds, strict=True)]

    def _ended(self, asking: Asking[Answered], questions: Sequence[Score]) -> Answered:
        try:
            asking.send(
                [Scores(tuple(self._known[q.prefix, option] for option in q.options)) for q in questions]
            )
        except StopIteration as done:
            return cast("Answered", done.value)
        raise AssertionError("a judgement asks one round")


def _portions(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    return (items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE))


# --- from evidence to findings --------------------------------------------------------------------------


def _ranked(
    style: Style, heard: Sequence[Evidence], items: Sequence[Item], label_bias: float, seed: int
) -> Ranked:
    bias = None
    if style.settings.style == "choice":
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
