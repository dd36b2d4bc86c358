"""Plain generation: the same model unguarded, for comparison and for a framework's inner calls."""

from __future__ import annotations

from typing import cast

import numpy as np

from rain_llm.answer import Answer
from rain_llm.evaluation import SelfEvaluator, Subject
from rain_llm.models.base import LanguageModel
from rain_llm.search import Interrupted, Outcome, Search, seed_of
from rain_llm.settings import RainSettings
from rain_llm.types import Sample, Samples, Step, StopReason, TokenIds, Verdict

_PIECE = 16  # tokens between two looks at stop strings, deadline and listeners


def plain_search(
    prompt: TokenIds,
    subject: Subject,
    writer: LanguageModel,
    evaluator: SelfEvaluator | None,
    settings: RainSettings,
    seed: int,
) -> Search:
    """Sample an answer without a guard; judge it at the end if there is an ``evaluator``."""
    drawing = settings.generation
    answer = Answer(writer.decode, prompt, drawing.stop)
    rng = np.random.default_rng(seed_of(seed, *prompt))
    verdict: Verdict | None = None
    reason: StopReason | None = None
    evaluations = 0
    try:
        while reason is None:
            room = drawing.max_new_tokens - len(answer.tokens)
            request = Sample(
                prompt + answer.tokens,
                1,
                min(_PIECE, room),
                int(rng.integers(1 << 62)),
                drawing.temperature,
                drawing.top_k,
                drawing.top_p,
                ends=drawing.stop,
            )
            (reply,) = cast("list[Samples]", (yield [request]))
            (piece,) = reply.continuations
            text = answer.extend(piece.tokens)
            if answer.read()[1]:
                reason = StopReason.STOP
            elif piece.ended:
                reason = StopReason.EOS
            elif len(answer.tokens) >= drawing.max_new_tokens:
                reason = StopReason.LENGTH
            yield Step(text + (answer.finish() if reason else ""), piece.tokens, accepted=False)
        if evaluator is not None:
            evaluations = 1
            (verdict,) = yield from evaluator.judge(subject, [answer.shown])
    except Interrupted as interruption:
        reason = interruption.reason
    tail = answer.finish()
    return Outcome(answer.shown, tail, answer.tokens, verdict, False, reason, 0, evaluations)
