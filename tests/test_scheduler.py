"""The scheduler: shared passes, each search its own replies, limits, failures, and a thread that ends.

``Model`` answers a batch at once, so a round of it is one step; ``Stepped`` answers pass by pass.
"""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest

from rain_llm.errors import PromptError
from rain_llm.models.base import Job as ModelJob
from rain_llm.models.base import SteppedModel
from rain_llm.models.scripted import ScriptedModel, script
from rain_llm.requests import Embed, Reply, Request, Sample, Samples, Score, Scores, Vector
from rain_llm.scheduler import Scheduler
from rain_llm.search.outcome import Interrupted, Outcome, Search
from rain_llm.ticket import Event, Finished, Ticket
from rain_llm.types import Step, StopReason, TokenIds

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


@dataclass(eq=False)
class Begun:
    """A job of ``Stepped``: the reply is worked out at the start and given when it is due."""

    request: Sample | Score
    text: str
    due: Samples | Scores
    reply: Samples | Scores | None = None
    model_tokens: int = 0
    forwards: int = 0

    def step(self) -> None:
        if isinstance(self.due, Scores) or not self.forwards:
            self.model_tokens += len(self.request.prefix)
        else:
            lengths = [len(c.tokens) + c.ended for c in self.due.continuations]
            self.model_tokens += sum(length > self.forwards for length in lengths)
        self.forwards += 1
        if self.forwards == self.due.forwards:
            self.reply = self.due
            assert self.model_tokens == self.due.model_tokens


class Stepped(ScriptedModel):
    """Answers pass by pass. ``at`` says what happens, in the worker, at the beginning of a pass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.begun: list[Begun] = []
        self.passes: list[tuple[Begun, ...]] = []  # all that were asked for
        self.made: list[tuple[Begun, ...]] = []  # those that did not fail
        self.at: dict[int, Callable[[], object]] = {}
        self.poison: dict[str, Callable[[Begun], BaseException | None]] = {}

    def begin(self, request: Sample | Score) -> Begun:
        due = self.sample([request])[0] if isinstance(request, Sample) else self.score([request])[0]
        self.begun.append(Begun(request, self.decode(request.prefix), due))
        return self.begun[-1]

    def step(self, jobs: Sequence[ModelJob]) -> None:
        batch = tuple(job for job in jobs if isinstance(job, Begun))
        assert batch and len(set(batch)) == len(jobs)
        assert all(job.reply is None for job in batch)
        self.passes.append(batch)
        self.at.get(len(self.passes), int)()
        for job in batch:
            if job.text in self.poison and (error := self.poison[job.text](job)):
                raise error
        for job in batch:
            job.step()
        self.made.append(batch)

    @property
    def texts(self) -> list[str]:
        """What shared each pass."""
        return ["|".join(job.text for job in batch) for batch in self.passes]


class Embedding:
    """Embeds a text as its length."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, ...]] = []

    def embed(self, texts: Sequence[str]) -> list[Vector]:
        self.batches.append(tuple(texts))
        return [np.array([len(text)], np.float32) for text in texts]


@pytest.fixture
def model() -> Model:
    return Model(script(WORLD), lambda question, label: -float(len(question)))


@pytest.fixture
def scheduler(model: Model) -> Iterator[Scheduler]:
    yield Scheduler(model, model, Embedding)
    assert worker_has_ended()


@pytest.fixture
def stepped() -> Stepped:
    return Stepped(script(WORLD), lambda question, label: -float(len(question)), context_length=100)


@pytest.fixture
def passing(stepped: Stepped) -> Iterator[Scheduler]:
    yield Scheduler(stepped, stepped, Embedding)
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


def sample(model: ScriptedModel, text: str, n: int = 1, tokens: int = 1, seed: int = 0) -> Sample:
    return Sample(model.encode(text), n, tokens, seed)


def score(model: ScriptedModel, text: str, *options: TokenIds) -> Score:
    return Score(model.encode(text), options or (model.encode("x"),))


def drawn(model: ScriptedModel) -> Asking:
    def read(replies: Sequence[Reply]) -> str:
        (reply,) = replies
        assert isinstance(reply, Samples)
        return model.decode(reply.continuations[0].tokens)

    return read


