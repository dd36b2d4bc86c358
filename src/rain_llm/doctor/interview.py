"""Ask a judge about many items in many styles, with as few requests as possible."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np

from rain_llm.doctor.items import Item
from rain_llm.doctor.measures import Labels
from rain_llm.doctor.styles import Style
from rain_llm.errors import PromptError
from rain_llm.judging.evaluator import CONTENT_FREE, Answered, Asking, Evidence, SelfEvaluator, log_odds
from rain_llm.judging.questions import JudgeInput
from rain_llm.models.base import LanguageModel
from rain_llm.requests import Score, Scores
from rain_llm.settings import EvaluationSettings
from rain_llm.types import TokenIds

_AT_ONCE = 8  # items per round, in all styles


class Interview:
    """A judge with a cache of its replies, so that no question is asked twice.

    Questions with the same prefix are merged into one, and common prefixes of a round are computed once.

    Attributes:
        model_tokens: tokens that the judge processed.
    """

    def __init__(self, judge: LanguageModel) -> None:
        self._judge = judge
        self.model_tokens = 0
        self._known: dict[tuple[TokenIds, TokenIds], float] = {}

    def check(self, asked: Sequence[Style], items: Sequence[Item]) -> None:
        """Check that all items can be judged, without running the model.

        Raises:
            PromptError: an item exceeds the judge's context length, or has no context and needs one.
        """
        for style in asked:
            evaluator = SelfEvaluator(style.settings, self._judge)
            for item in items:
                try:
                    evaluator.check(item.subject, len(self._judge.encode(item.said)))
                except PromptError as error:
                    raise PromptError(f"item {item.id}: {error}") from error

    def evidence(
        self, asked: Sequence[Style], items: Sequence[Item], tell: Callable[[int], None]
    ) -> dict[str, list[Evidence]]:
        """Return the evidence on every item by style; ``tell`` is called with the progress."""
        evaluators = [SelfEvaluator(style.settings, self._judge) for style in asked]
        found: dict[str, list[Evidence]] = {style.name: [] for style in asked}
        for some in _portions(items):
            answers = iter(
                self._answers([e.evidence(item.subject, [item.said]) for e in evaluators for item in some])
            )
            for style in asked:
                found[style.name] += [next(answers)[0][0] for _ in some]
            tell(len(asked) * len(some))
        return found

    def on_nothing(self, asked: Sequence[Style], dialogue: bool) -> dict[str, float]:
        """Return the mean log-odds of texts without content by style."""
        nothing = JudgeInput("", "", dialogue)
        evaluators = [SelfEvaluator(style.settings, self._judge) for style in asked]
        answers = self._answers([e.evidence(nothing, CONTENT_FREE) for e in evaluators])
        return {
            style.name: float(np.mean([log_odds(evidence) for (evidence,) in answer]))
            for style, answer in zip(asked, answers, strict=True)
        }

    def passed(self, settings: EvaluationSettings, items: Sequence[Item]) -> Labels:
        """Return which items pass with these settings."""
        evaluator = SelfEvaluator(settings, self._judge)
        verdicts = [
            verdict
            for some in _portions(items)
            for (verdict,) in self._answers([evaluator.judge(item.subject, [item.said]) for item in some])
        ]
        return np.array([verdict.passed for verdict in verdicts])

    def _answers(self, askings: Sequence[Asking[Answered]]) -> list[Answered]:
        """Answer the rounds of all ``askings`` in one batch, and return their results."""
        rounds = [cast("Sequence[Score]", next(asking)) for asking in askings]
        unknown: dict[TokenIds, dict[TokenIds, None]] = {}
        for question in (question for questions in rounds for question in questions):
            for option in question.options:
                if (question.prefix, option) not in self._known:
                    unknown.setdefault(question.prefix, {})[option] = None
        asked = [Score(prefix, tuple(options)) for prefix, options in unknown.items()]
        for question, reply in zip(asked, self._judge.score(asked) if asked else (), strict=True):
            self.model_tokens += reply.model_tokens
            for option, logprob in zip(question.options, reply.logprobs, strict=True):
                self._known[question.prefix, option] = logprob
        return [self._ended(asking, questions) for asking, questions in zip(askings, rounds, strict=True)]

    def _ended(self, asking: Asking[Answered], questions: Sequence[Score]) -> Answered:
        try:
            asking.send(
                [Scores(tuple(self._known[q.prefix, option] for option in q.options)) for q in questions]
            )
        except StopIteration as done:
            return cast("Answered", done.value)
        raise AssertionError("a judgement has only one round of questions")


def _portions(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    return (items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE))
