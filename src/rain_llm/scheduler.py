"""Run any number of searches, and batch their requests into shared forward passes.

One worker thread serves all callers. It starts with the first search and ends with the last. Each request of
a search becomes a *job*, and each forward pass contains the unfinished jobs of all searches. When all jobs of
a search are done, it receives its replies, and its next requests join the next pass, without waiting for
other searches. The answer of a search does not depend on other searches; only its time does. Plain calls,
streams, batches and coroutines all use this scheduler.

Requests to remote models need no forward pass: they are sent at once. While there is nothing to compute, the
worker sleeps until a reply, a new search, a cancellation or a deadline wakes it. Where a tokenizer is on a
server, each step of a search runs in a thread of its own: no search waits for another one's text.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, cast

from rain_llm.forks import renew_after_fork
from rain_llm.models.base import (
    Embedder,
    LanguageModel,
    Readable,
    RemoteModel,
    RemoteText,
    SteppedModel,
)
from rain_llm.requests import Embed, Embeddings, Read, Reply, Request, Sample, Score
from rain_llm.ticket import Asked, AtOnceJob, Sent, Ticket
from rain_llm.types import StopReason

_NAP_S = 1.0  # maximum sleep, in case that the system clock was changed


class _Stepped(Protocol):
    """A model that works pass by pass: a ``SteppedModel`` or :class:`_AtOnce`."""

    def begin(self, request: Any) -> Any: ...

    def step(self, jobs: Sequence[Any]) -> None: ...


class _AtOnce:
    """Adapts an embedder, or a model that is not a ``SteppedModel``: one step answers a complete batch."""

    def __init__(self, answer: Callable[[list[Any]], Sequence[Reply]]) -> None:
        self._answer = answer

    def begin(self, request: Request) -> AtOnceJob:
        return AtOnceJob(request)

    def step(self, jobs: Sequence[AtOnceJob]) -> None:
        replies = self._answer([job.request for job in jobs])
        for job, reply in list(zip(jobs, replies, strict=True)):
            job.reply = reply
            if not isinstance(reply, Embeddings):
                job.model_tokens, job.forwards = reply.model_tokens, reply.forwards


_schedulers: weakref.WeakSet[Scheduler] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Stop all workers before the interpreter exits: torch would abort the process otherwise."""
    for scheduler in list(_schedulers):
        scheduler.stop()