# --- one batch: models that answer at once --------------------------------------------------------


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


# --- joining and leaving: models that answer pass by pass ---------------------------------------------


def test_the_stepped_double_keeps_the_protocol(stepped: Stepped):
    assert isinstance(stepped, SteppedModel)
    assert isinstance(stepped.begin(sample(stepped, "a")), ModelJob)


def test_a_short_search_finishes_while_a_long_one_is_in_its_first_round(stepped: Stepped, passing: Scheduler):
    long = Job(asking([[sample(stepped, "long", tokens=32)]]))
    short = Job(asking([[sample(stepped, "short", tokens=2)]] * 4))
    ended = []
    stepped.at = {n: lambda: ended.append(short.ticket.finished) for n in (8, 9)}
    passing.submit(long.ticket, short.ticket)
    assert [len(job.wait()[0]) for job in (short, long)] == [4, 1]
    assert stepped.texts == ["long|short"] * 8 + ["long"] * 24
    assert ended == [False, True]


def test_a_search_that_joins_in_the_middle_of_a_round_shares_the_next_pass(
    stepped: Stepped, passing: Scheduler
):
    first = Job(asking([[sample(stepped, "a", tokens=6)]]))
    second = Job(asking([[sample(stepped, "b", tokens=2)]] * 2))
    stepped.at[3] = lambda: passing.submit(second.ticket)
    passing.submit(first.ticket)
    first.wait()
    second.wait()
    assert stepped.texts == ["a", "a", "a", "a|b", "a|b", "a|b", "b"]


def test_questions_and_samples_share_a_pass_when_the_writer_is_the_judge(
    stepped: Stepped, passing: Scheduler
):
    one = Job(asking([[sample(stepped, "a", tokens=3), score(stepped, "b")], [score(stepped, "c")]]))
    other = Job(asking([[score(stepped, "x")], [sample(stepped, "y", tokens=2)]]))
    passing.submit(one.ticket, other.ticket)
    assert one.wait()[1].forwards == 4
    assert other.wait()[1].forwards == 3
    assert stepped.texts == ["a|b|x", "a|y", "a|y", "c"]


def test_a_writer_and_a_judge_step_side_by_side(stepped: Stepped):
    judge = Stepped(script(WORLD))
    scheduler = Scheduler(stepped, judge, Embedding)
    one = Job(asking([[sample(stepped, "a", tokens=3), score(judge, "b")]]))
    other = Job(asking([[score(judge, "x")]] * 3))
    scheduler.submit(one.ticket, other.ticket)
    assert one.wait()[1].forwards == 3 + 1
    assert other.wait()[1].forwards == 3
    assert stepped.texts == ["a"] * 3
    assert judge.texts == ["b|x", "x", "x"]


def test_a_stepped_writer_goes_with_a_judge_that_answers_at_once(stepped: Stepped, model: Model):
    scheduler = Scheduler(stepped, model, Embedding)
    job = Job(asking([[sample(stepped, "a", tokens=3), score(model, "b"), score(model, "c d")]] * 2))
    scheduler.submit(job.ticket)
    finished = job.wait()[1]
    assert [len(batch) for batch in model.batches] == [2, 2]
    assert (finished.forwards, finished.model_tokens, finished.evaluation_tokens) == (8, 12, 6)


def test_texts_that_wait_at_the_same_time_are_embedded_together(stepped: Stepped):
    embedder = Embedding()
    scheduler = Scheduler(stepped, stepped, lambda: embedder)
    early = Job(asking([[Embed(("a", "bb"))], [sample(stepped, "x", tokens=3)]]))
    both = [
        Job(asking([[sample(stepped, "y", tokens=2)], [Embed((text,)), sample(stepped, "z", tokens=4)]]))
        for text in ("ccc", "dddd")
    ]
    scheduler.submit(early.ticket, *(job.ticket for job in both))
    assert [job.wait()[1].embeddings for job in (early, *both)] == [2, 1, 1]
    assert embedder.batches == [("a", "bb"), ("ccc", "dddd")]
    assert stepped.texts == ["y|y", "x|y|y", "x|z|z", "x|z|z", "z|z", "z|z"]


