"""A search in the scheduler: its requests, its limits and its cost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

from rain_llm.clock import Call, working_for
from rain_llm.models.base import Job, PendingRequest, RemoteModel
from rain_llm.requests import Embeddings, Read, Reply, Request, Score
from rain_llm.search.outcome import Interrupted, Outcome, Search
from rain_llm.types import Step, StopReason


@dataclass(slots=True, eq=False)
class AtOnceJob:
    """A job that is done in one step; its cost is known with its reply."""

    request: Request
    reply: Reply | None = None
    model_tokens: int = 0
    forwards: int = 0


@dataclass(slots=True, eq=False)
class Asked:
    """A request of the current round, with its model, its job, and the cost charged so far."""

    request: Request
    model: object
    job: Job | AtOnceJob
    model_tokens: int = 0
    forwards: int = 0


@dataclass(slots=True, eq=False)
class Sent(Asked):
    """A request that was sent to a remote model."""

    model: RemoteModel
    job: PendingRequest


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a search.

    Attributes:
        outcome: its result; None if the search itself failed.
        cause: the exception that ended it, if one did.
        model_tokens: see ``Usage``.
        evaluation_tokens: see ``Usage``.
        forwards: see ``Usage``.
        embeddings: see ``Usage``.
        first_forwards: see ``Usage``.
    """

    outcome: Outcome | None
    cause: BaseException | None
    model_tokens: int = 0
    evaluation_tokens: int = 0
    forwards: int = 0
    embeddings: int = 0
    first_forwards: int = 0


Event: TypeAlias = Step | Finished


class Ticket:
    """One submitted search, with its limits and its cost so far.

    Args:
        search: the coroutine.
        emit: called with each event, from the worker thread.
        deadline_s: time limit in seconds; None: no limit.
        max_model_tokens: maximum tokens through the models; None: no limit.
        began: start of the time limit by ``time.monotonic``; None: now.
    """

    def __init__(
        self,
        search: Search,
        emit: Callable[[Event], None],
        deadline_s: float | None = None,
        max_model_tokens: int | None = None,
        began: float | None = None,
    ) -> None:
        self.search = search
        self.emit = emit
        self.call = Call(deadline_s, began)
        self.deadline = self.call.deadline
        self.max_model_tokens = max_model_tokens
        self.wake: Callable[[], None] = lambda: None  # wakes the scheduler
        self.cancelled = False
        self.finished = False
        self.forked = False  # the process was forked after the submission: only the parent continues
        self.tasks: Sequence[Asked] = ()
        self.step: Future[Sequence[Request] | None] | None = None  # of :meth:`advance` in another thread
        self.cause: BaseException | None = None
        self.model_tokens = 0
        self.evaluation_tokens = 0
        self.forwards = 0
        self.embeddings = 0
        self.first_forwards = 0

    def cancel(self) -> None:
        """End the search before the next forward pass. Thread-safe; may be called at any time."""
        self.cancelled = True
        self.call.end()
        self.wake()

    def limit(self) -> StopReason | None:
        """Return the limit that was reached; None if there is none."""
        if self.cancelled:
            return StopReason.CANCELLED
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return StopReason.DEADLINE
        if self.max_model_tokens is not None and self.model_tokens >= self.max_model_tokens:
            return StopReason.BUDGET
        return None

    def goes_on(self) -> bool:
        """Return whether the search continues; if it has reached a limit, end it first."""
        if not self.finished and (reason := self.limit()):
            self.interrupt(reason)
        return not self.finished

    def waiting_for(self, model: object) -> list[Asked]:
        """Return the requests that this model has not answered yet."""
        return [task for task in self.tasks if task.model is model and task.job.reply is None]

    @property
    def sent(self) -> list[Sent]:
        """Return the requests of this round that were sent to remote models."""
        return [task for task in self.tasks if isinstance(task, Sent)]

    def heed(self) -> None:
        """End a search that waits for a remote model if it has reached a limit or the request failed."""
        waiting = [task for task in self.sent if task.job.reply is None]
        if waiting and self.goes_on():
            errors = [error for task in waiting if (error := task.job.error)]
            if errors:
                self.interrupt(StopReason.ERROR, errors[0])

    def replies(self) -> list[Reply] | None:
        """Return the replies of the round; None while one is missing, or if the search has finished."""
        replies = [task.job.reply for task in self.tasks]
        return None if self.finished or None in replies else cast("list[Reply]", replies)

    def advance(self, replies: Sequence[Reply] | None) -> Sequence[Request] | None:
        """Send replies to the search (None: start it); return its next requests, or None if it finished."""
        self.charge(self.sent)
        return self._drive(lambda: self.search.send(cast("Sequence[Reply]", replies)))

    def interrupt(self, reason: StopReason, cause: BaseException | None = None) -> None:
        """End the search for ``reason`` and drop its jobs."""
        self.cause = cause
        if self._drive(lambda: self.search.throw(Interrupted(reason))) is not None:
            self.fail(RuntimeError("a search sent requests after it was interrupted"))

    def _drive(self, resume: Callable[[], Sequence[Request] | Step]) -> Sequence[Request] | None:
        try:
            with working_for(self.call):
                item = resume()
                while isinstance(item, Step):
                    if item.text and not self.first_forwards:
                        self.first_forwards = self.forwards
                    self.emit(item)
                    item = next(self.search)
                return item
        except StopIteration as stop:
            self._finish(stop.value)
        except Exception as error:  # any error of a search must reach its caller
            self.fail(error)
        return None

    def fail(self, error: BaseException) -> None:
        """End the search with an error, which the caller receives."""
        self.cause = error
        self._finish(None)

    def _finish(self, outcome: Outcome | None) -> None:
        if self.finished:
            return
        self.finished = True
        self.charge([task for task in self.sent if task.job.reply is not None])
        for task in self.sent:
            task.model.recall([task.job])
        self.tasks = ()
        if outcome is not None and outcome.cause is not None:
            if reason := self.limit():  # the limit, not the error, ended the wait
                outcome = replace(outcome, stop_reason=reason, cause=None)
            self.cause = self.cause or outcome.cause
        with contextlib.suppress(Exception):  # an error while closing changes nothing
            self.search.close()
        self.emit(
            Finished(
                outcome,
                self.cause,
                self.model_tokens,
                self.evaluation_tokens,
                self.forwards,
                self.embeddings,
                self.first_forwards,
            )
        )

    def charge(self, tasks: Sequence[Asked]) -> None:
        """Add the cost of a pass. Requests of one search share its forward passes: the maximum counts."""
        self.forwards += max((task.job.forwards - task.forwards for task in tasks), default=0)
        for task in tasks:
            job, tokens = task.job, task.job.model_tokens - task.model_tokens
            task.model_tokens, task.forwards = job.model_tokens, job.forwards
            self.model_tokens += tokens
            self.evaluation_tokens += tokens if isinstance(task.request, Score | Read) else 0
            self.embeddings += len(job.reply.vectors) if isinstance(job.reply, Embeddings) else 0
