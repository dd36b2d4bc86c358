"""One search on its way through the scheduler: its requests, its limits, what it has cost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

from rain_llm.clock import Call, working_for
from rain_llm.models.base import Job, PendingRequest, RemoteModel
from rain_llm.requests import Embeddings, Reply, Request, Score
from rain_llm.search.outcome import Interrupted, Outcome, Search
from rain_llm.types import Step, StopReason


@dataclass(slots=True, eq=False)
class AtOnceJob:
    """A job that one step answers; its cost is known when the reply is."""

    request: Request
    reply: Reply | None = None
    model_tokens: int = 0
    forwards: int = 0


@dataclass(slots=True, eq=False)
class Asked:
    """One request of a search's round: who answers it, its job there, and how much of it is charged."""

    request: Request
    model: object
    job: Job | AtOnceJob
    model_tokens: int = 0
    forwards: int = 0


@dataclass(slots=True, eq=False)
class Sent(Asked):
    """One that is under way to a model elsewhere."""

    model: RemoteModel
    job: PendingRequest


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
        began: float | None = None,
    ) -> None:
        self.search = search
        self.emit = emit
        self.call = Call(deadline_s, began)
        self.deadline = self.call.deadline
        self.max_model_tokens = max_model_tokens
        self.wake: Callable[[], None] = lambda: None  # of whoever drives the search
        self.cancelled = False
        self.finished = False
        self.forked = False  # the process was forked since it was submitted: it goes on in the parent alone
        self.tasks: Sequence[Asked] = ()
        self.cause: BaseException | None = None
        self.model_tokens = 0
        self.evaluation_tokens = 0
        self.forwards = 0
        self.embeddings = 0

    def cancel(self) -> None:
        """End the search before the next forward pass. May be called from any thread, at any time."""
        self.cancelled = True
        self.call.end()
        self.wake()

    def limit(self) -> StopReason | None:
        """Tell which limit has been met, if any."""
        if self.cancelled:
            return StopReason.CANCELLED
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return StopReason.DEADLINE
        if self.max_model_tokens is not None and self.model_tokens >= self.max_model_tokens:
            return StopReason.BUDGET
        return None

    def goes_on(self) -> bool:
        """Tell whether the search is still to be served; one that has met a limit is ended here."""
        if not self.finished and (reason := self.limit()):
            self.interrupt(reason)
        return not self.finished

    def waiting_for(self, model: object) -> list[Asked]:
        """Return what this model has still to answer."""
        return [task for task in self.tasks if task.model is model and task.job.reply is None]

    @property
    def sent(self) -> list[Sent]:
        """What models elsewhere were asked in this round."""
        return [task for task in self.tasks if isinstance(task, Sent)]

    def heed(self) -> None:
        """End a search that waits for a model elsewhere if it has met a limit, or if none will answer."""
        waiting = [task for task in self.sent if task.job.reply is None]
        if waiting and self.goes_on():
            errors = [error for task in waiting if (error := task.job.error)]
            if errors:
                self.interrupt(StopReason.ERROR, errors[0])

    def replies(self) -> list[Reply] | None:
        """Return the replies to the round; None while one is missing, or if the search has finished."""
        replies = [task.job.reply for task in self.tasks]
        return None if self.finished or None in replies else cast("list[Reply]", replies)

    def advance(self, replies: Sequence[Reply] | None) -> Sequence[Request] | None:
        """Send replies (None: begin); return what it asks next, or None as it has finished."""
        self.charge(self.sent)
        return self._drive(lambda: self.search.send(cast("Sequence[Reply]", replies)))

    def interrupt(self, reason: StopReason, cause: BaseException | None = None) -> None:
        """End the search for ``reason``; its jobs are given up."""
        self.cause = cause
        if self._drive(lambda: self.search.throw(Interrupted(reason))) is not None:
            self.fail(RuntimeError("a search that was interrupted asked on"))

    def _drive(self, resume: Callable[[], Sequence[Request] | Step]) -> Sequence[Request] | None:
        try:
            with working_for(self.call):
                item = resume()
                while isinstance(item, Step):
                    self.emit(item)
                    item = next(self.search)
                return item
        except StopIteration as stop:
            self._finish(stop.value)
        except Exception as error:  # whatever broke a search must reach the caller who waits for it
            self.fail(error)
        return None

    def fail(self, error: BaseException) -> None:
        """Tell the caller that the search is lost."""
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
            if reason := self.limit():  # which is why it was not waited for
                outcome = replace(outcome, stop_reason=reason, cause=None)
            self.cause = self.cause or outcome.cause
        with contextlib.suppress(Exception):  # a search that will not be closed is lost all the same
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

    def charge(self, tasks: Sequence[Asked]) -> None:
        """Count what a pass cost. The search's requests shared it: the most forwards of one count."""
        self.forwards += max((task.job.forwards - task.forwards for task in tasks), default=0)
        for task in tasks:
            job, tokens = task.job, task.job.model_tokens - task.model_tokens
            task.model_tokens, task.forwards = job.model_tokens, job.forwards
            self.model_tokens += tokens
            self.evaluation_tokens += tokens if isinstance(task.request, Score) else 0
            self.embeddings += len(job.reply.vectors) if isinstance(job.reply, Embeddings) else 0