def test_a_place_in_line_is_taken_at_the_next_pass(stepped: Stepped):
    scheduler = Scheduler(stepped, stepped, Embedding, max_running=2)
    lengths = {"a": 5, "b": 2, "c": 1, "d": 2}
    jobs = [Job(asking([[sample(stepped, text, tokens=n)]])) for text, n in lengths.items()]
    scheduler.submit(*(job.ticket for job in jobs))
    for job in jobs:
        job.wait()
    assert stepped.texts == ["a|b", "a|b", "a|c", "a|d", "a|d"]


def babble(text: str) -> Mapping[str, float]:
    """Words whose chances depend on all that was said before."""
    chances = zlib.crc32(text.encode())
    return {" la": 1.0 + chances % 7, " li": 1.0 + chances % 5, " lu": 1.0 + chances % 3}


def wandering(model: ScriptedModel, name: str) -> Search:
    """A search whose every request depends on the replies before it."""
    text = name
    try:
        for i in range(5):
            length = 1 + zlib.crc32(text.encode()) % 9
            ask: list[Request] = [sample(model, text, n=2, tokens=length, seed=i), score(model, text)]
            drawn, judged = yield ask
            assert isinstance(drawn, Samples) and isinstance(judged, Scores)
            chosen = int(judged.logprobs[0]) % 2
            text += model.decode(drawn.continuations[chosen].tokens)
            yield Step(text)
    except Interrupted as interruption:
        return outcome(text, interruption.reason)
    return outcome(text)


@pytest.mark.parametrize("neighbours", [1, 3, 8])
@pytest.mark.parametrize("arrivals", ["together", "staggered"])
def test_a_search_answers_the_same_whatever_its_neighbours(neighbours: int, arrivals: str):
    def opinion(question: str, label: str) -> float:
        return -float(zlib.crc32(question.encode()) % 10)

    def world() -> tuple[Stepped, Scheduler]:
        model = Stepped(babble, opinion)
        return model, Scheduler(model, model, Embedding)

    alone = []
    for i in range(neighbours + 1):
        model, scheduler = world()
        job = Job(wandering(model, f"Oh {i}"))
        scheduler.submit(job.ticket)
        alone.append(job.wait())
    assert len({finished.outcome for _, finished in alone}) == neighbours + 1

    model, scheduler = world()
    jobs = [Job(wandering(model, f"Oh {i}")) for i in range(neighbours + 1)]
    tickets = [job.ticket for job in jobs]
    late = tickets[1:] if arrivals == "staggered" else []
    for i, ticket in enumerate(late):
        model.at[2 + 2 * i] = partial(scheduler.submit, ticket)
    scheduler.submit(*(ticket for ticket in tickets if ticket not in late))
    assert [job.wait() for job in jobs] == alone  # text, steps and costs


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


def test_costs_are_the_same_pass_by_pass_but_that_questions_ride_along(stepped: Stepped, passing: Scheduler):
    rounds: list[list[Request]] = [
        [sample(stepped, "a b c", n=2, tokens=3), sample(stepped, "a", tokens=2), score(stepped, "a b")],
        [score(stepped, "a b"), score(stepped, "a"), Embed(("x", "y")), Embed(("z",))],
    ]
    job = Job(asking(rounds))
    passing.submit(job.ticket)
    finished = job.wait()[1]
    assert finished.model_tokens == (7 + 2) + 2 + 3
    assert finished.evaluation_tokens == 2 + 3
    assert finished.forwards == 3 + 1
    assert finished.embeddings == 3


def test_an_interrupted_search_has_paid_for_the_passes_that_were_made(stepped: Stepped, passing: Scheduler):
    asked: list[Request] = [
        sample(stepped, "a b c", n=2, tokens=9),
        sample(stepped, "a", tokens=2),
        score(stepped, "a b"),
    ]
    job = Job(asking([asked]))
    stepped.at[4] = job.ticket.cancel
    passing.submit(job.ticket)
    finished = job.wait()[1]
    # The first pass reads the prefixes 3, 1 and 2; then 2 + 1, 2, 2: the cancelled pass is still made.
    assert finished.model_tokens == 6 + 3 + 2 + 2
    assert finished.evaluation_tokens == 2
    assert finished.forwards == len(stepped.made) == 4


