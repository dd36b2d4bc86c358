"""Result types of an examination, and how results are rated."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from rain_llm.criteria.criterion import Criterion
from rain_llm.doctor.measures import Bin, Fit, Interval
from rain_llm.doctor.styles import Style
from rain_llm.probing.findings import ProbeFindings
from rain_llm.settings import ModelSettings

TRUSTED = 0.6
"""A criterion is trusted if the lower end of its AUC interval is above this."""

CHANCE = 0.5
"""AUC of a judge that guesses."""

USEFUL = 0.75
"""An AUC interval that contains both chance and this value is inconclusive: more answers are needed."""


class Trust(StrEnum):
    """Whether a criterion can be judged, by the AUC interval on answers not used for fitting."""

    YES = "yes"  # the interval is above TRUSTED
    WEAK = "weak"  # the interval is above chance
    NO = "no"  # the interval contains chance and is below USEFUL
    UNKNOWN = "unknown"  # the interval contains both
    INVERTED = "inverted"  # the interval is below chance


SAID = {
    Trust.YES: "can be judged",
    Trust.WEAK: "can be judged, but weakly",
    Trust.NO: "can't be judged",
    Trust.UNKNOWN: "can't be told: too few answers",
    Trust.INVERTED: "is judged the wrong way round",
}
"""The words for each rating in reports."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Statistics of a question style.

    Attributes:
        answers: number of judged answers.
        auc: probability that a good answer has higher log-odds than a bad one.
        hard: share of correct hard votes; a tie counts half.
        ties: share of hard votes that are ties.
    """

    answers: int
    auc: Interval
    hard: float
    ties: float

    @property
    def trust(self) -> Trust:
        """Return the rating that the AUC interval supports."""
        if self.auc.low > CHANCE:
            return Trust.YES if self.auc.low > TRUSTED else Trust.WEAK
        if self.auc.high < CHANCE:
            return Trust.INVERTED
        return Trust.UNKNOWN if self.auc.high >= USEFUL else Trust.NO


@dataclass(frozen=True, slots=True)
class Passing:
    """The shares of good and of bad answers that pass."""

    good: float
    bad: float


@dataclass(frozen=True, slots=True)
class Ranked:
    """A style's results on the complete answers of the fitting half.

    Attributes:
        style: the question style.
        measures: its statistics.
        label_bias: mean log-odds of texts without content, nats; None for a probe.
        position_bias: mean preference for the letter A, nats; None for styles without letters.
    """

    style: Style
    measures: Measures
    label_bias: float | None
    position_bias: float | None


@dataclass(frozen=True, slots=True)
class Held:
    """A style's results on the reporting half.

    Attributes:
        style: the question style.
        complete: statistics of complete answers.
        cut: statistics of answers that were cut off.
        fit: the fit from the other half; None if higher log-odds did not mean better answers there.
        passing: shares of complete answers that pass with the fit.
        curve: calibration curve of complete answers with the fit.
        calibration_error: mean difference between predicted and observed shares.
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
        """Return the rating on complete answers; without a fit, at most NO."""
        trust = self.complete.trust
        return Trust.NO if self.fit is None and trust in (Trust.YES, Trust.WEAK) else trust


@dataclass(frozen=True, slots=True)
class Examination:
    """The results for one criterion.

    Attributes:
        criterion: the criterion.
        ranking: all styles that the judge supports, best first.
        refused: the other styles, with the reason.
        recommended: the style of the settings, unless another one is better by more than a standard error.
        as_set: the style of the settings.
        passing_as_set: shares that pass with the calibration, threshold and mode of the settings.
        trust: the rating of the recommended style on complete answers.
        model_tokens: tokens that the judge processed.
        probe: what a probe is worth, if there is one.
    """

    criterion: Criterion
    ranking: tuple[Ranked, ...]
    refused: tuple[tuple[str, str], ...]
    recommended: Held
    as_set: Held
    passing_as_set: Passing
    trust: Trust
    model_tokens: int
    probe: ProbeFindings | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The results for a model.

    Attributes:
        model: name of the judge.
        settings: settings of the judge.
        judges_only: whether another model writes.
        data: source of the labelled answers.
        seed: seed of the split and the intervals.
        examinations: the results for each criterion.
        seconds: duration.
    """

    model: str
    settings: ModelSettings
    judges_only: bool
    data: str
    seed: int
    examinations: tuple[Examination, ...]
    seconds: float
