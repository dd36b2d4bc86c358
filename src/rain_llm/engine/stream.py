"""One answer as it comes: its steps, then its result or its error."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from dataclasses import replace
from typing import cast

from rain_llm.clock import Call
from rain_llm.errors import IncompleteError, ModelError, SearchError, UnsafeAnswerError
from rain_llm.scheduler import Scheduler
from rain_llm.ticket import Event, Finished, Ticket
from rain_llm.types import RainResult, SentenceVerdict, Step, StopReason, Trace, Usage, Verdict

_POLL_S = 0.5
_LIMITS = (StopReason.DEADLINE, StopReason.BUDGET)


class Answer:
    """One answer on its way: collects steps, makes the result."""

    def __init__(
        self,
        ticket: Ticket,
        events: queue.SimpleQueue[Event],
        scheduler: Scheduler,
        trace: Trace,
        prompt_tokens: int,
        warn: Callable[[], None] | None,
        needs_structure: bool,
    ) -> None:
        self.ticket = ticket
        self._events = events
        self._scheduler = scheduler
        self._trace = trace
        self._steps: list[Step] = []
        self._prompt_tokens = prompt_tokens
        self._warn = warn
        self._needs_structure = needs_structure  # a document or a forced call, never free text

    def submit(self, *others: Answer) -> None:
        """Let the search begin, together with others."""
        self._scheduler.submit(self.ticket, *(other.ticket for other in others))

    def listen(self, submit: bool = True) -> Generator[Step, None, None]:
        """Yield the steps; closed early, it cancels the search. One that is never read never begins."""
        if submit:
            self.submit()
        try:
            while True:
                try:
                    event = self._events.get(timeout=_POLL_S)
                except queue.Empty:  # to let Ctrl-C through; a search that breaks reports it
                    if self.ticket.forked:
                        raise ModelError(
                            "the process was forked while this answer was written: it goes on in the parent "
                            "process only; ask again in this one"
                        ) from None
                    continue
                step = self.receive(event)
                yield step
                if step.result is not None:
                    return
        finally:
            self.ticket.cancel()

    def receive(self, event: Event) -> Step:
        """Turn an event into the step that the user sees."""
        if isinstance(event, Step):
            self._steps.append(event)
            return event
        if event.outcome is None:
            assert event.cause is not None  # a search without an outcome has failed
            raise event.cause
        if self._warn is not None:
            self._warn()
        result = self._result(event)
        if result.stop_reason is StopReason.UNSAFE:
            raise UnsafeAnswerError(
                f"nothing that the model wrote passed {_failed(result)}: "
                "widen search.iterations, lower the threshold, or choose on_unsafe='refuse' or 'best'",
                result,
            )
        if result.stop_reason is StopReason.INCOMPLETE:
            raise IncompleteError(
                "no draft of the JSON document or tool call was finished, and fitted its schema, within "
                "generation.max_new_tokens: raise it, or ask for less (a smaller schema, maxLength for "
                "strings, maxItems for lists; no uniqueItems, not, if, which whole drafts are checked by)",
                result,
            )
        if self._needs_structure and result.stop_reason in _LIMITS and not (result.text or result.tool_calls):
            raise IncompleteError(
                f"the limit '{result.stop_reason}' came before the JSON document or tool call was there: "
                "raise search.deadline_s or search.max_model_tokens",
                result,
            )
        if event.cause is not None and result.stop_reason is StopReason.ERROR:
            raise SearchError(
                f"the model failed after {len(result.text)} accepted characters: {event.cause}",
                result,
            ) from event.cause
        return Step(event.outcome.tail, accepted=result.accepted, verdict=result.verdict, result=result)

    def _result(self, event: Finished) -> RainResult:
        outcome = event.outcome
        assert outcome is not None
        return RainResult(
            outcome.text,
            outcome.verdict,
            outcome.stop_reason,
            outcome.accepted and outcome.verdict is not None,  # cut off before its first verdict, nothing was
            Usage(
                self._prompt_tokens,
                len(outcome.tokens),
                event.model_tokens,
                event.evaluation_tokens,
                event.forwards,
                outcome.evaluations,
                outcome.iterations,
                event.embeddings,
                min(outcome.cached_tokens, self._prompt_tokens),
            ),
            replace(self._trace, steps=tuple(self._steps)),
            self._trace.settings_hash,
            outcome.tool_calls,
            outcome.sentences,
        )


async def steps_of(
    call: Call, prepare: Callable[[Callable[[Event], None]], Answer]
) -> AsyncGenerator[Step, None]:
    """Yield the steps of an answer without blocking the event loop.

    Args:
        call: its clock.
        prepare: makes the answer, in a thread of its own; is given what to call for each event.
    """
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event] = asyncio.Queue()

    def emit(event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has gone, and its listener with it
            loop.call_soon_threadsafe(events.put_nowait, event)

    try:
        job = await asyncio.to_thread(prepare, emit)
    finally:
        call.end()  # cancelled while a model was connected to, say: the thread ends too
    job.submit()
    try:
        while True:
            step = job.receive(await events.get())
            yield step
            if step.result is not None:
                return
    finally:
        job.ticket.cancel()


def verdict_of(result: RainResult) -> Verdict:
    """Return the verdict.

    Raises:
        SearchError: a limit came first.
    """
    if result.verdict is None:
        raise SearchError(f"there was no verdict: the limit '{result.stop_reason}' came first", result)
    return result.verdict


def sentences_of(result: RainResult) -> tuple[SentenceVerdict, ...]:
    """Return the verdicts on its sentences.

    Raises:
        SearchError: a limit came first.
    """
    if not result.sentences:  # every text that is judged has some
        raise SearchError(f"there were no verdicts: the limit '{result.stop_reason}' came first", result)
    return result.sentences


def result_of(steps: Sequence[Step]) -> RainResult:
    """Return what all the steps of an answer came to."""
    result = steps[-1].result
    assert result is not None  # a stream that ends without an error ends with the result
    return result


def results_of(answers: Sequence[Answer]) -> list[RainResult]:
    """Let all searches begin at once; return their results, or raise the first one's error."""
    if answers:
        answers[0].submit(*answers[1:])
    results = [_attempt(answer.listen(submit=False)) for answer in answers]
    for result in results:
        if isinstance(result, Exception):
            raise result
    return cast("list[RainResult]", results)


def last(stream: Generator[Step, None, None]) -> RainResult:
    """Read a stream to its end; return the result."""
    return result_of(list(stream))


def _attempt(stream: Generator[Step, None, None]) -> RainResult | Exception:
    """Read a stream to its end; return the result, or the error."""
    try:
        return last(stream)
    except Exception as error:
        return error


def _failed(result: RainResult) -> str:
    if result.verdict is None:
        return "the criteria"
    failed = [c for c in result.verdict.criteria if not c.passed]
    return ", ".join(f"{c.name} (probability {c.probability:.2f}, threshold {c.threshold:g})" for c in failed)
