"""Detect a judge whose verdicts do not distinguish texts, so that RAIN rewinds for nothing or at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rain_llm.types import CriterionScore, Verdict

LEAST_TEXTS = 8
"""Minimum number of different texts that must be judged before a criterion is reported."""

TIES = 0.9
"""A criterion with hard votes is reported if at least this share of them are ties."""

FLAT = 1e-3
"""A criterion with soft scores is reported if all log-odds lie within this range (nats).

Smaller differences are within the numerical precision of a model.
"""


@dataclass(slots=True)
class _Statistics:
    """Verdict statistics of one criterion."""

    verdicts: int = 0
    ties: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    on_target: bool = False  # at least one text was on target

    def add(self, score: CriterionScore) -> None:
        self.verdicts += 1
        self.ties += score.probability == 0.5
        self.low, self.high = min(self.low, score.log_odds), max(self.high, score.log_odds)
        self.on_target = self.on_target or score.on_target


class Blindness:
    """Collect verdicts and report the criteria whose verdicts do not distinguish texts.

    A criterion on whose target some text was is not reported for equal soft scores: a judge that passes
    everything causes no rewinds.

    Args:
        hard: whether verdicts are hard votes.
    """

    def __init__(self, hard: bool) -> None:
        self._hard = hard
        self._texts: set[int] = set()  # hashes of the first few
        self._statistics: dict[str, _Statistics] = {}

    def hear(self, texts: Sequence[object], verdicts: Sequence[Verdict]) -> None:
        """Add the verdict on each text to the statistics."""
        if len(self._texts) < LEAST_TEXTS:
            self._texts.update(map(hash, texts))
        for verdict in verdicts:
            for score in verdict.criteria:
                self._statistics.setdefault(score.name, _Statistics()).add(score)

    def criteria(self) -> dict[str, str]:
        """Return the names of the criteria that do not distinguish texts, each with the reason."""
        if len(self._texts) < LEAST_TEXTS:
            return {}
        found = {}
        for name, seen in self._statistics.items():
            if self._hard and seen.ties >= TIES * seen.verdicts:
                found[name] = f"{seen.ties} of {seen.verdicts} hard votes are ties"
            elif not self._hard and not seen.on_target and seen.high - seen.low < FLAT:
                found[name] = f"all {seen.verdicts} texts have the same log-odds"
        return found
