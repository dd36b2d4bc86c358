"""Fit a linear classifier by nested folds, and turn it into a probe.

The answers are split into folds by prompt. Each fold is predicted by a classifier of the other folds, whose
layers and strength were chosen within these, by folds again. So no answer, and no answer to the same prompt,
has a part in its own prediction. All published figures are of these predictions; the probe itself is fitted
to all answers afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rain_llm.doctor.measures import Fit, Floats, Groups, Labels, auc
from rain_llm.errors import SettingsError
from rain_llm.judging.probe import Probe
from rain_llm.probing.ridge import STRENGTHS, Linear, ridge
from rain_llm.probing.states import COMPLETE, CUTS, States

Layers: TypeAlias = tuple[int, ...]
View: TypeAlias = Callable[[Layers], NDArray[np.float32]]
"""Returns features of all answers: shape [answers, cuts, features], complete answers last."""

_FOLDS = 5
_INNER = 5  # folds within the others, to choose layers and strength
_FEW = 200  # answers; with fewer, folds must be small, and a choice is the average of three ways to fold
_FOLDS_OF_FEW = 10
_LEAST = 4  # good and bad answers; with fewer, nothing can be chosen within folds
_JUDGED = [CUTS.index(16), CUTS.index(32), COMPLETE]  # the cuts at which good answers should pass
PASS = 0.95
"""Share of good answers that a probe lets pass."""

_FITTED = (CUTS.index(8), CUTS.index(32), COMPLETE)  # the cuts that a classifier is fitted to


@dataclass(frozen=True, slots=True)
class Answers:
    """What is known of the labelled answers, apart from their states.

    Attributes:
        good: their labels.
        groups: numbers of their prompts: answers to one prompt, or with one text, are never separated.
        sources: numbers of the files that they come from.
    """

    good: Labels
    groups: Groups
    sources: Groups

    def some(self, chosen: NDArray[np.int64]) -> Answers:
        """Return these of the answers."""
        return Answers(self.good[chosen], self.groups[chosen], self.sources[chosen])

    def check(self) -> None:
        """Check that there is something to fit.

        Raises:
            SettingsError: all labels are alike, or there are too few answers or prompts.
        """
        good, bad, prompts = int(self.good.sum()), int((~self.good).sum()), len(set(self.groups))
        if not good or not bad:
            raise SettingsError(
                f"all {good + bad} labelled answers are {'good' if good else 'bad'}: a probe needs both kinds"
            )
        if min(good, bad) < _LEAST or prompts < _FOLDS_OF_FEW:
            raise SettingsError(
                f"{good} good and {bad} bad answers to {prompts} prompts are too few for a probe: "
                f"give at least {_LEAST} of each, to {_FOLDS_OF_FEW} prompts or more"
            )


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a fit has chosen: the layers, and the strength of regularisation."""

    layers: Layers
    strength: float


@dataclass(frozen=True, slots=True)
class Predicted:
    """Predictions of answers by classifiers that were not fitted to them.

    Attributes:
        scores: shape [answers, cuts]; higher means good.
        folds: number of each answer's fold.
        chosen: for each fold, what was chosen within the others.
    """

    scores: Floats
    folds: NDArray[np.int64]
    chosen: tuple[Chosen, ...]


def folds(answers: Answers, seed: int, count: int = _FOLDS) -> NDArray[np.int64]:
    """Return a fold for each answer: whole prompts, with labels and sources spread evenly."""
    rng = np.random.default_rng(seed)
    names, place = np.unique(answers.groups, return_inverse=True)
    kinds = np.unique(np.stack([answers.sources, answers.good], 1), axis=0, return_inverse=True)[1].ravel()
    held = np.zeros((len(names), kinds.max() + 1))  # answers of each kind in each group
    np.add.at(held, (place, kinds), 1)
    filled = np.zeros((count, held.shape[1]))
    fold = np.zeros(len(names), np.int64)
    order = rng.permutation(len(names))
    for group in order[np.argsort(-held[order].sum(1), kind="stable")]:  # the largest first
        fold[group] = np.argmin(
            (filled + held[group]) ** 2 @ (1 / held.sum(0)) - filled**2 @ (1 / held.sum(0))
        )
        filled[fold[group]] += held[group]
    return fold[place]


