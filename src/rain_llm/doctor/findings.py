"""What an examination finds: data, and what it allows to say."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from rain_llm.criteria.criterion import Criterion
from rain_llm.doctor.measures import Bin, Fit, Interval
from rain_llm.doctor.styles import Style
from rain_llm.settings import ModelSettings

TRUSTED = 0.6
"""The least lower end of the AUC's interval that a judgement is trusted for."""

CHANCE = 0.5

USEFUL = 0.75
"""An interval that holds chance and this too tells nothing: it takes more answers."""


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