# --- failures ---------------------------------------------------------------------------------------


def test_a_failing_pass_ends_the_culprit_and_no_job_is_lost_or_stepped_twice(
    stepped: Stepped, passing: Scheduler
):
    error = ValueError("out of memory")
    stepped.poison["bad"] = lambda job: error if job.forwards == 2 else None
    fine = [Job(asking([[sample(stepped, text, tokens=4)]] * 2, drawn(stepped))) for text in "abc"]
    bad = Job(asking([[sample(stepped, "bad", tokens=4), sample(stepped, "x", tokens=9)]] * 2))
    passing.submit(fine[0].ticket, bad.ticket, fine[1].ticket, fine[2].ticket)
    for job in fine:
        assert job.outcome() == outcome(" la la la la" * 2)
    finished = bad.wait()[1]
    assert finished.cause is error
    assert finished.outcome == outcome("", StopReason.ERROR)
    assert (finished.model_tokens, finished.forwards) == (4, 2)
    both = ["a|bad|x|b|c"] * 3
    assert stepped.texts == [*both, "a", "bad|x", "b", "c", *["a|b|c"] * 5]
    times = Counter(job for batch in stepped.made for job in batch)
    assert sorted((job.text, times[job]) for job in stepped.begun) == [
        *(("a", 4), ("a", 4), ("b", 4), ("b", 4), ("bad", 2), ("c", 4), ("c", 4), ("x", 2)),
    ]


def test_a_pass_that_only_a_crowd_breaks_costs_nobody_the_answer(stepped: Stepped, passing: Scheduler):
    full = MemoryError()
    stepped.poison["a"] = lambda job: full if len(stepped.passes[-1]) > 1 else None
    jobs = [Job(asking([[sample(stepped, text, tokens=3)]])) for text in "abc"]
    passing.submit(*(job.ticket for job in jobs))
    assert [job.wait()[1].cause for job in jobs] == [None] * 3


def test_limits_hold_while_the_culprit_is_looked_for(stepped: Stepped, passing: Scheduler):
    stepped.poison["bad"] = lambda job: ValueError("first")
    jobs = {text: Job(asking([[sample(stepped, text, tokens=2)]])) for text in ("bad", "a", "b", "c")}
    stepped.at[3] = jobs["b"].ticket.cancel
    passing.submit(*(job.ticket for job in jobs.values()))
    reasons = [job.outcome().stop_reason.value for job in jobs.values()]
    assert reasons == ["error", "eos", "cancelled", "eos"]
    assert stepped.texts == ["bad|a|b|c", "bad", "a", "c", "a|c"]


@pytest.mark.parametrize("place", [0, 1])
def test_a_request_that_cannot_be_begun_ends_its_search_only(
    stepped: Stepped, passing: Scheduler, place: int
):
    asked = [sample(stepped, "b", tokens=2)]
    asked.insert(place, sample(stepped, "too long", tokens=99))
    bad = Job(asking([[sample(stepped, "fine")], asked], drawn(stepped)))
    other = Job(asking([[sample(stepped, "a", tokens=4)]]))
    passing.submit(bad.ticket, other.ticket)
    finished = bad.wait()[1]
    assert isinstance(finished.cause, PromptError)
    assert finished.outcome == outcome(" la", StopReason.ERROR)
    assert other.wait()[1].cause is None
    assert stepped.texts == ["fine|a", "a", "a", "a"]


@pytest.mark.parametrize("ignored", [Interrupted, BaseException])
def test_a_search_that_asks_on_when_it_is_interrupted_is_ended(
    stepped: Stepped, passing: Scheduler, ignored: type[BaseException]
):
    def stubborn() -> Search:
        for _ in range(3):
            with contextlib.suppress(ignored):
                yield [sample(stepped, "a", tokens=9)]
        return outcome("")

    job, other = Job(stubborn()), Job(asking([[sample(stepped, "b", tokens=5)]]))
    stepped.at[3] = job.ticket.cancel
    passing.submit(job.ticket, other.ticket)
    finished = job.wait()[1]
    assert finished.outcome is None
    assert isinstance(finished.cause, RuntimeError)
    assert other.wait()[1].cause is None
    assert stepped.texts == ["a|b"] * 3 + ["b"] * 2


