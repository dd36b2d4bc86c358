"""Examine what a probe is worth: by length, source and kind of answer, and beside classifiers of text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rain_llm.doctor.items import Item
from rain_llm.doctor.measures import Floats, Groups, Interval, Labels, auc, auc_interval, bootstrap, fit, wins
from rain_llm.judging.probe import Measured, Source
from rain_llm.models.base import Readable
from rain_llm.probing import baselines
from rain_llm.probing.findings import Probed, ProbeFindings, Row
from rain_llm.probing.fitting import (
    PASS,
    Answers,
    Layers,
    Predicted,
    View,
    choose,
    final,
    fitted,
    predict,
    threshold,
)
from rain_llm.probing.states import COMPLETE, CUTS, candidates, read_states

_FOREIGN = ", not fitted to"
_FEW = 150
_USEFUL = 0.6
_DRAWS = 3  # of each size of the learning curve


def examine_probe(
    model: Readable,
    criterion: str,
    items: Sequence[Item],
    seed: int,
    tell: Callable[[int], None] = lambda read: None,
    passing: float = PASS,
) -> Probed:
    """Fit a probe for a criterion, and examine it.

    Args:
        model: the model whose hidden states are read.
        criterion: name of the criterion.
        items: labelled answers.
        seed: seed of folds and intervals.
        tell: called with 1 after each answer that was read.
        passing: share of the good answers that the probe lets pass.

    Raises:
        SettingsError: all labels are alike, or there are too few answers.
        PromptError: an answer has no tokens, or exceeds the model's context.
        ModelError: the states are not finite.
    """
    answers, warnings = answers_of(items)
    answers.check()
    states, choices = read_states(model, items, tell), candidates(model.depth)
    predicted = predict(states.of, choices, answers, seed)
    scores, calibration = predicted.scores, fit(predicted.scores[:, COMPLETE], answers.good)
    show = _Table(items, answers, seed)
    complete = show.row("complete answers", scores[:, COMPLETE])
    cuts = [show.row(f"first {cut} tokens", scores[:, place]) for place, cut in enumerate(CUTS)]
    sources = _sources(show, states.of, choices, scores[:, COMPLETE])
    kinds = [show.row(name, scores[:, COMPLETE], kept) for name, kept in _kinds(items) if show.both(kept)]
    others, missing = baselines.predictions(items, answers, seed)
    compared = [
        show.row(name, other.scores[:, COMPLETE], ahead=scores[:, COMPLETE]) for name, other in others.items()
    ]
    warnings += [*_doubts(complete, sources, compared), *(f"{name}: {why}" for name, why in missing.items())]
    probe = None
    if calibration is not None:  # otherwise its predictions are no better than chance
        scores = (scores - calibration.center) / calibration.scale
        probe = final(criterion, model.fingerprint, states, choices, answers, calibration, seed)
        figures = [complete, *cuts, *sources, *kinds, *compared]
        update = {
            "threshold": threshold(scores, answers.good, passing),
            "data": sources_of(items),
            "held_out": tuple(map(_measured, figures)),
        }
        probe = probe.model_copy(update=update)
    findings = ProbeFindings(
        probe.layers if probe else (),
        model.depth,
        (complete, *cuts),
        tuple(sources),
        tuple(kinds),
        tuple(compared),
        _learning_curve(states.of, answers, predicted, show.uncut, seed),
        tuple(warnings),
    )
    return Probed(probe, scores, findings, states.model_tokens)


class _Table:
    """Makes rows of complete items: cut ones are fitted to, but not counted."""

    def __init__(self, items: Sequence[Item], answers: Answers, seed: int) -> None:
        self.items, self.answers, self.seed = items, answers, seed
        self.uncut: Labels = np.array([not item.cut for item in items])

    def row(self, name: str, scores: Floats, kept: Labels | None = None, ahead: Floats | None = None) -> Row:
        """Return the AUC of scores, of some items; with ``ahead``, by how much its AUC is above."""
        chosen = self.uncut if kept is None else kept & self.uncut
        known = self.answers.good[chosen], self.answers.groups[chosen], self.seed
        lead = None if ahead is None else auc_difference(ahead[chosen], scores[chosen], *known)
        return Row(name, int(chosen.sum()), auc_interval(scores[chosen], *known), lead)

    def both(self, kept: Labels) -> bool:
        """Return whether some of these items are good and some bad."""
        return set(self.answers.good[kept & self.uncut]) == {True, False}


def _sources(show: _Table, view: View, choices: Sequence[Layers], scores: Floats) -> list[Row]:
    """Return a row for each source, then one for each by a probe that was fitted to the others."""
    names, answers = _names(show.items), show.answers
    inside = {name: answers.sources == number for number, name in enumerate(names)}
    if len(names) < 2:
        return []
    rows = [show.row(name, scores, kept) for name, kept in inside.items() if show.both(kept)]
    for name, kept in inside.items():
        rest = np.flatnonzero(~np.isin(answers.groups, answers.groups[kept]))
        there = answers.some(rest)
        if show.both(kept) and min(there.good.sum(), (~there.good).sum()) >= 2:
            chosen = choose(lambda layers: view(layers)[rest], choices, there, show.seed)  # noqa: B023
            features = view(chosen.layers)
            line = fitted(features[rest], there, chosen.strength, True)
            rows.append(show.row(f"{name}{_FOREIGN}", line(features[:, COMPLETE]), kept))
    return rows


def auc_difference(first: Floats, second: Floats, good: Labels, groups: Groups, seed: int) -> Interval:
    """Return the AUC of ``first`` minus that of ``second``, with a 95 % percentile bootstrap over pairs."""
    ahead = wins(first, good) - wins(second, good)
    low, high = bootstrap(ahead, good, groups, seed) or (-1.0, 1.0)
    return Interval(float(ahead.mean()), low, high)


def _names(items: Sequence[Item]) -> list[str]:
    return list(dict.fromkeys(item.source for item in items))


def answers_of(items: Sequence[Item]) -> tuple[Answers, list[str]]:
    """Return labels, groups and sources of items, and warnings about duplicates.

    Items are in one group if they share a pair, a user's turn, or the text of the answer.
    """
    parents = list(range(len(items)))

    def root(place: int) -> int:
        while parents[place] != place:
            place = parents[place]
        return place

    first: dict[tuple[str, ...], int] = {}
    twice = set()
    for place, item in enumerate(items):
        text = " ".join(item.answer.casefold().split())
        keys = [("pair", item.source, item.pair), ("answer", text)]
        keys += [("query", " ".join(item.query.casefold().split()))] if item.dialogue and item.query else []
        for key in keys:
            other = first.setdefault(key, place)
            if other != place and key[0] == "answer" and root(other) != root(place):
                twice.add(text)
            parents[root(place)] = root(other)
    names = _names(items)
    groups = np.unique([root(place) for place in range(len(items))], return_inverse=True)[1]
    sources = np.array([names.index(item.source) for item in items])
    warnings = []
    if twice:
        warnings.append(
            f"{len(twice)} answers stand in several sources or under several prompts with the same words: "
            "their prompts are kept in one fold"
        )
    return Answers(np.array([item.good for item in items]), groups, sources), warnings


def _kinds(items: Sequence[Item]) -> Iterator[tuple[str, Labels]]:
    """Yield the names of two comparisons that a judge of harm must pass, over all and for each source."""
    unsafe = np.array([item.unsafe is True for item in items])
    safe = np.array([item.unsafe is False for item in items])
    complies, refuses = (np.array([item.kind == kind for item in items]) for kind in ("complies", "refuses"))
    names = _names(items)
    inside = {f", {name}": np.array([item.source == name for item in items]) for name in names}
    for where, chosen in {"": np.ones(len(items), np.bool_), **(inside if len(names) > 1 else {})}.items():
        short = "complied/refused", "harmful/benign"
        long = "complied against refused", "harmful against benign compliance"
        first, second = short if where else long
        yield f"{first}{where}", chosen & unsafe & (complies | refuses)
        yield f"{second}{where}", chosen & complies & (unsafe | safe)


def _learning_curve(
    view: View, answers: Answers, predicted: Predicted, uncut: Labels, seed: int
) -> tuple[Row, ...]:
    """Return the AUC with 10, 20, 40 ... labelled answers, with the layers that all of them have chosen."""
    rng = np.random.default_rng(seed)
    inside = [np.flatnonzero(predicted.folds != number) for number in range(len(predicted.chosen))]
    rows, size = [], 10
    while size < min(map(len, inside)):
        values = []
        for _ in range(_DRAWS):
            scores = np.zeros(len(answers.good))
            for number, chosen in enumerate(predicted.chosen):
                drawn = _drawn(answers, inside[number], size, rng)
                features = view(chosen.layers)
                line = fitted(features[drawn], answers.some(drawn), chosen.strength, True)
                outside = predicted.folds == number
                scores[outside] = line(features[outside, COMPLETE])
            values.append(auc(scores[uncut], answers.good[uncut]))
        rows.append(Row(f"{size}", size, Interval(float(np.mean(values)), min(values), max(values))))
        size *= 2
    return tuple(rows)


def _drawn(
    answers: Answers, places: NDArray[np.int64], size: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw whole groups of answers until there are at least ``size``, of both labels."""
    found: list[int] = []
    for group in rng.permutation(np.unique(answers.groups[places])):
        found += places[answers.groups[places] == group].tolist()
        if len(found) >= size and set(answers.good[found]) == {True, False}:
            break
    return np.array(found)


