"""Detect and roll back a fixed buffer, then reflect: a method to compare RAIN with.

As in CARE (arXiv 2509.06982), the answer is written into a buffer of 16 tokens. When it is full, a judge
reads the answer so far. If it does not pass, the buffer is dropped, the model writes one hidden sentence
about what was wrong, and goes on after it. After three times it goes on without a check. The judge is the
same as RAIN's, and all that is read and written counts.
"""

from __future__ import annotations

import queue
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from rain_llm.engine import Rain
from rain_llm.engine.encode import encode
from rain_llm.engine.stream import Answer as Running
from rain_llm.engine.stream import results_of
from rain_llm.judging.evaluator import SelfEvaluator
from rain_llm.judging.questions import JudgeInput
from rain_llm.models.base import LanguageModel
from rain_llm.requests import Request, Sample, Samples
from rain_llm.search.answer import Answer
from rain_llm.search.outcome import Interrupted, Outcome, Replies, Search
from rain_llm.search.seeds import seed_of
from rain_llm.settings import RainSettings
from rain_llm.task import subject_of
from rain_llm.ticket import Event, Ticket
from rain_llm.types import RainResult, Step, StopReason, Task, TokenIds, Trace, Verdict

BUFFER = 16
"""Tokens that are checked, and dropped, at once."""

ROLLBACKS = 3
"""After so many the answer goes on without a check."""

_REFLECT = "\n\n[Stop. In one sentence, what is wrong with this answer? "
_REFLECTION_TOKENS = 32
_NOTE = "\n\n[{}]\n\n"


def answers(rain: Rain, tasks: Sequence[Task], settings: RainSettings) -> list[RainResult]:
    """Answer all tasks concurrently.

    Raises:
        RainError: as ``Rain.generate_batch``.
    """
    runtime, seed = rain.runtime, settings.generation.seed or 0
    evaluator = runtime.evaluator(settings.evaluation)
    running = []
    for task in tasks:
        tokens, subject = encode(runtime.writer, task, settings), subject_of(task, settings)
        if evaluator.probes and runtime.judge is runtime.writer:
            subject = replace(subject, prompt=tokens)
        search = care_search(tokens, subject, runtime.writer, evaluator, settings, seed)
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        ticket = Ticket(search, events.put, settings.search.deadline_s, settings.search.max_model_tokens)
        trace = Trace(seed, settings.hash, runtime.writer.name)
        running.append(Running(ticket, events, runtime.scheduler, trace, len(tokens), None, False, ""))
    return results_of(running)


def care_search(
    prompt: TokenIds,
    subject: JudgeInput,
    writer: LanguageModel,
    evaluator: SelfEvaluator,
    settings: RainSettings,
    seed: int,
) -> Search:
    """Write an answer buffer by buffer; an answer that always passes is that of ``plain_search``."""
    drawing = settings.generation
    answer = Answer(writer.decode, prompt, drawing.stop, encode=writer.encode)
    rng = np.random.default_rng(seed_of(seed, *prompt))
    seen: TokenIds = ()  # the answer with its hidden notes, as the writer reads it
    rollbacks = evaluations = 0
    verdict: Verdict | None = None
    reason: StopReason | None = None

    def draw(
        tokens: TokenIds, length: int, ends: tuple[str, ...]
    ) -> Generator[Sequence[Request], Replies, Samples]:
        request = Sample(
            prompt + tokens,
            1,
            length,
            int(rng.integers(1 << 62)),
            drawing.temperature,
            drawing.top_k,
            drawing.top_p,
            ends=ends,
        )
        return cast("Samples", (yield [request])[0])

    try:
        while reason is None:
            room = drawing.max_new_tokens - len(answer.tokens)
            (piece,) = (yield from draw(seen, min(BUFFER, room), drawing.stop)).continuations
            if rollbacks < ROLLBACKS and piece.tokens:
                text, written = answer.read(piece.tokens)[0], answer.tokens + piece.tokens
                (verdict,) = yield from evaluator.judge(subject, [text], written=[written])
                evaluations += 1
                if not verdict.passed:
                    rollbacks += 1
                    asked = seen + piece.tokens + writer.encode(_REFLECT)
                    (note,) = (yield from draw(asked, _REFLECTION_TOKENS, (".", "]", "\n"))).continuations
                    seen += writer.encode(_NOTE.format(writer.decode(note.tokens).strip(" \n]")))
                    continue
            seen += piece.tokens
            text = answer.extend(piece.tokens)
            if answer.read()[1]:
                reason = StopReason.STOP
            elif piece.ended:
                reason = StopReason.EOS
            elif len(answer.tokens) >= drawing.max_new_tokens:
                reason = StopReason.LENGTH
            yield Step(text + (answer.finish() if reason else ""), piece.tokens, rollbacks < ROLLBACKS)
    except Interrupted as interruption:
        reason = interruption.reason
    tail = answer.finish()
    return Outcome(
        answer.shown,
        tail,
        answer.tokens,
        verdict,
        bool(verdict and verdict.passed) and rollbacks < ROLLBACKS,
        reason,
        iterations=rollbacks,
        evaluations=evaluations,
    )