def test_a_search_that_asks_nothing_again_and_again_can_be_cancelled(stepped: Stepped, passing: Scheduler):
    def idle() -> Search:
        try:
            while True:
                assert (yield []) == []
        except Interrupted as interruption:
            return outcome("", interruption.reason)

    other = Job(asking([[sample(stepped, "a", tokens=4)]]))
    jobs = [Job(idle()), Job(idle(), deadline_s=0.05)]
    stepped.at[4] = jobs[0].ticket.cancel
    passing.submit(*(job.ticket for job in (*jobs, other)))
    reasons = [job.outcome().stop_reason.value for job in (*jobs, other)]
    assert reasons == ["cancelled", "deadline", "eos"]


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
def test_a_panic_in_a_pass_reaches_every_caller_and_the_scheduler_goes_on(
    stepped: Stepped, passing: Scheduler
):
    panic = Panic("unreachable")
    stepped.poison["bad"] = lambda job: panic
    waiting = Job(asking([[sample(stepped, "w")]]))
    jobs = [Job(asking([[sample(stepped, text, tokens=4)]])) for text in ("a", "b")]
    bad = Job(asking([[sample(stepped, "fine")], [sample(stepped, "bad")]]))
    stepped.at[2] = lambda: passing.submit(waiting.ticket)
    passing.submit(*(job.ticket for job in (*jobs, bad)))
    assert [job.wait()[1].cause for job in (*jobs, bad, waiting)] == [panic] * 4
    after = Job(asking([[sample(stepped, "fine")]]))
    passing.submit(after.ticket)
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


def test_a_cancelled_search_ends_before_the_next_batch(model: Model, scheduler: Scheduler):
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


def test_the_deadline_is_checked_between_batches(model: Model, scheduler: Scheduler):
    model.gate.clear()
    job = Job(asking([[sample(model, "a")]] * 1000, drawn(model)), deadline_s=0.05)
    scheduler.submit(job.ticket)
    time.sleep(0.1)
    model.gate.set()
    assert job.outcome() == outcome(" la", StopReason.DEADLINE)


def test_the_token_budget_is_checked_between_batches(model: Model, scheduler: Scheduler):
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


LIMITS: dict[StopReason, Callable[[Ticket], None]] = {
    StopReason.CANCELLED: Ticket.cancel,
    StopReason.DEADLINE: lambda ticket: setattr(ticket, "deadline", time.monotonic()),
    StopReason.BUDGET: lambda ticket: setattr(ticket, "max_model_tokens", 5),
}


@pytest.mark.parametrize("reason", LIMITS)
@pytest.mark.parametrize("company", [False, True])
def test_a_limit_strikes_between_two_passes_and_frees_the_job(
    stepped: Stepped, passing: Scheduler, reason: StopReason, company: bool
):
    job = Job(asking([[sample(stepped, "a b", tokens=1)], [sample(stepped, "a b", tokens=32)]]))
    stepped.at[4] = lambda: LIMITS[reason](job.ticket)
    other = Job(asking([[sample(stepped, "c", tokens=8)]]))
    passing.submit(job.ticket, *([other.ticket] if company else []))
    steps, finished = job.wait()
    assert finished.outcome is not None
    assert (len(steps), finished.outcome.stop_reason, finished.cause) == (1, reason, None)
    assert (finished.model_tokens, finished.forwards) == (2 + 4, 4)
    assert job.ticket.tasks == ()
    if company:
        assert other.outcome().stop_reason is StopReason.EOS
    assert stepped.texts == (["a b|c"] * 4 + ["c"] * 4 if company else ["a b"] * 4)


def test_the_budget_is_spent_to_the_token(stepped: Stepped, passing: Scheduler):
    jobs = [
        Job(asking([[sample(stepped, "a b", tokens=32)]]), max_model_tokens=most) for most in (1, 2, 3, 9, 33)
    ]
    passing.submit(*(job.ticket for job in jobs))
    ends = [job.wait()[1] for job in jobs]
    assert [finished.model_tokens for finished in ends] == [2, 2, 3, 9, 33]
    reasons = [finished.outcome and finished.outcome.stop_reason.value for finished in ends]
    assert reasons == ["budget"] * 4 + ["eos"]  # an answer that is complete is not taken back