class Scheduler:
    """Runs many searches at once.

    Args:
        writer: answers ``Sample`` requests.
        judge: answers ``Score`` and ``Read`` requests.
        embedder: returns the model that answers ``Embed`` requests; called when one is needed.
        max_running: maximum number of concurrent searches; further ones wait. None: 64, or 1024 if both
            models are remote.
    """

    def __init__(
        self,
        writer: LanguageModel,
        judge: LanguageModel,
        embedder: Callable[[], Embedder],
        max_running: int | None = None,
    ) -> None:
        self._model_for: dict[type, _Stepped | RemoteModel] = {
            Sample: writer if isinstance(writer, SteppedModel | RemoteModel) else _AtOnce(writer.sample),
            Score: judge if isinstance(judge, SteppedModel | RemoteModel) else _AtOnce(judge.score),
            Read: self._reader(judge),
            Embed: _AtOnce(self._embed),
        }
        models = {id(model): model for model in self._model_for.values()}.values()
        self._remote = [model for model in models if isinstance(model, RemoteModel)]
        self._stepped = [model for model in models if not isinstance(model, RemoteModel)]
        self._threads = any(isinstance(m, RemoteText) and m.encodes_remotely for m in (writer, judge))
        self._embedder = embedder
        self._max_running = max_running or (64 if len(self._stepped) > 1 else 1024)
        self._waiting: list[Ticket] = []
        self._running: list[Ticket] = []
        self._stopping = False
        self.after_fork()
        _schedulers.add(self)
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Drop all searches and the worker in a forked process: they continue in the parent."""
        for ticket in self._running + self._waiting:
            ticket.forked = ticket.finished = True
            ticket.wake = lambda: None
        self._waiting, self._running = [], []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def stop(self) -> None:
        """Cancel all current and future searches, and wait for the current forward pass to end."""
        with self._lock:
            self._stopping = True
            thread = self._thread
            for ticket in self._running + self._waiting:
                ticket.cancel()
        if thread is not None:
            thread.join()

    def submit(self, *tickets: Ticket) -> None:
        """Queue searches. The worker thread calls ``Ticket.emit`` with their events."""
        with self._lock:
            for ticket in tickets:
                ticket.wake = self._wake.set
                if self._stopping:
                    ticket.cancel()
            self._waiting += tickets
            self._wake.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="rain-scheduler", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # callers must not wait for a worker that has ended
            with self._lock:
                self._thread = None
                lost = self._running + self._waiting
                self._running, self._waiting = [], []
            for ticket in lost:
                ticket.fail(error)
            raise

    def _serve(self) -> None:
        """Run the loop: admit searches, run one pass per model, send replies to searches that have all."""
        while True:
            self._wake.clear()
            with self._lock:
                new = self._admit()
                if not self._running:
                    self._thread = None
                    return
            for ticket in new:
                self._advance(ticket, None)
            busy = bool(new)
            for model in self._stepped:
                busy |= self._pass(model, self._running)
            for ticket in self._running:
                if ticket.step is not None:
                    if ticket.step.done():
                        step, ticket.step = ticket.step, None
                        self._ask(ticket, step.result())
                        busy = True
                    continue
                ticket.heed()
                if (replies := ticket.replies()) is not None:
                    self._advance(ticket, replies)
                    busy = True
            going = [ticket for ticket in self._running if not ticket.finished]
            busy |= len(going) < len(self._running)
            self._running = going
            if not busy:
                self._sleep()

    def _sleep(self) -> None:
        """Wait for a reply, a new search, a cancellation, or the next deadline."""
        with self._lock:
            tickets = self._running + self._waiting
        heeded = [ticket for ticket in tickets if ticket.step is None]  # a step keeps the deadline itself
        deadlines = [ticket.deadline for ticket in heeded if ticket.deadline is not None]
        left = max(0.0, min(deadlines) - time.monotonic()) if deadlines else _NAP_S
        self._wake.wait(min(left, _NAP_S))

    def _admit(self) -> list[Ticket]:
        """Admit the next searches, and those that met a limit: a search must begin before it can end."""
        new: list[Ticket] = []
        waiting: list[Ticket] = []
        for ticket in self._waiting:
            room = len(self._running) + len(new) < self._max_running
            (new if room or ticket.limit() else waiting).append(ticket)
        self._waiting = waiting
        self._running += new  # before they begin, so that all are failed if one of them crashes the worker
        return new

    def _advance(self, ticket: Ticket, replies: Sequence[Reply] | None) -> None:
        """Send a search its replies (None: start it), and create jobs for its next requests."""
        if not self._threads:
            return self._ask(ticket, ticket.advance(replies))
        step = ticket.step = Future()

        def advance() -> None:
            try:
                step.set_result(ticket.advance(replies))
            except BaseException as error:  # raised again by the worker
                step.set_exception(error)
            self._wake.set()

        threading.Thread(target=advance, name="rain-step", daemon=True).start()

    def _ask(self, ticket: Ticket, requests: Sequence[Request] | None) -> None:
        """Create jobs for the next requests of a search; None: it has finished."""
        if requests is None or not ticket.goes_on():
            return
        tasks: dict[int, Asked] = {}
        try:
            for i, request in enumerate(requests):
                model = self._model_for[type(request)]
                if not isinstance(model, RemoteModel):
                    tasks[i] = Asked(request, model, model.begin(request))
            for remote in self._remote:
                own = {i: r for i, r in enumerate(requests) if self._model_for[type(r)] is remote}
                if own:
                    asked = cast("list[Sample | Score]", list(own.values()))
                    all_pending = remote.send(asked, ticket, ticket.deadline, self._wake.set)
                    for (i, request), pending in zip(own.items(), all_pending, strict=True):
                        tasks[i] = Sent(request, remote, pending)
            ticket.tasks = [tasks[i] for i in range(len(requests))]
        except Exception as error:  # for example, a prompt that is too long
            ticket.tasks = list(tasks.values())
            ticket.interrupt(StopReason.ERROR, error)

    def _pass(self, model: _Stepped, tickets: Sequence[Ticket]) -> bool:
        """Run one forward pass for all searches that wait for this model; return whether there were any."""
        asking = [(t, tasks) for t in tickets if (tasks := t.waiting_for(model)) and t.goes_on()]
        if not asking:
            return False
        try:
            model.step([task.job for _, tasks in asking for task in tasks])
        except Exception as error:
            for ticket, _ in asking:
                if len(asking) == 1:
                    ticket.interrupt(StopReason.ERROR, error)
                else:  # one search's job failed the pass, and no job has changed: retry each search alone
                    self._pass(model, [ticket])
        else:
            for ticket, tasks in asking:
                ticket.charge(tasks)
        return True

    @staticmethod
    def _reader(judge: LanguageModel) -> _Stepped | RemoteModel:
        """Return what answers ``Read`` requests. The evaluator sends none to a judge that is not readable."""
        if isinstance(judge, SteppedModel | RemoteModel):
            return judge
        return _AtOnce(judge.read if isinstance(judge, Readable) else judge.score)

    def _embed(self, batch: Sequence[Embed]) -> list[Embeddings]:
        """Embed the texts of all requests in one call."""
        texts = [text for request in batch for text in request.texts]
        vectors = iter(self._embedder().embed(texts) if texts else ())
        return [Embeddings(tuple(next(vectors) for _ in request.texts)) for request in batch]
