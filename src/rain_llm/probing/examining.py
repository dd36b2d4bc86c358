"""Examine what a probe is worth: by length, source and kind of answer, and beside classifiers of text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rain_llm.doctor.items import Item
from rain_llm.doctor.measures import Floats, Interval, Labels, auc, auc_interval, fit
from rain_llm.judging.probe import Measured, Source
from rain_llm.models.base import Readable
from rain_llm.probing import baselines
from rain_llm.probing.findings import Probed, ProbeFindings, Row
from rain_llm.probing.fitting import Answers, Layers, Predicted, View, choose, final, fitted, predict
from rain_llm.probing.paired import auc_difference
from rain_llm.probing.states import COMPLETE, CUTS, candidates, read_states

_FEW = 150
_USEFUL = 0.6
_DRAWS = 3  # of each size of the learning curve


def examine_probe(
    model: Readable,
    criterion: str,
    items: Sequence[Item],
    seed: int,
    tell: Callable[[int], None] = lambda read: None,
) -> Probed:
    """Fit a probe for a criterion, and examine it.

    Args:
        model: the model whose hidden states are read.
        criterion: name of the criterion.
        items: labelled answers.
        seed: seed of folds and intervals.
        tell: called with 1 after each answer that was read.

    Raises:
        SettingsError: all labels are alike, or there are too few answers.
        PromptError: an answer has no tokens, or exceeds the model's context.
        ModelError: the states are not finite.
    """
    answers, warnings = answers_of(items)
    answers.check()
    states = read_states(model, items, tell)
    choices, depth = candidates(model.depth), model.depth
    predicted = predict(states.of, choices, answers, seed)
    scores = predicted.scores
    uncut = np.array([not item.cut for item in items])

    def row(name: str, values: Floats, kept: Labels) -> Row:
        chosen = kept & uncut
        interval = auc_interval(values[chosen], answers.good[chosen], answers.groups[chosen], seed)
        return Row(name, int(chosen.sum()), interval)

    def both(kept: Labels) -> bool:
        return set(answers.good[kept & uncut]) == {True, False}

    everything = np.ones(len(items), np.bool_)
    complete = row("complete answers", scores[:, COMPLETE], everything)
    cuts = [row(f"first {cut} tokens", scores[:, place], everything) for place, cut in enumerate(CUTS)]
    names = list(dict.fromkeys(item.source for item in items))
    sources = []
    if len(names) > 1:
        inside = [answers.sources == number for number in range(len(names))]
        sources = [
            row(name, scores[:, COMPLETE], kept)
            for name, kept in zip(names, inside, strict=True)
            if both(kept)
        ]
        for name, kept in zip(names, inside, strict=True):
            if both(kept) and set(answers.good[~kept]) == {True, False}:
                foreign = _predicted_by_others(states.of, choices, answers, kept, seed)
                sources.append(row(f"{name}, not fitted to", foreign, kept))
    kinds = [row(name, scores[:, COMPLETE], kept) for name, kept in _kinds(items) if both(kept)]

    compared = []
    others, missing = baselines.predictions(items, answers, seed)
    for name, other in others.items():
        found = row(name, other.scores[:, COMPLETE], everything)
        lead = auc_difference(
            scores[uncut, COMPLETE],
            other.scores[uncut, COMPLETE],
            answers.good[uncut],
            answers.groups[uncut],
            seed,
        )
        compared.append(Row(name, found.n, found.auc, lead))

    said = [
        *warnings,
        *_doubts(complete, sources, compared),
        *(f"{name}: {why}" for name, why in missing.items()),
    ]
    probe = final(criterion, model.fingerprint, states, choices, answers, predicted, seed)
    log_odds = scores
    if probe is not None:
        calibration = fit(scores[:, COMPLETE], answers.good)
        assert calibration is not None  # otherwise there is no probe
        log_odds = (scores - calibration.center) / calibration.scale
        figures = [complete, *cuts, *sources, *kinds, *compared]
        probe = probe.model_copy(
            update={"data": _data(items, names), "held_out": tuple(_measured(figure) for figure in figures)}
        )
    findings = ProbeFindings(
        probe.layers if probe else (),
        depth,
        (complete, *cuts),
        tuple(sources),
        tuple(kinds),
        tuple(compared),
        _learning_curve(states.of, answers, predicted, uncut, seed),
        tuple(said),
    )
    return Probed(probe, log_odds, findings, states.model_tokens)


def answers_of(items: Sequence[Item]) -> tuple[Answers, list[str]]:
    """Return labels, groups and sources of items, and warnings about duplicates.

    Items are in one group if they share a pair, a user's turn, or the text of the answer.
    """
    parents = list(range(len(items)))

    def root(place: int) -> int:
        while parents[place] != place:
            place = parents[place] = parents[parents[place]]
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
    names = list(dict.fromkeys(item.source for item in items))
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
    """Yield the names of the two comparisons that a judge of harm must pass, with the answers compared."""
    unsafe = np.array([item.unsafe is True for item in items])
    safe = np.array([item.unsafe is False for item in items])
    complies, refuses = (np.array([item.kind == kind for item in items]) for kind in ("complies", "refuses"))
    yield "unsafe requests: complied against refused", unsafe & (complies | refuses)
    yield "complied: harmful against benign request", complies & (unsafe | safe)


def _predicted_by_others(
    view: View, choices: Sequence[Layers], answers: Answers, kept: Labels, seed: int
) -> Floats:
    """Predict all answers by a classifier fitted to the others, without any group of the kept ones."""
    rest = np.flatnonzero(~np.isin(answers.groups, answers.groups[kept]))
    there = answers.some(rest)
    if min(there.good.sum(), (~there.good).sum()) < 2:
        rest = np.flatnonzero(~kept)
        there = answers.some(rest)
    chosen = choose(lambda layers: view(layers)[rest], choices, there, seed)
    features = view(chosen.layers)
    return fitted(features[rest], there, chosen.strength, True)(features[:, COMPLETE])


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
        if row.name.endswith(", not fitted to") and row.auc.low < _USEFUL:
            yield f"{row.name}: {row.auc.value:.2f}; label answers like those that will be judged"


def _data(items: Sequence[Item], names: Sequence[str]) -> tuple[Source, ...]:
    found = []
    for name in names:
        inside = [item for item in items if item.source == name]
        text = "\n".join(item.model_dump_json() for item in inside)
        good = sum(item.good for item in inside)
        digest = hashlib.sha256(text.encode()).hexdigest()
        found.append(Source(name=name, digest=digest, good=good, bad=len(inside) - good))
    return tuple(found)


def _measured(row: Row) -> Measured:
    value, low, high = (round(number, 4) for number in (row.auc.value, row.auc.low, row.auc.high))
    return Measured(name=f"AUC, {row.name}", value=value, low=low, high=high, n=row.n)
