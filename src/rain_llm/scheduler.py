"""Drives any number of searches and merges what they ask for into common batches.

One worker thread serves all callers: it starts with the first search and ends when there are none.
In each round it collects the requests of every running search, lets the models answer them
together, and sends each search its replies. A search's answer does not depend on its neighbours;
only its cost in time does. Plain calls, streams, batches and coroutines all come through here.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

from rain_llm.models.base import Embedder, LanguageModel
from rain_llm.search import Interrupted, Outcome, Search
from rain_llm.types import (
    Embed,
    Embeddings,
    Reply,
    Request,
    Sample,
    Samples,
    Score,
    Scores,
    Step,
    StopReason,
)


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a search.

    Attributes:
        outcome: what it came to; None if the search itself broke.
        cause: the exception that ended it, if one did.
        model_tokens, evaluation_tokens, forwards, embeddings: what it cost (see ``Usage``).
    """

    outcome: Outcome | None
    cause: BaseException | None
    model_tokens: int = 0
    evaluation_tokens: int = 0
    forwards: int = 0
    embeddings: int = 0


Event: TypeAlias = Step | Finished


class Ticket:
    """One submitted search: its place in line, its limits, what it has cost so far."""

    def __init__(
        self,
        search: Search,
        emit: Callable[[Event], None],
        deadline_s: float | None = None,
        max_model_tokens: int | None = None,
    ) -> None:
        self.search = search
        self.emit = emit
        self.deadline = None if deadline_s is None else time.monotonic() + deadline_s
        self.max_model_tokens = max_model_tokens
        self.cancelled = False
        self.finished = False
        self.requests: Sequence[Request] = ()
        self.cause: BaseException | None = None
        self.model_tokens = 0
        self.evaluation_tokens = 0
        self.forwards = 0
        self.embeddings = 0

    def cancel(self) -> None:
        """End the search before its next round. May be called from any thread, at any time."""
        self.cancelled = True

    def limit(self) -> StopReason | None:
        """Tell which limit has been met, if any."""
        if self.cancelled:
            return StopReason.CANCELLED
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return StopReason.DEADLINE
        if self.max_model_tokens is not None and self.model_tokens >= self.max_model_tokens:
            return StopReason.BUDGET
        return None

    def advance(self, replies: Sequence[Reply] | None) -> bool:
        """Send replies (None: begin); pass steps on until it asks for more. False: it has finished."""
        return self._drive(lambda: self.search.send(cast("Sequence[Reply]", replies)))

    def interrupt(self, reason: StopReason, cause: BaseException | None = None) -> bool:
        """End the search for ``reason``. False, as it has finished."""
        self.cause = cause
        return self._drive(lambda: self.search.throw(Interrupted(reason)))

    def _drive(self, resume: Callable[[], Sequence[Request] | Step]) -> bool:
        try:
            item = resume()
            while isinstance(item, Step):
                self.emit(item)
                item = next(self.search)
        except StopIteration as stop:
            self._finish(stop.value)
            return False
        except Exception as error:  # whatever broke a search must reach the caller who waits for it
            self.fail(error)
            return False
        self.requests = item
        return True

    def fail(self, error: BaseException) -> None:
        """Tell the caller that the search is lost."""
        self.cause = error
        self._finish(None)

    def _finish(self, outcome: Outcome | None) -> None:
        if self.finished:
            return
        self.finished = True
        self.search.close()
        self.emit(
            Finished(
                outcome,
                self.cause,
                self.model_tokens,
                self.evaluation_tokens,
                self.forwards,
                self.embeddings,
            )
        )

    def charge(self, replies: Sequence[Reply]) -> None:
        """Count what a round cost. Requests of one kind share their forward passes."""
        samples = [reply for reply in replies if isinstance(reply, Samples)]
        scores = [reply for reply in replies if isinstance(reply, Scores)]
        judged = sum(reply.model_tokens for reply in scores)
        self.evaluation_tokens += judged
        self.model_tokens += judged + sum(reply.model_tokens for reply in samples)
        self.forwards += max((reply.forwards for reply in samples), default=0)
        self.forwards += max((reply.forwards for reply in scores), default=0)
        self.embeddings += sum(len(reply.vectors) for reply in replies if isinstance(reply, Embeddings))


