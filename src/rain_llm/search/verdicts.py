"""Cache of verdicts: each text is judged once, and each question is sent once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import cast

import numpy as np

from rain_llm.requests import Read, Sample, Score, Scores, Values
from rain_llm.search.outcome import Replies, Rounds
from rain_llm.search.prefetch import Prefetch
from rain_llm.search.state import SearchState
from rain_llm.tools import described, read
from rain_llm.types import TokenIds, Verdict

INCOMPLETE = Verdict(-1.0, False, False, ())
"""The verdict on an unfinished document or call, which is not sent to the judge."""


@dataclass(slots=True)
class Verdicts:
    """Judge texts, and keep the verdicts by text and the judge's replies by question."""

    state: SearchState
    prefetch: Prefetch
    of: dict[str, Verdict] = field(default_factory=dict)
    replies: dict[bytes, Scores | Values] = field(default_factory=dict)

    def judge(
        self, texts: Mapping[str, TokenIds], prefetch_with: Callable[[], Sequence[Sample]] = tuple
    ) -> Rounds:
        """Judge the texts that have no verdict yet, in one round of requests.

        If a round is needed, it also contains the requests that ``prefetch_with`` returns.

        Args:
            texts: each text with its tokens below the root.
            prefetch_with: returns what to request along with the questions.
        """
        new = {text: tokens for text, tokens in texts.items() if text not in self.of}
        if not new:
            return
        asking = self.state.evaluator.judge(self.state.subject, *self._shown(new), self._written(new))
        questions = next(asking)
        more = prefetch_with()
        # A repeated question may get a score that differs by a rounding error: no choice may depend on that.
        names = [_name(question) for question in cast("Sequence[Score | Read]", questions)]
        unknown = [name not in self.replies for name in names]
        asked = [question for question, asks in zip(questions, unknown, strict=True) if asks]
        replies: Replies = ()
        if asked or more:
            replies = yield [*asked, *more]
        self.prefetch.remember(more, replies[len(asked) :])
        answers = iter(cast("Sequence[Scores | Values]", replies[: len(asked)]))
        self.replies.update((name, next(answers)) for name, asks in zip(names, unknown, strict=True) if asks)
        try:
            asking.send([self.replies[name] for name in names])
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

    def _written(self, texts: Mapping[str, TokenIds]) -> list[TokenIds]:
        """Return the tokens of each text as the writer has them, for a judge that reads.

        Where the answer ends at ``max_new_tokens`` or a stop string, the state of its last token is never
        computed. That token is left out, so that a verdict costs no pass.
        """
        state = self.state
        if not state.evaluator.probes:  # finding a stop string may decode, which may ask a server
            return []
        written = []
        for tokens in texts.values():
            whole = state.answer.tokens + tokens
            cut = state.room(tokens) == 0 or state.answer.read(tokens)[1]
            written.append(whole[:-1] if cut and len(whole) > 1 else whole)
        return written

    def _shown(self, texts: Iterable[str]) -> tuple[Sequence[str], Sequence[str]]:
        """Split each text into what the judge sees: its prose, and a description of its tool calls."""
        if not self.state.form.call:
            return list(texts), ()
        parts = [read(text) for text in texts]
        return [prose for prose, _ in parts], [described(calls) for _, calls in parts]


def _name(question: Score | Read) -> bytes:
    """Hash a question into a short key."""
    if isinstance(question, Read):
        words = "".join(question.readings).encode()
        parts: tuple[Sequence[int], ...] = (question.prefix, question.tokens, words)
    else:
        parts = ((question.relative,), question.prefix, *question.options)
    numbers = np.array([number for part in parts for number in (len(part), *part)], np.int64)
    return blake2b(numbers.tobytes(), digest_size=16).digest()
