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
        auc: of predictions out of fold; in the learning curve its ends are the lowest and the highest draw.
        lead: the probe's AUC minus this one, where this is a baseline's.
    """

    name: str
    n: int
    auc: Interval
    lead: Interval | None = None


@dataclass(frozen=True, slots=True)
class ProbeFindings:
    """What a probe for one criterion is worth, on answers that it was not fitted to.

    Attributes:
        layers: the layers that it reads.
        depth: the number of layers that could be read.
        cuts: complete answers, then answers that are cut off.
        sources: each source, then each source by a probe that was fitted to the others only.
        kinds: complied against refused, and harmful against benign compliance.
        baselines: classifiers of the text alone.
        learning: complete answers by number of labelled answers.
        warnings: what speaks against the probe or its data.
    """

    layers: tuple[int, ...]
    depth: int
    cuts: tuple[Row, ...]
    sources: tuple[Row, ...]
    kinds: tuple[Row, ...]
    baselines: tuple[Row, ...]
    learning: tuple[Row, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Probed:
    """A probe and its examination.

    Attributes:
        probe: the probe, fitted to all answers; None if its predictions are no better than chance.
        log_odds: predictions of all answers by probes that were not fitted to them, calibrated, nats; shape
            [answers, cuts], see :mod:`rain_llm.probing.states`.
        findings: what it is worth.
        model_tokens: tokens that the model processed.
    """

    probe: Probe | None
    log_odds: Floats
    findings: ProbeFindings
    model_tokens: int
