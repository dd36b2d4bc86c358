"""Cache of verdicts: each text is judged once, and each question is sent once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import cast

import numpy as np

from rain_llm.requests import Sample, Score, Scores
from rain_llm.search.outcome import Replies, Rounds
from rain_llm.search.prefetch import Prefetch
from rain_llm.search.state import SearchState
from rain_llm.tools import described, read
from rain_llm.types import Verdict

INCOMPLETE = Verdict(-1.0, False, False, ())
"""The verdict on an unfinished document or call, which is not sent to the judge."""


@dataclass(slots=True)
class Verdicts:
    """Judge texts, and keep the verdicts by text and the judge's scores by question."""

    state: SearchState
    prefetch: Prefetch
    of: dict[str, Verdict] = field(default_factory=dict)
    scores: dict[bytes, Scores] = field(default_factory=dict)

    def judge(self, texts: Sequence[str], prefetch_with: Callable[[], Sequence[Sample]] = tuple) -> Rounds:
        """Judge the texts that have no verdict yet, in one round of requests.

        If a round is needed, it also contains the requests that ``prefetch_with`` returns.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self.of]
        if not new:
            return
        asking = self.state.evaluator.judge(self.state.subject, *self._shown(new))
        questions = next(asking)
        more = prefetch_with()
        # A repeated question may get a score that differs by a rounding error: no choice may depend on that.
        names = [_name(question) for question in cast("Sequence[Score]", questions)]
        unknown = [name not in self.scores for name in names]
        asked = [question for question, asks in zip(questions, unknown, strict=True) if asks]
        replies: Replies = ()
        if asked or more:
            replies = yield [*asked, *more]
        self.prefetch.remember(more, replies[len(asked) :])
        answers = iter(cast("Sequence[Scores]", replies[: len(asked)]))
        self.scores.update((name, next(answers)) for name, asks in zip(names, unknown, strict=True) if asks)
        try:
            asking.send([self.scores[name] for name in names])
        except StopIteration as done:
            self.of.update(zip(new, done.value, strict=True))
        self.state.evaluations += len(new)

    def keep_below(self) -> None:
        """Drop the verdicts on texts that do not begin with the accepted answer."""
        accepted = self.state.text()
        self.of = {text: verdict for text, verdict in self.of.items() if text.startswith(accepted)}

    def last(self) -> Verdict | None:
        """Return the verdict on the answer so far, or else that of the last committed step."""
        return self.of.get(self.state.text(), self.state.committed_verdict)

    def _shown(self, texts: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
        """Split each text into what the judge sees: its prose, and a description of its tool calls."""
        if not self.state.form.call:
            return texts, ()
        parts = [read(text) for text in texts]
        return [prose for prose, _ in parts], [described(calls) for _, calls in parts]


def _name(question: Score) -> bytes:
    """Hash a question into a short key."""
    parts = ((question.relative,), question.prefix, *question.options)
    numbers = np.array([number for part in parts for number in (len(part), *part)], np.int64)
    return blake2b(numbers.tobytes(), digest_size=16).digest()