def balanced(answers: Answers) -> Floats:
    """Return weights by which good and bad answers of a source weigh the same; their sum is that of answers.

    Otherwise a probe learns to recognise the source with more bad answers.
    """
    weights = np.ones(len(answers.good))
    for source in np.unique(answers.sources):
        inside = answers.sources == source
        kinds = [inside & (answers.good == good) for good in (True, False)]
        present = [kind for kind in kinds if kind.any()]
        for kind in present:
            weights[kind] = inside.sum() / len(present) / kind.sum()
    return weights


def fitted(features: NDArray[np.float32], answers: Answers, strength: float, standardise: bool) -> Linear:
    """Fit one classifier to complete answers and to their beginnings."""
    places = _FITTED if features.shape[1] > 1 else (COMPLETE,)
    rows = np.concatenate([features[:, place] for place in places])
    weights = np.tile(balanced(answers) / len(places), len(places))
    return ridge(rows, np.tile(answers.good, len(places)), weights, [strength], standardise)[0]


def choose(
    view: View, candidates: Sequence[Layers], answers: Answers, seed: int, standardise: bool = True
) -> Chosen:
    """Choose layers and strength by the AUC in folds, of complete answers.

    Args:
        view: returns the features of these answers.
        candidates: the sets of layers to choose from.
        answers: the answers.
        seed: seed of the folds.
        standardise: see :func:`~rain_llm.probing.ridge.ridge`.
    """
    weights = balanced(answers)
    ways = [folds(answers, seed + way, _INNER) for way in range(3 if len(answers.good) < _FEW else 1)]
    best: tuple[float, Chosen] | None = None
    for layers in candidates:
        features = view(layers)[:, COMPLETE]
        values = np.zeros(len(STRENGTHS))
        for fold in ways:
            scores = np.zeros((len(STRENGTHS), len(fold)))
            for number in np.unique(fold):
                inside, outside = fold != number, fold == number
                lines = ridge(features[inside], answers.good[inside], weights[inside], STRENGTHS, standardise)
                scores[:, outside] = [line(features[outside]) for line in lines]
            values += [auc(found, answers.good) / len(ways) for found in scores]
        place = int(values.argmax())
        if best is None or values[place] > best[0]:
            best = float(values[place]), Chosen(layers, STRENGTHS[place])
    assert best is not None
    return best[1]


def predict(
    view: View, candidates: Sequence[Layers], answers: Answers, seed: int, standardise: bool = True
) -> Predicted:
    """Predict each answer by a classifier of other folds; the arguments are those of :func:`choose`."""
    count = _FOLDS_OF_FEW if len(answers.good) < _FEW else _FOLDS
    fold = folds(answers, seed, count)
    scores: Floats = np.zeros(0)
    chosen = []
    for number in range(count):
        inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        rest = answers.some(inside)
        choice = choose(lambda layers: view(layers)[inside], candidates, rest, seed, standardise)  # noqa: B023
        features = view(choice.layers)
        line = fitted(features[inside], rest, choice.strength, standardise)
        if not scores.size:
            scores = np.zeros(features.shape[:2])
        scores[outside] = line(features[outside])
        chosen.append(choice)
    return Predicted(scores, fold, tuple(chosen))


def threshold(log_odds: Floats, good: Labels, passing: float = PASS) -> float:
    """Return the probability above which an answer passes.

    A search judges drafts while they grow, and a good draft that does not pass is written again. So most good
    answers pass, complete ones and beginnings; and nothing passes below 0.5 that need not.

    Args:
        log_odds: predictions out of fold, calibrated, nats, shape [answers, cuts].
        good: the labels.
        passing: share of the good answers that pass.
    """
    lowest = float(np.quantile(log_odds[good][:, _JUDGED], 1 - passing))
    return float(min(0.5, 1 / (1 + np.exp(-lowest))))


def final(
    criterion: str,
    model: str,
    states: States,
    candidates: Sequence[Layers],
    answers: Answers,
    calibration: Fit,
    seed: int,
) -> Probe:
    """Fit a probe to all answers; ``calibration`` was fitted to predictions out of fold."""
    chosen = choose(states.of, candidates, answers, seed)
    line = fitted(states.of(chosen.layers), answers, chosen.strength, True)
    weights = (line.weights / calibration.scale).reshape(len(chosen.layers), -1)
    return Probe(
        criterion=criterion,
        model=model,
        layers=chosen.layers,
        weights=tuple(tuple(map(float, vector)) for vector in weights),
        bias=(line.bias - calibration.center) / calibration.scale,
        threshold=calibration.threshold,
    )
