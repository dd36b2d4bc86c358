"""Notices a judge that cannot tell texts apart: then RAIN rewinds for nothing, or by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rain_llm.types import CriterionScore, Verdict

LEAST_TEXTS = 8
"""So many different texts must have been judged before anything is said."""

TIES = 0.9
"""Hard votes: at least this share of them are ties."""

FLAT = 1e-3
"""Soft scores: all log-odds lie within this range, nats. No model promises more precision."""


@dataclass(slots=True)
class _Heard:
    """What was heard on one criterion."""

    verdicts: int = 0
    ties: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    content: bool = False  # some text was on target

    def hear(self, score: CriterionScore) -> None:
        self.verdicts += 1
        self.ties += score.probability == 0.5
        self.low, self.high = min(self.low, score.log_odds), max(self.high, score.log_odds)
        self.content = self.content or score.on_target


class Blindness:
    """Listens to verdicts, and tells which criteria steer blind.

    A judge that is content with everything alike does not steer: it is not what is meant here.

    Args:
        hard: verdicts are hard votes.
    """

    def __init__(self, hard: bool) -> None:
        self._hard = hard
        self._texts: set[int] = set()  # hashes of the first few
        self._heard: dict[str, _Heard] = {}

    def hear(self, texts: Sequence[object], verdicts: Sequence[Verdict]) -> None:
        """Take in the verdict on each text."""
        if len(self._texts) < LEAST_TEXTS:
            self._texts.update(map(hash, texts))
        for verdict in verdicts:
            for score in verdict.criteria:
                self._heard.setdefault(score.name, _Heard()).hear(score)

    def criteria(self) -> dict[str, str]:
        """Return the names of the criteria that steer blind, with what gives them away."""
        if len(self._texts) < LEAST_TEXTS:
            return {}
        found = {}
        for name, heard in self._heard.items():
            if self._hard and heard.ties >= TIES * heard.verdicts:
                found[name] = f"{heard.ties} of {heard.verdicts} hard votes are ties"
            elif not self._hard and not heard.content and heard.high - heard.low < FLAT:
                found[name] = f"all {heard.verdicts} texts have the same log-odds"
        return found