_schedulers: weakref.WeakSet[Scheduler] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Let no worker compute on while the interpreter goes away: torch would abort the process."""
    for scheduler in list(_schedulers):
        scheduler.stop()


class Scheduler:
    """Answers the requests of many searches together.

    Args:
        writer: answers Sample. judge: answers Score. embedder: answers Embed; None if nobody asks.
        max_running: searches that run at once; further ones wait their turn.
    """

    def __init__(
        self,
        writer: LanguageModel,
        judge: LanguageModel,
        embedder: Callable[[], Embedder],
        max_running: int = 64,
    ) -> None:
        self._writer = writer
        self._judge = judge
        self._embedder = embedder
        self._max_running = max_running
        self._lock = threading.Lock()
        self._waiting: deque[Ticket] = deque()
        self._thread: threading.Thread | None = None
        self._stopping = False
        _schedulers.add(self)

    def stop(self) -> None:
        """Cancel all searches, those to come too, and wait for the round in progress to end."""
        with self._lock:
            self._stopping = True
            thread = self._thread
        if thread is not None:
            thread.join()

    def submit(self, *tickets: Ticket) -> None:
        """Queue searches. Their events come from the worker thread through ``Ticket.emit``."""
        with self._lock:
            self._waiting.extend(tickets)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="rain-scheduler", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        running: list[Ticket] = []
        try:
            self._serve(running)
        except BaseException as error:  # nobody may wait for a worker that is gone
            with self._lock:
                self._thread = None
                running += self._waiting
                self._waiting.clear()
            for ticket in running:
                ticket.fail(error)
            raise

    def _serve(self, running: list[Ticket]) -> None:
        """Admit, limit and advance searches until there are none; ``running`` is kept up to date."""
        while True:
            with self._lock:
                for ticket in (*running, *self._waiting) if self._stopping else ():
                    ticket.cancel()
                new: list[Ticket] = []
                while self._waiting and len(running) + len(new) < self._max_running:
                    new.append(self._waiting.popleft())
                overdue = [ticket for ticket in self._waiting if ticket.limit()]
                for ticket in overdue:
                    self._waiting.remove(ticket)
                if not (running or new or overdue):
                    self._thread = None
                    return
            running += new + overdue  # first, so that none is lost if one of them panics
            for ticket in new:
                if not ticket.advance(None):
                    running.remove(ticket)
            # A search that has not begun cannot be interrupted: let it begin, then end it.
            for ticket in overdue:
                if ticket.advance(None):
                    ticket.interrupt(ticket.limit() or StopReason.CANCELLED)
                running.remove(ticket)
            running[:] = [t for t in running if (reason := t.limit()) is None or t.interrupt(reason)]
            running[:] = self._round(running)

    def _round(self, running: list[Ticket]) -> list[Ticket]:
        """Answer what all running searches ask; return those that ask on."""
        if not running:
            return []
        try:
            answered = list(zip(running, self._answer([ticket.requests for ticket in running]), strict=True))
        except Exception as error:
            if len(running) > 1:  # somebody's requests broke the batch: each on its own
                return [ticket for one in running for ticket in self._round([one])]
            running[0].interrupt(StopReason.ERROR, error)
            return []
        going = []
        for ticket, replies in answered:
            ticket.charge(replies)
            if ticket.advance(replies):
                going.append(ticket)
        return going

    def _answer(self, rounds: Sequence[Sequence[Request]]) -> list[list[Reply]]:
        """Answer rounds of requests, the requests of one kind together, in order."""
        flat = [request for requests in rounds for request in requests]
        drawn = [request for request in flat if isinstance(request, Sample)]
        weighed = [request for request in flat if isinstance(request, Score)]
        samples = iter(self._writer.sample(drawn) if drawn else ())
        scores = iter(self._judge.score(weighed) if weighed else ())
        texts = [text for request in flat if isinstance(request, Embed) for text in request.texts]
        vectors = iter(self._embedder().embed(texts) if texts else ())

        def reply(request: Request) -> Reply:
            if isinstance(request, Sample):
                return next(samples)
            if isinstance(request, Score):
                return next(scores)
            return Embeddings(tuple(next(vectors) for _ in request.texts))

        return [[reply(request) for request in requests] for requests in rounds]
