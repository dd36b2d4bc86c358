"""Verdicts: each text is judged once, and each question is asked once, however many texts share it."""

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
"""On half a document or call: there is nothing to judge."""


@dataclass(slots=True)
class Verdicts:
    """The verdicts so far, by text of the whole answer, and the scores behind them, by question."""

    state: SearchState
    prefetch: Prefetch
    of: dict[str, Verdict] = field(default_factory=dict)
    scores: dict[bytes, Scores] = field(default_factory=dict)

    def judge(self, texts: Sequence[str], prefetch_with: Callable[[], Sequence[Sample]] = tuple) -> Rounds:
        """Judge the texts that have no verdict yet, in one round of requests.

        Where one is needed, the requests that ``prefetch_with`` returns go with it.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self.of]
        if not new:
            return
        asking = self.state.evaluator.judge(self.state.subject, *self._shown(new))
        questions = next(asking)
        more = prefetch_with()
        # Asked again, a question would be answered a rounding error apart: no choice may depend on that.
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
        """Forget the texts that do not begin with the accepted answer."""
        said = self.state.text()
        self.of = {text: verdict for text, verdict in self.of.items() if text.startswith(said)}

    def last(self) -> Verdict | None:
        """Return the verdict on the answer so far; without one, the last commitment's."""
        return self.of.get(self.state.text(), self.state.committed_verdict)

    def _shown(self, texts: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
        """Return what the judge is shown of each text: what it says, and its calls in words."""
        if not self.state.form.call:
            return texts, ()
        read_apart = [read(text) for text in texts]
        return [said for said, _ in read_apart], [described(calls) for _, calls in read_apart]


def _name(question: Score) -> bytes:
    """Return a short name that no other question has."""
    parts = (question.prefix, *question.options)
    numbers = np.array([number for part in parts for number in (len(part), *part)], np.int64)
    return blake2b(numbers.tobytes(), digest_size=16).digest()
