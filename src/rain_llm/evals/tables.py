"""The tables of a report: what came out, figures, costs, equal tokens, ablations."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from rain_llm.evals.formatting import Scale, listed, measured, percent, title_of, verdict_of
from rain_llm.evals.methods import VARIANTS
from rain_llm.evals.page import MARKS, Cell, Table
from rain_llm.evals.statistics import BEST_OF, GUIDED_BEST_OF, equal_tokens, mean, ratio
from rain_llm.evals.study import PLAIN, Study, average

_RAIN = "rain"  # what ablations are compared with


def findings_of(study: Study) -> list[list[Cell]]:
    """Return a line for each RAIN method: the main judge's figure, against plain and at equal tokens."""
    lines = []
    for method in study.rain if study.aims else ():
        name = study.aims[0]
        judge = study.judges[name]
        level, plain = study.level(name, method), study.level(name, PLAIN)
        scale = Scale(judge, [level])
        enough, fewer = equal_tokens(study.answers, method)
        rival = enough or fewer
        lines.append(
            [
                Cell(study.task, title_of(judge)),
                Cell(method),
                Cell(
                    scale.figure(level.value),
                    listed(scale.interval(level), study.left_out(judge, method)),
                ),
                Cell(scale.figure(plain.value), study.left_out(judge, PLAIN)),
                change_cell(study, name, method, PLAIN),
                Cell(f"{average(study.counts(method, 'model_tokens')):.0f}"),
                Cell(f"N = {rival}", "" if enough else "which costs less") if rival else Cell("–"),
                change_cell(study, name, method, f"best-of-{rival}") if rival else Cell("–"),
                _others(study, method),
            ]
        )
    return lines


def _others(study: Study, method: str) -> Cell:
    """Name the other figures that differ significantly from plain."""
    titles: dict[str, list[str]] = defaultdict(list)
    for name in (*study.aims[1:], *study.helps):
        change = study.change(name, method, PLAIN)
        titles[verdict_of(change, study.judges[name].better)].append(study.judges[name].title)
    lines = [f"{MARKS[verdict]} {', '.join(titles[verdict])}" for verdict in MARKS if titles[verdict]]
    return Cell(
        "", "; ".join(line for line in lines if not line.startswith(MARKS["no significant difference"]))
    )


def figures_table(study: Study, caption: str, names: Sequence[str]) -> Table:
    """Return the figures of some judges for each method, with their differences to plain."""
    columns = []
    for name in names:
        judge = study.judges[name]
        levels = {method: study.level(name, method) for method in study.methods}
        changes = {
            method: study.change(name, method, PLAIN) for method in study.methods if PLAIN in study.rows
        }
        scale = Scale(judge, list(levels.values()), list(changes.values()))
        cells = []
        for method, level in levels.items():
            refused = study.left_out(judge, method)
            if not level.answers:
                cells.append(Cell("–", refused))
            elif method == PLAIN or PLAIN not in study.rows:
                cells.append(Cell(scale.figure(level.value), listed(scale.interval(level), refused)))
            elif not changes[method].answers:
                cells.append(Cell(scale.figure(level.value), refused))
            else:
                change = changes[method]
                beside = listed(f"({scale.change(change)})", refused)
                cells.append(Cell(scale.figure(level.value), beside, verdict_of(change, judge.better)))
        columns.append(cells)
    head = ("method", *(title_of(study.judges[name]) for name in names))
    rows = [[Cell(method), *cells] for method, *cells in zip(study.methods, *columns, strict=True)]
    note = "plain with its interval; all others with their difference to plain, and the interval of that."
    note = note if PLAIN in study.rows else "In brackets: the interval."
    return Table(caption, head, rows, note, strong=study.rain)


