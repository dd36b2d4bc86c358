"""Result types of the examination of a probe."""

from __future__ import annotations

from dataclasses import dataclass

from rain_llm.doctor.measures import Floats, Interval
from rain_llm.judging.probe import Probe


@dataclass(frozen=True, slots=True)
class Row:
    """One AUC with its interval.

    Attributes:
        name: the answers and the classifier.
        n: number of answers.
        auc: of predictions out of fold.
        lead: the probe's AUC minus this one, where this is a baseline's.
    """

    name: str
    n: int
    auc: Interval
    lead: Interval | None = None


@dataclass(frozen=True, slots=True)
class Probed:
    """What a probe for one criterion is worth.

    Attributes:
        probe: the probe, fitted to all answers; None if its predictions are no better than chance.
        log_odds: predictions of all answers by probes that were not fitted to them, calibrated, nats; shape
            [answers, cuts], see :mod:`rain_llm.probing.states`.
        cuts: AUC of complete answers, then of answers that are cut off.
        sources: AUC of each source, then of each source by a probe that was fitted to the others only.
        kinds: AUC of complied against refused, and of harmful against benign compliance.
        baselines: AUC of classifiers of the text alone.
        learning: AUC by number of labelled answers.
        warnings: what speaks against the probe or its data.
        model_tokens: tokens that the model processed.
    """

    probe: Probe | None
    log_odds: Floats
    cuts: tuple[Row, ...]
    sources: tuple[Row, ...]
    kinds: tuple[Row, ...]
    baselines: tuple[Row, ...]
    learning: tuple[Row, ...]
    warnings: tuple[str, ...]
    model_tokens: int
