"""The beginning of a report: a sentence for each task, and the policy with how many answers passed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rain_llm.evals.formatting import Scale, percent, verdict_of
from rain_llm.evals.page import Cell, Table
from rain_llm.evals.rows import Row
from rain_llm.evals.statistics import ratio
from rain_llm.evals.study import PLAIN, Study

_SAYS = {
    "vader": "VADER's mean is {}",
    "hostile": "{} of the answers are hostile",
    "refused_harmful": "{} of the harmful requests are refused",
    "truth": "the mean margin of truth is {}",
    "unsupported": "{} of the answers are not supported by their passage",
    "statements": "the share of unsupported statements is {}",
    "needless_refusal": "{} of the harmless requests are refused",
}
"""The main judge's figure as a clause; "{}" is replaced by the figure."""


def sentence(study: Study) -> str:
    """Return a task's main result as a sentence."""
    if not study.aims:
        return f"{study.task}: no judge has a figure for the answers."
    others = (m for m in study.rows if m != PLAIN)
    name, method = study.aims[0], next(iter([*study.guarded, *others, PLAIN]))
    judge, level, plain = study.judges[name], study.level(study.aims[0], method), study.level(name, PLAIN)
    scale = Scale(judge, [level, plain])
    clause = _SAYS.get(name, f"{judge.title} is {{}}")
    if level.answers:
        result = clause.format(scale.figure(level.value))
        result += f" ({refused})" if (refused := study.left_out(judge, method)) else ""
    else:
        result = f"there is nothing to measure ({study.refused(method) or 'no answers'})"
    if method == PLAIN or PLAIN not in study.rows:
        return f"{study.task}: with {method}, {result}."
    change = study.change(name, method, PLAIN)
    base = scale.figure(plain.value) if plain.answers else study.refused(PLAIN) or "no figure"
    verdict = verdict_of(change, judge.better)
    result += f", against {base} with plain" + (f" ({verdict})" if change.answers else "")
    times = ratio(study.counts(method, "model_tokens"), study.counts(PLAIN, "model_tokens"))
    return f"{study.task}: with {method}, {result}" + (
        f", at {times.value:.1f} times the tokens." if times.answers else "."
    )


def policy(studies: Sequence[Study], asked: Mapping[str, Any]) -> Table:
    """Return the criteria of each guarded method, and how many of its answers passed."""
    known = asked.get("settings", {})
    lines = []
    for study in studies:
        for method in study.guarded:
            for hashed, some in study.by_settings(method).items():
                settings = known.get(hashed, {})
                thresholds = {
                    c["name"]: f"{c['threshold']:g}"
                    for c in settings.get("evaluation", {}).get("criteria", ())
                }
                for name, share in _passing(some, thresholds).items():
                    lines.append(
                        [
                            Cell(study.task),
                            Cell(method),
                            Cell(name),
                            Cell(thresholds.get(name, "–")),
                            Cell(share),
                            Cell(str(settings.get("on_unsafe", "–"))),
                            Cell(hashed),
                        ]
                    )
    head = ("task", "method", "criterion", "passes above", "passed", "on_unsafe", "settings")
    note = (
        "Passed: answers whose final verdict, by the model's own judge, is above the criterion's threshold. "
    )
    note += "settings: their hash; run.json holds them all."
    return Table("The policy", head, lines, note)


def _passing(rows: Sequence[Row], criteria: Iterable[str]) -> dict[str, str]:
    """Return the share of the answers that passed each criterion, as text; "–" if it is not known."""
    judged = [row.passed for row in rows if row.passed is not None]
    names = dict.fromkeys([*criteria, *(name for passed in judged for name in passed)])
    counts = {name: sum(passed.get(name, False) for passed in judged) for name in names}
    if not judged:
        return dict.fromkeys(names, "–")
    return {
        name: f"{percent(count / len(judged))} ({count} of {len(judged)})" for name, count in counts.items()
    }
