"""The scheduler: merged batches, each search its own replies, limits, failures, and a thread that ends."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from rain_llm.models.scripted import ScriptedModel, script
from rain_llm.scheduler import Event, Finished, Scheduler, Ticket
from rain_llm.search import Interrupted, Outcome, Search
from rain_llm.types import (
    Embed,
    Reply,
    Request,
    Sample,
    Samples,
    Score,
    Scores,
    Step,
    StopReason,
    TokenIds,
    Vector,
)

WORLD = {"": {" la": 1.0}}


class Model(ScriptedModel):
    """A scripted model that remembers its batches, waits at a gate, and breaks where it is told to."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.batches: list[tuple[Request, ...]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.poison: dict[str, BaseException] = {}

    def _enter(self, batch: Sequence[Sample] | Sequence[Score]) -> None:
        self.batches.append(tuple(batch))
        self.entered.set()
        assert self.gate.wait(20)
        for request in batch:
            for word, error in self.poison.items():
                if word in self.decode(request.prefix):
                    raise error

    def sample(self, batch: Sequence[Sample]) -> list[Samples]:
        self._enter(batch)
        return super().sample(batch)

    def score(self, batch: Sequence[Score]) -> list[Scores]:
        self._enter(batch)
        return super().score(batch)


class Embedding:
    """Embeds a text as its length."""

    def embed(self, texts: Sequence[str]) -> list[Vector]:
        return [np.array([len(text)], np.float32) for text in texts]


@pytest.fixture
def model() -> Model:
    return Model(script(WORLD), lambda question, label: -float(len(question)))


@pytest.fixture
def scheduler(model: Model) -> Iterator[Scheduler]:
    yield Scheduler(model, model, Embedding)
    assert worker_has_ended()


