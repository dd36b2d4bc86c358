"""Study: the answers to one task by all methods, with the figures of all judges."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from rain_llm.evals.judges import Judge
from rain_llm.evals.judges.built_in import BUILT_IN
from rain_llm.evals.judges.by_words import refuses
from rain_llm.evals.judging import Judged
from rain_llm.evals.methods import COMPARED_WITH_RAIN
from rain_llm.evals.rows import Row
from rain_llm.evals.statistics import BEST_OF, GUIDED_BEST_OF, Estimate, Values, difference, mean, share

PLAIN, SELF_CHECK = "plain", "self-check"

AIMS = {
    "sentiment": ("vader", "positive", "review"),
    "civility": ("hostile", "insult", "vader", "profanity"),
    "harmlessness": ("refused_harmful", "profane", "insult", "hostile"),
    "jailbreak": ("refused_harmful", "profane", "insult", "hostile"),
    "truth": ("truth", "truthful"),
    "groundedness": ("unsupported", "reference", "overlap", "admits"),
    "rag": ("statements", "near", "answered", "unsupported", "admits"),
    "over-refusal": ("needless_refusal", "profane", "insult"),
}
"""The judges of each task's goal, the main one first."""

HELPFULNESS = ("needless_refusal", "fluency", "relevance", "repetition", "length")
"""The judges of what guarding may cost, for every task."""


class Study:
    """The answers to one task.

    Attributes:
        task: its name.
        judges: by name.
        rows: the answers by method.
        answers: all rows.
        aims: names of the judges of the task's goal, the main one first.
        helps: names of the judges of what guarding may cost.
        methods: that are compared with plain, in the order of the report.
        rain: those of them that search: RAIN, and settings of the user's own.
        ablations: the methods that are compared with RAIN.
    """

    def __init__(self, task: str, rows: Sequence[Row], judged: Judged) -> None:
        self.task = task
        self.judges = judged.judges
        self.rows: dict[str, list[Row]] = defaultdict(list)
        self._values: dict[str, dict[str, dict[tuple[str, int], float]]] = defaultdict(
            lambda: defaultdict(dict)
        )
        for i, row in enumerate(rows):
            if row.task == task:
                self.rows[row.method].append(row)
                for name, column in judged.columns.items():
                    if not math.isnan(column[i]):
                        self._values[name][row.method][row.item, row.seed] = float(column[i])
        self._refused = {m: sum(map(refuses, found)) for m, found in self.rows.items()}
        own = [name for name in judged.judges if name not in BUILT_IN]
        there = {name for name in self._values if self._values[name]}
        if any(self._refused.values()):  # a judge of tone has its row, perhaps without a figure
            there |= {name for name, judge in judged.judges.items() if judge.tone}
        self.aims = [name for name in (*AIMS.get(task, ()), *own) if name in there]
        self.helps = [name for name in HELPFULNESS if name in there and name not in self.aims]
        self.ablations = [name for name in self.rows if name in COMPARED_WITH_RAIN]
        self.methods = sorted((name for name in self.rows if name not in COMPARED_WITH_RAIN), key=_order)
        others = (PLAIN, SELF_CHECK)
        self.rain = [name for name in self.methods if name not in others and not _is_best_of(name)]
        self.answers = [row for found in self.rows.values() for row in found]

    def of(self, name: str, method: str) -> Values:
        """Return a judge's figures of a method's answers."""
        return self._values[name][method]

    def level(self, name: str, method: str) -> Estimate:
        """Estimate a method's mean figure."""
        return (share if self.judges[name].share else mean)(self.of(name, method))

    def change(self, name: str, method: str, base: str) -> Estimate:
        """Estimate the paired difference of two methods."""
        return difference(self.of(name, method), self.of(name, base))

    def refused(self, method: str) -> str:
        """Return how many of a method's answers are refusals, as text; "" if none is."""
        count = self._refused.get(method, 0)
        return f"refused {count} of {len(self.rows[method])}" if count else ""

    def left_out(self, judge: Judge, method: str) -> str:
        """Return the refusals that a judge of tone skips, as text; "" for other judges."""
        return self.refused(method) if judge.tone else ""

    def counts(self, method: str, what: str) -> Values:
        """Return the values of one field of a method's rows."""
        return {
            (row.item, row.seed): float(value)
            for row in self.rows[method]
            if (value := getattr(row, what)) is not None
        }

    @property
    def guarded(self) -> list[str]:
        """The methods that a policy applies to: RAIN; without it, its variants, or all that judge answers."""
        judging = [m for m in self.methods if any(row.passed is not None for row in self.rows[m])]
        return self.rain or self.ablations or judging

    def by_settings(self, method: str) -> dict[str, list[Row]]:
        """Return a method's rows, by the hash of their settings."""
        found: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows[method]:
            found[row.settings_hash].append(row)
        return dict(found)


def average(values: Values) -> float:
    """Return the mean; NaN if there are no values."""
    return float(np.mean(list(values.values()))) if values else math.nan


def _is_best_of(method: str) -> re.Match[str] | None:
    return BEST_OF.fullmatch(method) or GUIDED_BEST_OF.fullmatch(method)


def _order(method: str) -> tuple[int, int]:
    """Sort plain, self-check, best-of-N by N, guided-best-of-N by N, all others."""
    best_of = _is_best_of(method)
    if best_of:
        return (2, int(best_of[1])) if BEST_OF.fullmatch(method) else (3, int(best_of[1]))
    return {PLAIN: 0, SELF_CHECK: 1}.get(method, 4), 0
