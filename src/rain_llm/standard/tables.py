"""The tables of the page that ``evals.tables`` does not have: overview, costs, agreement, models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rain_llm.evals.formatting import measured, percent
from rain_llm.evals.page import Cell, Table
from rain_llm.evals.statistics import Estimate, Values, ratio
from rain_llm.evals.study import PLAIN, Study
from rain_llm.evals.tables import change_cell, figures_table
from rain_llm.standard.columns import HARM, HELPS, NEEDLESS, OPENED, SAME, study_of
from rain_llm.standard.judging import CHATS, Judged, side
from rain_llm.standard.reading import key_of

_COSTS = {"model_tokens": "tokens", "cpu_s": "CPU"}


def overview(study: Study) -> Table:
    """Return what a method brings and what it costs, in one row for each method."""
    names = [name for name in (HARM, OPENED, NEEDLESS, SAME, *HELPS) if name in study.judges]
    table = figures_table(study, "In short", names)
    rows = []
    for method, cells in zip(study.methods, table.rows, strict=True):
        for place, name in enumerate(names, 1):
            level = study.level(name, method)
            if name in (HARM, OPENED, NEEDLESS) and method != PLAIN and level.items > 1:
                interval = f"[{100 * level.low:.0f}, {100 * level.high:.0f}]"
                shown = replace(cells[place], text=f"{cells[place].text} {interval}")
                cells = [*cells[:place], shown, *cells[place + 1 :]]
        for what in _COSTS:
            late, plain = (_p95(study.counts(name, what)) for name in (method, PLAIN))
            cells = [
                *cells,
                measured(times(study, method, what), 2),
                _number(late / plain if plain else math.nan, 1),
            ]
        rows.append([*cells, _number(_p95(study.counts(method, "first_token_forwards")), 0)])
    head = [*table.head, *(f"{p95}{name} × plain" for name in _COSTS.values() for p95 in ("", "p95 of "))]
    note = f"Relevance, length in tokens, and fluency: answers to {CHATS} chats that are not refused."
    return replace(table, head=[*head, "passes to the first text, p95"], rows=rows, note=note)


def rivals(study: Study) -> Table:
    """Return the differences of RAIN to each other method, and its tokens against theirs."""
    names = [name for name in (HARM, OPENED, NEEDLESS) if name in study.judges]
    rows = []
    for method in study.rain:
        for rival in (name for name in study.methods if name != method):
            tokens = ratio(study.counts(method, "model_tokens"), study.counts(rival, "model_tokens"))
            changes = [change_cell(study, name, method, rival) for name in names]
            rows.append([Cell(method), Cell(rival), *changes, measured(tokens, 2)])
    note = "Differences in percentage points: below zero, RAIN has fewer."
    return Table("RAIN against the others", ("method", "against", *names, "its tokens ×"), rows, note)


def costs(study: Study) -> list[Table]:
    """Return the tokens and the CPU time of each method against plain's, by suite."""
    suites = list(dict.fromkeys(row.item.partition("/")[0] for row in study.answers))
    return [
        Table(
            f"{title} × plain",
            ("method", *suites),
            [
                [Cell(method), *(measured(times(study, method, what, suite), 2) for suite in suites)]
                for method in study.methods
            ],
        )
        for what, title in _COSTS.items()
    ]


def times(study: Study, method: str, what: str, suite: str = "") -> Estimate:
    """Estimate the ratio of a cost to plain's; of one suite if it is named."""
    own, plain = (
        {
            key: value
            for key, value in study.counts(name, what).items()
            if key[0].startswith(suite and f"{suite}/")
        }
        for name in (method, PLAIN)
    )
    return ratio(own, plain if all(plain.values()) else {})


def _p95(values: Values) -> float:
    return float(np.quantile(list(values.values()), 0.95)) if values else math.nan


def _number(value: float, digits: int) -> Cell:
    return Cell("–" if math.isnan(value) else f"{value:.{digits}f}")


def as_percent(value: float) -> str:
    """Format a share; NaN is a dash."""
    return "–" if math.isnan(value) else percent(value)


def agreement(judged: Judged) -> Table:
    """Return how many answers each judge finds harmful, and how often two agree."""
    there = {key_of(row) for row in judged.rows}
    votes = {
        name: {key: side(value) for key, value in known.items() if key in there}
        for name, known in judged.votes.items()
    }
    rows = []
    for name, own in votes.items():
        cells = [
            Cell(name),
            Cell(f"{len(own)}"),
            Cell(as_percent(float(np.mean([*own.values()]))) if own else "–"),
        ]
        for other, its in votes.items():
            same = [own[key] == its[key] for key in own.keys() & its.keys()]
            cells.append(Cell(percent(float(np.mean(same))) if same and name != other else "–"))
        rows.append(cells)
    head = ("judge", "answers", "harmful", *(f"agrees with {name}" for name in votes))
    return Table("How they judge answers to harmful prompts", head, rows, "Equal answers count once.")


def growth(models: Sequence[tuple[str, Judged]]) -> Table:
    """Return a row for each model and method: plain's figures, the method's, and its tokens."""
    rows = []
    for name, judged in models:
        study, *_ = study_of(judged)
        for method in (name for name in study.methods if name != PLAIN):
            cells = [
                Cell(" → ".join(as_percent(study.level(figure, one).value) for one in (PLAIN, method)))
                if figure in study.judges
                else Cell("–")
                for figure in (HARM, OPENED, NEEDLESS)
            ]
            tokens = measured(times(study, method, "model_tokens"), 2)
            rows.append([Cell(name), Cell(method), *cells, tokens])
    head = ("model", "method", HARM, OPENED, NEEDLESS, "tokens × plain")
    return Table("Plain → method", head, rows)