def worker_has_ended() -> bool:
    deadline = time.monotonic() + 10
    while any(thread.name == "rain-scheduler" for thread in threading.enumerate()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


class Job:
    """A submitted search and its events."""

    def __init__(self, search: Search, **limits: Any) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.threads: set[str] = set()
        self.ticket = Ticket(search, self._emit, **limits)

    def _emit(self, event: Event) -> None:
        self.threads.add(threading.current_thread().name)
        self.events.put(event)

    def wait(self) -> tuple[list[Step], Finished]:
        steps: list[Step] = []
        while True:
            event = self.events.get(timeout=5)
            if isinstance(event, Finished):
                assert self.events.empty()
                return steps, event
            steps.append(event)

    def outcome(self) -> Outcome:
        outcome = self.wait()[1].outcome
        assert outcome is not None
        return outcome


def outcome(text: str, reason: StopReason = StopReason.EOS) -> Outcome:
    return Outcome(text, "", (), None, True, reason)


Asking = Callable[[Sequence[Reply]], str]


def asking(rounds: Sequence[Sequence[Request]], read: Asking = str) -> Search:
    """A search that asks given rounds, tells each reply as a step, and heeds an interruption."""
    told = ""
    try:
        for requests in rounds:
            replies = yield requests
            told += read(replies)
            yield Step(read(replies))
    except Interrupted as interruption:
        return outcome(told, interruption.reason)
    return outcome(told)


def sample(model: Model, text: str, n: int = 1, tokens: int = 1) -> Sample:
    return Sample(model.encode(text), n, tokens, 0)


def score(model: Model, text: str, *options: TokenIds) -> Score:
    return Score(model.encode(text), options or ((4,),))


def drawn(model: Model) -> Asking:
    def read(replies: Sequence[Reply]) -> str:
        (reply,) = replies
        assert isinstance(reply, Samples)
        return model.decode(reply.continuations[0].tokens)

    return read


# --- merging ----------------------------------------------------------------------------------------


def test_requests_of_all_searches_are_answered_in_one_batch(model: Model, scheduler: Scheduler):
    jobs = [Job(asking([[sample(model, f"text {i}")]] * 3)) for i in range(5)]
    scheduler.submit(*(job.ticket for job in jobs))
    for job in jobs:
        steps, finished = job.wait()
        assert len(steps) == 3
        assert finished.cause is None
    assert [len(batch) for batch in model.batches] == [5, 5, 5]


def test_each_search_gets_the_replies_to_its_own_requests_in_order(model: Model, scheduler: Scheduler):
    def requests(i: int) -> list[Request]:
        long, short = score(model, "a " * i + "b"), score(model, "c" * i)
        return [long, Embed(("x" * i, "yy" * i)), sample(model, "t", n=i + 1), short, Embed(("z",))]

    def told(replies: Sequence[Reply]) -> str:
        first, vectors, samples, second, last = replies
        assert isinstance(first, Scores) and isinstance(second, Scores)
        assert isinstance(samples, Samples)
        lengths = [float(v[0]) for reply in (vectors, last) for v in reply.vectors]  # type: ignore[union-attr]
        return f"{first.logprobs[0]} {second.logprobs[0]} {len(samples.continuations)} {lengths}"

    jobs = [Job(asking([requests(i)], told)) for i in range(1, 5)]
    scheduler.submit(*(job.ticket for job in jobs))
    for i, job in enumerate(jobs, 1):
        lengths = [float(i), 2.0 * i, 1.0]
        assert job.outcome().text == f"{-(2.0 * i + 1)} {-float(i)} {i + 1} {lengths}"
    assert [len(batch) for batch in model.batches] == [4, 8]  # samples, then scores


def test_steps_come_in_order_from_the_worker_and_then_the_outcome(model: Model, scheduler: Scheduler):
    def search() -> Search:
        yield Step("one")
        yield Step("two")
        yield [sample(model, "x")]
        yield Step("three")
        return outcome("done")

    job = Job(search())
    scheduler.submit(job.ticket)
    steps, finished = job.wait()
    assert [step.text for step in steps] == ["one", "two", "three"]
    assert finished.outcome == outcome("done")
    assert job.threads == {"rain-scheduler"}


def test_a_search_may_join_while_others_run(model: Model, scheduler: Scheduler):
    model.gate.clear()
    first = Job(asking([[sample(model, "a")]] * 4))
    scheduler.submit(first.ticket)
    assert model.entered.wait(10)
    second = Job(asking([[sample(model, "b")]] * 2))
    scheduler.submit(second.ticket)
    model.gate.set()
    first.wait()
    second.wait()
    assert [len(batch) for batch in model.batches] == [1, 2, 2, 1]


def test_writer_and_judge_may_be_two_models(model: Model):
    judge = Model(script(WORLD))
    scheduler = Scheduler(model, judge, Embedding)
    job = Job(asking([[sample(model, "a"), score(model, "b")]]))
    scheduler.submit(job.ticket)
    job.wait()
    assert [type(r) for r in model.requests] == [Sample]
    assert [type(r) for r in judge.requests] == [Score]


def test_the_embedder_is_made_only_when_it_is_asked(model: Model):
    def make() -> Embedding:
        raise RuntimeError("no embedder")

    scheduler = Scheduler(model, model, make)
    jobs = [Job(asking([[sample(model, "a")]])), Job(asking([[Embed(("x",))]]))]
    scheduler.submit(*(job.ticket for job in jobs))
    assert jobs[0].wait()[1].cause is None
    assert isinstance(jobs[1].wait()[1].cause, RuntimeError)


# --- cost -------------------------------------------------------------------------------------------


def test_costs_are_counted_for_each_search(model: Model, scheduler: Scheduler):
    # Samples share their passes, and so do scores: the longest counts.
    rounds: list[list[Request]] = [
        [sample(model, "a b c", n=2, tokens=3), sample(model, "a", tokens=2)],
        [score(model, "a b"), score(model, "a"), Embed(("x", "y")), Embed(("z",))],
        [sample(model, "a")],
    ]
    one, other = Job(asking(rounds)), Job(asking(rounds[2:]))
    scheduler.submit(one.ticket, other.ticket)
    finished = one.wait()[1]
    # Prefix and all but the last token of each: 3 + 2 * 2, 1 + 1; 2 + 1 read for scores; 1.
    assert finished.model_tokens == (7 + 2) + 3 + 1
    assert finished.evaluation_tokens == 3
    assert finished.forwards == 3 + 1 + 1
    assert finished.embeddings == 3
    assert other.wait()[1].model_tokens == 1


# --- failures ---------------------------------------------------------------------------------------


def test_one_searchs_failure_does_not_reach_the_others(model: Model, scheduler: Scheduler):
    model.poison["bad"] = ValueError("out of memory")
    alone = Job(asking([[sample(model, "fine")]] * 3, drawn(model)))
    scheduler.submit(alone.ticket)
    expected = alone.outcome()

    fine = [Job(asking([[sample(model, "fine")]] * 3, drawn(model))) for _ in range(3)]
    bad = Job(asking([[sample(model, "fine")], [sample(model, "bad")], [sample(model, "x")]], drawn(model)))
    scheduler.submit(*(job.ticket for job in (*fine[:2], bad, fine[2])))
    for job in fine:
        assert job.outcome() == expected
    steps, finished = bad.wait()
    assert [step.text for step in steps] == [" la"]
    assert finished.cause is model.poison["bad"]
    assert finished.outcome == outcome(" la", StopReason.ERROR)  # what it had


def test_a_search_that_breaks_itself_tells_its_caller(model: Model, scheduler: Scheduler):
    def breaking() -> Search:
        yield [sample(model, "a")]
        raise KeyError("a bug")

    def broken_at_once() -> Search:
        if model is not None:
            raise KeyError("a bug")
        yield []  # type: ignore[unreachable]  # makes it a generator

    jobs = [Job(breaking()), Job(broken_at_once()), Job(asking([[sample(model, "a")]] * 2))]
    scheduler.submit(*(job.ticket for job in jobs))
    for job in jobs[:2]:
        finished = job.wait()[1]
        assert finished.outcome is None
        assert isinstance(finished.cause, KeyError)
    assert jobs[2].wait()[1].cause is None


def test_a_search_that_breaks_while_it_is_interrupted_tells_its_caller(model: Model, scheduler: Scheduler):
    def stubborn() -> Search:
        try:
            yield [sample(model, "bad")]
        except Interrupted:
            raise RuntimeError("at the end") from None
        return outcome("")

    model.poison["bad"] = ValueError("first")
    job = Job(stubborn())
    scheduler.submit(job.ticket)
    finished = job.wait()[1]
    assert finished.outcome is None
    assert isinstance(finished.cause, RuntimeError)


class Panic(BaseException):
    """As native libraries raise it: no ``Exception``."""


# The thread may die of it, loudly, as long as nobody waits for it in vain.
panics = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@panics
def test_even_a_panic_in_a_model_reaches_the_caller_and_the_scheduler_goes_on(
    model: Model, scheduler: Scheduler
):
    model.poison["bad"] = Panic("unreachable")
    job = Job(asking([[sample(model, "bad")]]))
    scheduler.submit(job.ticket)
    assert job.wait()[1].cause is model.poison["bad"]
    after = Job(asking([[sample(model, "fine")]]))
    scheduler.submit(after.ticket)
    assert after.wait()[1].cause is None


@panics
@pytest.mark.parametrize("rounds_before", [0, 1])
def test_a_panic_in_one_search_leaves_no_caller_waiting(
    model: Model, scheduler: Scheduler, rounds_before: int
):
    def panicking() -> Search:
        for _ in range(rounds_before):
            yield [sample(model, "a")]
        raise Panic("unreachable")

    def others() -> list[Job]:
        return [Job(asking([[sample(model, "a")]] * 3)) for _ in range(2)]

    jobs = [*others(), Job(panicking()), *others()]
    scheduler.submit(*(job.ticket for job in jobs))
    for job in jobs:
        job.wait()
    assert isinstance(jobs[2].ticket.cause, Panic)


# --- limits -----------------------------------------------------------------------------------------


def test_a_cancelled_search_ends_before_its_next_round(model: Model, scheduler: Scheduler):
    model.gate.clear()
    job = Job(asking([[sample(model, "a")]] * 1000, drawn(model)))
    other = Job(asking([[sample(model, "b")]] * 3))
    scheduler.submit(job.ticket, other.ticket)
    assert model.entered.wait(10)
    job.ticket.cancel()
    model.gate.set()
    assert job.outcome() == outcome(" la", StopReason.CANCELLED)
    assert other.outcome().stop_reason is StopReason.EOS
    assert [len(batch) for batch in model.batches] == [2, 1, 1]


def test_a_search_cancelled_before_it_began_asks_nothing(model: Model, scheduler: Scheduler):
    job = Job(asking([[sample(model, "a")]]))
    job.ticket.cancel()
    scheduler.submit(job.ticket)
    assert job.outcome().stop_reason is StopReason.CANCELLED
    assert model.requests == []


def test_the_deadline_is_checked_between_rounds(model: Model, scheduler: Scheduler):
    model.gate.clear()
    job = Job(asking([[sample(model, "a")]] * 1000, drawn(model)), deadline_s=0.05)
    scheduler.submit(job.ticket)
    time.sleep(0.1)
    model.gate.set()
    assert job.outcome() == outcome(" la", StopReason.DEADLINE)


def test_the_token_budget_is_checked_between_rounds(model: Model, scheduler: Scheduler):
    # Three tokens a round: 9 after the third.
    job = Job(asking([[sample(model, "a b c")]] * 1000), max_model_tokens=7)
    scheduler.submit(job.ticket)
    finished = job.wait()[1]
    assert finished.outcome is not None
    assert finished.outcome.stop_reason is StopReason.BUDGET
    assert finished.model_tokens == 9
    exact = Job(asking([[sample(model, "a b c")]] * 1000), max_model_tokens=6)
    scheduler.submit(exact.ticket)
    assert exact.wait()[1].model_tokens == 6


# --- the line ---------------------------------------------------------------------------------------


def test_no_more_than_max_running_run_at_once_first_come_first_served(model: Model):
    scheduler = Scheduler(model, model, Embedding, max_running=2)
    begun = []

    def search(i: int) -> Search:
        begun.append(i)
        return (yield from asking([[sample(model, "a")]] * (i + 1)))

    jobs = [Job(search(i)) for i in range(5)]
    scheduler.submit(*(job.ticket for job in jobs))
    for i, job in enumerate(jobs):
        steps, finished = job.wait()
        assert len(steps) == i + 1
        assert finished.cause is None
    assert begun == [0, 1, 2, 3, 4]
    assert max(len(batch) for batch in model.batches) == 2


def test_who_waits_in_line_can_still_be_cancelled_or_run_out_of_time(model: Model):
    scheduler = Scheduler(model, model, Embedding, max_running=1)
    model.gate.clear()
    first = Job(asking([[sample(model, "a")]] * 3))
    cancelled = Job(asking([[sample(model, "b")]]))
    overdue = Job(asking([[sample(model, "c")]]), deadline_s=0.05)
    last = Job(asking([[sample(model, "d")]]))
    scheduler.submit(*(job.ticket for job in (first, cancelled, overdue, last)))
    assert model.entered.wait(10)
    cancelled.ticket.cancel()
    time.sleep(0.1)
    model.gate.set()
    assert first.outcome().stop_reason is StopReason.EOS
    assert cancelled.outcome().stop_reason is StopReason.CANCELLED
    assert overdue.outcome().stop_reason is StopReason.DEADLINE
    assert last.outcome().stop_reason is StopReason.EOS
    asked = {model.decode(r.prefix) for batch in model.batches for r in batch if isinstance(r, Sample)}
    assert asked == {"a", "d"}


# --- the thread -------------------------------------------------------------------------------------


def test_the_worker_ends_when_there_is_nothing_to_do_and_begins_again(model: Model):
    scheduler = Scheduler(model, model, Embedding)
    for _ in range(3):
        job = Job(asking([[sample(model, "a")]]))
        scheduler.submit(job.ticket)
        job.wait()
        assert worker_has_ended()


def test_searches_may_be_submitted_from_many_threads(model: Model, scheduler: Scheduler):
    jobs: list[Job] = []

    def submit() -> None:
        for _ in range(20):
            job = Job(asking([[sample(model, "a")]] * 2))
            jobs.append(job)
            scheduler.submit(job.ticket)

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {job.wait()[1].cause for job in jobs} == {None}
    assert len(jobs) == 160


def test_a_finished_search_is_closed(model: Model, scheduler: Scheduler):
    closed = []

    def search() -> Generator[Any, Any, Outcome]:
        try:
            yield [sample(model, "a")]
            return outcome("")
        finally:
            closed.append(True)

    job = Job(search())
    scheduler.submit(job.ticket)
    job.wait()
    assert closed == [True]
