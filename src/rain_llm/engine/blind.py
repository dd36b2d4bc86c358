"""Warn about a judge that gives every text the same verdict."""

from __future__ import annotations

import shlex
import warnings

from rain_llm.criteria import BUILT_IN
from rain_llm.errors import BlindJudgeWarning
from rain_llm.judging.evaluator import SelfEvaluator
from rain_llm.models.base import LanguageModel
from rain_llm.settings import RainSettings


class BlindnessWarning:
    """Warns once for each criterion, with the command that finds a better question.

    Args:
        settings: the settings that select the judge.
        judge: a ready judge that replaces it.
    """

    def __init__(self, settings: RainSettings, judge: LanguageModel | None) -> None:
        own = settings.evaluation.judge or settings.model
        self._name = judge.name if judge else own.name
        self._needs_file = bool(own.base_url)
        self._warned: set[str] = set()  # names of criteria

    def __call__(self, evaluator: SelfEvaluator) -> None:
        """Warn about the criteria whose verdicts so far do not distinguish texts."""
        for name, reason in evaluator.blindness.criteria().items():
            if name in self._warned:
                continue
            self._warned.add(name)
            command = ["rain", "doctor", *([self._name] if self._name else []), "--criterion", name]
            if name not in BUILT_IN or self._needs_file:
                command += ["--settings", "FILE.yaml"]
            if name not in BUILT_IN:
                command += ["--data", "FILE.jsonl"]
            warnings.warn(
                f"RAIN steers blind: {reason} on '{name}'. Find out how to ask this model, and whether "
                f"it can judge at all: {shlex.join(command)}",
                BlindJudgeWarning,
                stacklevel=2,
            )
