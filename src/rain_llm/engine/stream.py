"""Convert the events of a search into the user's steps, and then into a result or an error."""

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
    """One running answer: collects its steps and creates its result."""

    def __init__(
        self,
        ticket: Ticket,
        events: queue.SimpleQueue[Event],
        scheduler: Scheduler,
        trace: Trace,
        prompt_tokens: int,
        warn: Callable[[], None] | None,
        needs_structure: bool,
        remedy: str,
    ) -> None:
        self.ticket = ticket
        self._events = events
        self._scheduler = scheduler
        self._trace = trace
        self._steps: list[Step] = []
        self._prompt_tokens = prompt_tokens
        self._warn = warn
        self._needs_structure = needs_structure  # the answer must be a document or begin with a call
        self._remedy = remedy  # what lets the search try more often

    def submit(self, *others: Answer) -> None:
        """Start the search, together with those of other answers."""
        self._scheduler.submit(self.ticket, *(other.ticket for other in others))

    def listen(self, submit: bool = True) -> Generator[Step, None, None]:
        """Yield the steps. Closing the generator cancels the search; the first read starts it."""
        if submit:
            self.submit()
        try:
            while True:
                try:
                    event = self._events.get(timeout=_POLL_S)
                except queue.Empty:  # wake up regularly, so that Ctrl-C works
                    if self.ticket.forked:
                        raise ModelError(
                            "the process was forked during this answer, which continues only in the parent "
                            "process: repeat the call in this process"
                        ) from None
                    continue
                step = self.receive(event)
                yield step
                if step.result is not None:
                    return
        finally:
            self.ticket.cancel()

    def receive(self, event: Event) -> Step:
        """Convert an event to the step that the user receives; raise the error if the search failed."""
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
                f"nothing that the model wrote passed {_failed(result)}: {self._remedy}, "
                "lower the threshold, or choose on_unsafe='refuse' or 'best'",
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
            outcome.accepted and outcome.verdict is not None,  # no verdict: it ended before the first one
            Usage(
                self._prompt_tokens,
                len(outcome.tokens),
                event.model_tokens,
                event.evaluation_tokens,
                event.forwards,
                outcome.evaluations,
                outcome.iterations,
                event.embeddings,
                cached_tokens=min(outcome.cached_tokens, self._prompt_tokens),
                first_forwards=event.first_forwards,
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
        call: the user's call, with its deadline.
        prepare: creates the answer; runs in a thread and receives the function to call with each event.
    """
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event] = asyncio.Queue()

    def emit(event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody listens any more
            loop.call_soon_threadsafe(events.put_nowait, event)

    try:
        job = await asyncio.to_thread(prepare, emit)
    finally:
        call.end()  # if this coroutine was cancelled, the thread ends too
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
    """Return the verdict of a result.

    Raises:
        SearchError: a limit was reached before the verdict.
    """
    if result.verdict is None:
        raise SearchError(f"no verdict: the limit '{result.stop_reason}' was reached first: raise it", result)
    return result.verdict


def sentences_of(result: RainResult) -> tuple[SentenceVerdict, ...]:
    """Return the verdicts on the sentences of a result.

    Raises:
        SearchError: a limit was reached before the verdicts.
    """
    if not result.sentences:  # every judged text has at least one
        raise SearchError(
            f"no verdicts: the limit '{result.stop_reason}' was reached first: raise it", result
        )
    return result.sentences


def result_of(steps: Sequence[Step]) -> RainResult:
    """Return the result in the last of an answer's steps."""
    result = steps[-1].result
    assert result is not None  # a stream that ends without an error ends with the result
    return result


def results_of(answers: Sequence[Answer]) -> list[RainResult]:
    """Start all searches at once; return their results, or raise the first error once all have ended."""
    if answers:
        answers[0].submit(*answers[1:])
    results = [_attempt(answer.listen(submit=False)) for answer in answers]
    for result in results:
        if isinstance(result, Exception):
            raise result
    return cast("list[RainResult]", results)


def last(stream: Generator[Step, None, None]) -> RainResult:
    """Read a stream to its end and return the result."""
    return result_of(list(stream))


def _attempt(stream: Generator[Step, None, None]) -> RainResult | Exception:
    """Read a stream to its end and return the result, or the error if there was one."""
    try:
        return last(stream)
    except Exception as error:  # results_of raises it once all have ended
        return error


def _failed(result: RainResult) -> str:
    if result.verdict is None:
        return "the criteria"
    failed = [c for c in result.verdict.criteria if not c.passed]
    return ", ".join(f"{c.name} (probability {c.probability:.2f}, threshold {c.threshold:g})" for c in failed)
