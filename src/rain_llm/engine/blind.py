"""Warn about a judge that gives every text the same verdict, or that was never measured."""

from __future__ import annotations

import shlex
import warnings

from rain_llm.criteria import BUILT_IN
from rain_llm.errors import BlindJudgeWarning, UnmeasuredJudgeWarning
from rain_llm.judging.evaluator import SelfEvaluator
from rain_llm.models.base import LanguageModel
from rain_llm.settings import RainSettings


class BlindnessWarning:
    """Warns once for each criterion, with the command that finds a better question or fits a probe.

    Args:
        settings: the settings that select the judge.
        judge: a ready judge that replaces it.
    """

    def __init__(self, settings: RainSettings, judge: LanguageModel | None) -> None:
        own = settings.evaluation.judge or settings.model
        self._name = judge.name if judge else own.name
        self._needs_file = bool(own.base_url)
        self._chosen = judge is None  # by the settings
        self._warned: set[str] = set()  # names of criteria

    def __call__(self, evaluator: SelfEvaluator) -> None:
        """Warn about criteria that nobody has measured, and those whose verdicts do not distinguish texts."""
        if self._chosen and evaluator.unmeasured:
            self._chosen = False
            names = " and ".join(f"'{name}'" for name in evaluator.unmeasured)
            warnings.warn(
                f"this model has no probe for {names}, so it is asked in words, and nobody has measured "
                f"whether it can judge so: small models prefer harmful answers to refusals. Measure it"
                f"{'' if self._needs_file else ', and fit a probe'}: "
                f"{self._command(evaluator.unmeasured[0], fit=not self._needs_file)}",
                UnmeasuredJudgeWarning,
                stacklevel=2,
            )
        for name, reason in evaluator.blindness.criteria().items():
            if name in self._warned:
                continue
            self._warned.add(name)
            warnings.warn(
                f"RAIN steers blind: {reason} on '{name}'. Find out how to ask this model, and whether "
                f"it can judge at all: {self._command(name)}",
                BlindJudgeWarning,
                stacklevel=2,
            )

    def _command(self, name: str, fit: bool = False) -> str:
        """Return the command that examines a criterion; with ``fit``, it also writes a probe."""
        command = ["rain", "doctor", *([self._name] if self._name else []), "--criterion", name]
        if name not in BUILT_IN or self._needs_file:
            command += ["--settings", "FILE.yaml"]
        if name not in BUILT_IN:
            command += ["--data", "FILE.jsonl"]
        return shlex.join([*command, *(["--fit", "."] if fit else [])])