def cost_table(study: Study) -> Table:
    """Return what an answer costs by each method: tokens, forwards, CPU time."""
    rows = []
    plain = study.counts(PLAIN, "model_tokens")
    cpu = average(study.counts(PLAIN, "cpu_s"))
    for method in study.methods:
        tokens = study.counts(method, "model_tokens")
        level = mean(tokens)
        cells = [Cell(method), measured(level, 0)]
        if plain:
            cells.append(measured(ratio(tokens, plain), 1))
        spent = average(study.counts(method, "cpu_s"))
        judged = average(study.counts(method, "evaluation_tokens")) / level.value
        cells += [
            Cell(f"{average(tokens) / max(1.0, average(study.counts(method, 'output_tokens'))):.1f}"),
            Cell(percent(judged)),
            Cell(f"{average(study.counts(method, 'forwards')):.0f}"),
            Cell(f"{spent / cpu:.1f}" if cpu and not math.isnan(spent / cpu) else "–"),
            Cell(
                percent(average(study.counts(method, "accepted")))
                if study.counts(method, "self_score")
                else "–"
            ),
            Cell(f"{len(tokens)}"),
        ]
        rows.append(cells)
    head = ["method", "tokens through the model", *(["× plain"] if plain else [])]
    head += ["per output token", "of these judging", "forwards", "CPU × plain", "accepted", "answers"]
    return Table("What it costs, for an answer", head, rows, strong=study.rain)


def equal_tokens_table(study: Study) -> Table | None:
    """Return the differences to best-of-N at equal tokens; None where there is nothing to compare."""
    rows = []
    for method in study.rain:
        rivals = [
            (f"{name}-{n}", n == enough)
            for name, ladder in (("best-of", BEST_OF), ("guided-best-of", GUIDED_BEST_OF))
            for enough, fewer in [equal_tokens(study.answers, method, ladder)]
            for n in (enough, fewer)
            if n is not None
        ]
        for rival, costs_enough in rivals:
            mine, its = (study.counts(name, "model_tokens") for name in (method, rival))
            both = mine.keys() & its.keys()
            tokens = [average({key: counts[key] for key in both}) for counts in (mine, its)]
            rows.append(
                [
                    Cell(method),
                    Cell(rival, "" if costs_enough else "(costs less)"),
                    Cell(f"{tokens[0]:.0f} : {tokens[1]:.0f}"),
                    *(change_cell(study, name, method, rival) for name in (*study.aims, *study.helps)),
                ]
            )
    if not rows:
        return None
    titles = [title_of(study.judges[name]) for name in (*study.aims, *study.helps)]
    return Table(
        "Against best-of-N at equal tokens",
        ("method", "against", "tokens", *titles),
        rows,
        "Differences of the method to best-of-N: the smallest N that costs at least as much as the "
        "method, and the next smaller one. Guided best-of-N samples after the guides, too: a difference to "
        "it comes from the search, not from the guides.",
    )


def ablations_table(study: Study) -> Table | None:
    """Return the differences of variants to RAIN; None where there is nothing to compare."""
    rows = []
    for method in study.ablations if _RAIN in study.rows else ():
        times = ratio(study.counts(method, "model_tokens"), study.counts(_RAIN, "model_tokens"))
        rows.append(
            [
                Cell(method, listed(f"({VARIANTS[method].summary})", study.refused(method))),
                Cell(_RAIN),
                measured(times, 2),
                *(change_cell(study, name, method, _RAIN) for name in (*study.aims, *study.helps)),
            ]
        )
    if not rows:
        return None
    titles = [title_of(study.judges[name]) for name in (*study.aims, *study.helps)]
    return Table(
        "Each part changed or switched off",
        ("what", "compared with", "its tokens ×", *titles),
        rows,
        "Differences to what it is compared with: where it is worse, the part helps.",
    )


def change_cell(study: Study, name: str, method: str, base: str) -> Cell:
    """Format the paired difference of two methods, with its interval."""
    change = study.change(name, method, base)
    if not change.answers:
        return Cell("–")
    judge = study.judges[name]
    scale = Scale(judge, [change], [change])
    text = scale.value(change.value, sign=True)
    beside = scale.interval(change, sign=True) if (change.low, change.high) != (0, 0) else ""
    return Cell(text, beside, verdict_of(change, judge.better))