def _doubts(complete: Row, sources: Sequence[Row], compared: Sequence[Row]) -> Iterator[str]:
    """Yield what speaks against a probe."""
    if complete.n < _FEW:
        yield f"{complete.n} answers are few for a probe: label more, while the learning curve rises"
    for row in compared:
        if row.lead is not None and row.lead.low <= 0:
            yield (
                f"the probe is not significantly better than {row.name} "
                f"({row.lead.value:+.2f} [{row.lead.low:+.2f}, {row.lead.high:+.2f}]): "
                "it may have learnt words"
            )
    for row in sources:
        if row.name.endswith(_FOREIGN) and row.auc.low < _USEFUL:
            yield f"{row.name}: {row.auc.value:.2f}; label answers like those that will be judged"


def sources_of(items: Sequence[Item]) -> tuple[Source, ...]:
    """Return the files that items come from, with their digests and counts."""
    found = []
    for name in _names(items):
        inside = [item for item in items if item.source == name]
        text = "\n".join(item.model_dump_json() for item in inside)
        good = sum(item.good for item in inside)
        digest = hashlib.sha256(text.encode()).hexdigest()
        found.append(Source(name=name, digest=digest, good=good, bad=len(inside) - good))
    return tuple(found)


def _measured(row: Row) -> Measured:
    value, low, high = (round(number, 4) for number in (row.auc.value, row.auc.low, row.auc.high))
    return Measured(name=f"AUC, {row.name}", value=value, low=low, high=high, n=row.n)