def test_a_deadline_does_not_wait_for_the_end_of_a_long_sample(stepped: Stepped, passing: Scheduler):
    job = Job(asking([[sample(stepped, "a", tokens=99)]]), deadline_s=0.1)
    stepped.at = dict.fromkeys(range(1, 100), lambda: time.sleep(0.02))
    passing.submit(job.ticket)
    assert job.outcome().stop_reason is StopReason.DEADLINE
    assert len(stepped.passes) < 20


def test_stop_ends_every_search_at_the_pass_in_progress(stepped: Stepped, passing: Scheduler):
    entered, gate = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        assert gate.wait(20)

    stepped.at[3] = wait
    jobs = [Job(asking([[sample(stepped, text, tokens=32)]] * 9)) for text in "abc"]
    passing.submit(*(job.ticket for job in jobs))
    assert entered.wait(10)
    stopping = threading.Thread(target=passing.stop)
    stopping.start()
    while not all(job.ticket.cancelled for job in jobs):
        time.sleep(0.001)
    assert stopping.is_alive()
    gate.set()
    stopping.join(10)
    assert not stopping.is_alive()
    assert [job.outcome().stop_reason for job in jobs] == [StopReason.CANCELLED] * 3
    assert len(stepped.passes) == 3
    late = Job(asking([[sample(stepped, "late")]]))
    passing.submit(late.ticket)
    assert late.outcome().stop_reason is StopReason.CANCELLED
    assert len(stepped.passes) == 3


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


def test_who_leaves_the_line_is_told_while_the_others_run(stepped: Stepped):
    scheduler = Scheduler(stepped, stepped, Embedding, max_running=1)
    jobs = [Job(asking([[sample(stepped, text, tokens=6)]])) for text in "abc"]
    told = []
    stepped.at = {3: jobs[1].ticket.cancel, 5: lambda: told.append([job.ticket.finished for job in jobs])}
    scheduler.submit(*(job.ticket for job in jobs))
    assert [job.outcome().stop_reason.value for job in jobs] == ["eos", "cancelled", "eos"]
    assert told == [[False, True, False]]
    assert stepped.texts == ["a"] * 6 + ["c"] * 6


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


@pytest.mark.timeout(60)
@pytest.mark.parametrize("at_once", [False, True])
def test_searches_that_come_and_go_at_random_all_end(at_once: bool):
    model = Model(babble) if at_once else Stepped(babble)
    if isinstance(model, Stepped):
        model.poison["bad"] = lambda job: ValueError("out of memory")
    else:
        model.poison["bad"] = ValueError("out of memory")
    scheduler = Scheduler(model, model, Embedding, max_running=5)
    rng = random.Random(at_once)
    plans = [[rng.random() for _ in range(30)] for _ in range(6)]
    ended: Counter[str] = Counter()

    def come_and_go(plan: list[float], i: int) -> None:
        for k, chance in enumerate(plan):
            text = "bad" if chance < 0.1 else f"{i} {k}"
            rounds: list[list[Request]] = [
                [sample(model, text, tokens=1 + int(chance * 9)), score(model, "q")],
                [Embed((text,)), sample(model, "z", tokens=3)],
            ]
            limits = (
                {"deadline_s": 0.002} if chance > 0.8 else {"max_model_tokens": 3} if chance > 0.7 else {}
            )
            job = Job(asking(rounds), **limits)
            scheduler.submit(job.ticket)
            if 0.1 <= chance < 0.4:
                time.sleep(chance / 100)
                job.ticket.cancel()
            ended[job.outcome().stop_reason.value] += 1

    threads = [threading.Thread(target=come_and_go, args=(plan, i)) for i, plan in enumerate(plans)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert ended.total() == 180
    assert ended["error"] == sum(chance < 0.1 for plan in plans for chance in plan) > 0
    assert ended["eos"] > 0
    assert worker_has_ended()


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
