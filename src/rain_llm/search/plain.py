"""Generate without a search, or only judge a given text.

Plain generation serves as the baseline in comparisons and answers a framework's internal calls.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from rain_llm.judging.evaluator import SelfEvaluator
from rain_llm.judging.questions import JudgeInput
from rain_llm.judging.splitting import Span
from rain_llm.models.base import LanguageModel
from rain_llm.requests import Continuation, Request, Sample, Samples
from rain_llm.search.answer import Answer
from rain_llm.search.outcome import Interrupted, Outcome, Replies, Search
from rain_llm.search.output import (
    OutputSpec,
    calls_in,
    opening_of,
    opening_tokens,
    write_calls,
    write_document,
)
from rain_llm.search.seeds import PIECE, seed_of
from rain_llm.settings import RainSettings
from rain_llm.tools import described
from rain_llm.types import Step, StopReason, TokenIds, Verdict


@dataclass(frozen=True, slots=True)
class Given:
    """A given text that is only judged, not generated.

    Attributes:
        text: the text to judge.
        calls: its tool calls, described in words.
        spans: positions of the sentences to judge one by one; None: judge the text as a whole.
    """

    text: str
    calls: str = ""
    spans: tuple[Span, ...] | None = None

    @property
    def longest(self) -> str:
        """Return the longest text that is judged at once."""
        if self.spans is None:
            return f"{self.text} {self.calls}"
        return max((self.text[start:end] for start, end in self.spans), key=lambda part: len(part.encode()))


def plain_search(
    prompt: TokenIds,
    subject: JudgeInput,
    writer: LanguageModel,
    evaluator: SelfEvaluator | None,
    settings: RainSettings,
    seed: int,
    form: OutputSpec,
) -> Search:
    """Sample an answer without a search; judge it at the end if there is an ``evaluator``."""
    drawing = settings.generation
    stop = () if form.document else drawing.stop
    answer = Answer(writer.decode, prompt, stop, form.opening, writer.encode)
    origin = seed_of(seed, *prompt)
    rng = np.random.default_rng(origin)
    opening = opening_tokens(writer) if form.forced else ()
    verdict: Verdict | None = None
    reason: StopReason | None = None
    evaluations = 0
    cached: int | None = None

    def draw(tokens: TokenIds, length: int, schema: str = "", ends: tuple[str, ...] | None = None) -> Sample:
        usual = (*stop, *filter(None, [form.opening]))
        return Sample(
            prompt + answer.tokens + tokens,
            1,
            length,
            int(rng.integers(1 << 62)),  # see plain_seed
            drawing.temperature,
            drawing.top_k,
            drawing.top_p,
            ends=() if schema else usual if ends is None else ends,
            schema=schema,
        )

    def ask(request: Sample) -> Generator[Sequence[Request], Replies, Continuation]:
        nonlocal cached
        (reply,) = cast("Sequence[Samples]", (yield [request]))
        cached = reply.cached_tokens if cached is None else cached
        return reply.continuations[0]

    try:
        while reason is None:
            room = drawing.max_new_tokens - len(answer.tokens)
            if form.document or opening:
                if form.document:
                    drafting = write_document(form, draw, room)
                else:
                    drafting = write_calls(form, writer, draw, room, opening)
                try:
                    request = next(drafting)
                    while True:
                        request = drafting.send((yield from ask(request)))
                except StopIteration as done:
                    tokens, finished, _ = done.value
                if not finished:
                    reason = StopReason.INCOMPLETE
                    break
                reason = StopReason.EOS if form.document else StopReason.TOOL_CALLS
                text = answer.extend(tokens)
            else:
                piece = yield from ask(draw((), min(PIECE, room)))
                tokens = piece.tokens
                if form.call:
                    tokens, opening = opening_of(writer, answer.read, tokens)
                text = answer.extend(tokens)
                if opening:
                    pass
                elif answer.read()[1]:
                    reason = StopReason.STOP
                elif piece.ended:
                    reason = StopReason.EOS
                elif len(answer.tokens) >= drawing.max_new_tokens:
                    reason = StopReason.LENGTH
            rest, calls = (answer.finish(), calls_in(answer, origin, form)) if reason else ("", ())
            yield Step(text + rest, tokens, accepted=False, tool_calls=calls)
        calls = calls_in(answer, origin, form)
        if evaluator is not None and reason is not StopReason.INCOMPLETE:
            evaluations = 1
            written = () if calls else answer.tokens
            (verdict,) = yield from evaluator.judge(subject, [answer.shown], [described(calls)], [written])
    except Interrupted as interruption:
        reason = interruption.reason
    tail = answer.finish()
    return Outcome(
        answer.shown,
        tail,
        answer.tokens,
        verdict,
        False,
        reason,
        evaluations=evaluations,
        cached_tokens=cached or 0,
        tool_calls=calls_in(answer, origin, form),
    )


def only_judge(evaluator: SelfEvaluator, subject: JudgeInput, text: str, calls: str) -> Search:
    """Judge a given text and the description of its tool calls."""
    try:
        (verdict,) = yield from evaluator.judge(subject, [text], [calls])
    except Interrupted as interruption:
        return Outcome(text, text, (), None, False, interruption.reason)
    return Outcome(text, text, (), verdict, verdict.passed, StopReason.EOS, evaluations=1)
