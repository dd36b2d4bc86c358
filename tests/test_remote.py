"""The scheduler with a model elsewhere: it sends, sleeps until something happens, and calls back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest

from rain_llm import Rain, RainSettings, SearchError, ServerError, StopReason
from rain_llm.models.base import PendingRequest, RemoteModel
from rain_llm.models.scripted import END, ScriptedModel, script
from rain_llm.requests import Reply, Request, Sample, Samples, Score, Scores
from rain_llm.scheduler import Scheduler
from rain_llm.types import TokenIds
from tests.test_scheduler import Job, asking, sample, score, worker_has_ended

GONE = ServerError("http://there", "broke off", "start it again")


@dataclass(eq=False)
class Sent:
    """A request that is answered when the test says so."""

    request: Sample | Score
    search: object
    deadline: float | None
    done: Callable[[], None]
    reply: Samples | Scores | None = None
    error: Exception | None = None
    model_tokens: int = 0
    forwards: int = 0


class Elsewhere(ScriptedModel):
    """Answers from another thread: at once, or when it is told to (``held``)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.held = False
        self.rounds: list[list[Sent]] = []
        self.recalled: list[PendingRequest] = []
        self.arrived = threading.Event()

    def send(
        self,
        requests: Sequence[Sample | Score],
        search: object,
        deadline: float | None,
        done: Callable[[], None],
    ) -> list[Sent]:
        sent = [Sent(request, search, deadline, done) for request in requests]
        self.rounds.append(sent)
        self.arrived.set()
        if not self.held:
            threading.Thread(target=self.answer, args=(sent,)).start()
        return sent

    def recall(self, all_pending: Sequence[PendingRequest]) -> None:
        self.recalled += [pending for pending in all_pending if pending.reply is None]

    def answer(self, sent: Sequence[Sent], error: Exception | None = None) -> None:
        for one in sent:
            if error is None:
                request = one.request
                reply = self.sample([request]) if isinstance(request, Sample) else self.score([request])
                one.model_tokens, one.forwards = reply[0].model_tokens, reply[0].forwards
                one.reply = reply[0]
            one.error = error
            one.done()


@pytest.fixture
def model() -> Elsewhere:
    return Elsewhere(script({"": {" la": 1.0}}), lambda question, label: -float(len(question)))


@pytest.fixture
def scheduler(model: Elsewhere) -> Iterator[Scheduler]:
    yield Scheduler(model, model, lambda: pytest.fail("nobody embeds"))
    assert worker_has_ended()


def test_the_double_keeps_the_protocol(model: Elsewhere):
    assert isinstance(model, RemoteModel)
    assert not isinstance(ScriptedModel(script({})), RemoteModel)


def test_a_round_is_sent_together_and_answered_in_order(model: Elsewhere, scheduler: Scheduler):
    requests: list[Request] = [sample(model, "a"), score(model, "abc"), sample(model, "b", n=2)]
    job = Job(asking([requests, requests[:1]], lambda replies: f"{len(replies)}"))
    scheduler.submit(job.ticket)
    steps, finished = job.wait()
    assert [step.text for step in steps] == ["3", "1"]
    assert [[one.request for one in sent] for sent in model.rounds] == [requests, requests[:1]]
    assert {one.search for sent in model.rounds for one in sent} == {job.ticket}
    assert finished.model_tokens == sum(one.model_tokens for sent in model.rounds for one in sent)
    assert finished.evaluation_tokens == model.rounds[0][1].model_tokens
    assert finished.forwards == 2  # one for each round


def test_searches_do_not_wait_for_each_other(model: Elsewhere, scheduler: Scheduler):
    model.held = True
    slow = Job(asking([[sample(model, "slow")]]))
    scheduler.submit(slow.ticket)
    assert model.arrived.wait(5)
    model.held = False
    for _ in range(20):
        quick = Job(asking([[sample(model, "quick")]] * 5))
        scheduler.submit(quick.ticket)
        assert quick.outcome().stop_reason is StopReason.EOS
    assert slow.events.empty()
    model.answer(model.rounds[0])
    assert slow.outcome().stop_reason is StopReason.EOS


def test_hundreds_run_at_once(model: Elsewhere, scheduler: Scheduler):
    model.held = True
    jobs = [Job(asking([[sample(model, f"w{i}")]])) for i in range(300)]
    scheduler.submit(*(job.ticket for job in jobs))
    end = time.monotonic() + 10
    while len(model.rounds) < 300:
        assert time.monotonic() < end
        time.sleep(0.01)
    for sent in list(model.rounds):
        model.answer(sent)
    assert all(job.outcome().stop_reason is StopReason.EOS for job in jobs)


def test_the_worker_sleeps_while_it_waits(model: Elsewhere, scheduler: Scheduler):
    model.held = True
    job = Job(asking([[sample(model, "a")]]))
    scheduler.submit(job.ticket)
    assert model.arrived.wait(5)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1
    model.answer(model.rounds[0])
    assert job.outcome().stop_reason is StopReason.EOS


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_limit_wakes_the_worker_and_calls_requests_back(model: Elsewhere, scheduler: Scheduler, how: str):
    model.held = True
    limits = {"deadline_s": 0.2} if how == "deadline" else {}
    job = Job(asking([[sample(model, "a"), score(model, "b")]]), **limits)
    began = time.monotonic()
    scheduler.submit(job.ticket)
    assert model.arrived.wait(5)
    if how == "cancel":
        job.ticket.cancel()
    reason = job.outcome().stop_reason
    assert reason is (StopReason.CANCELLED if how == "cancel" else StopReason.DEADLINE)
    assert time.monotonic() - began < 10  # long before any nap is over
    assert model.recalled == model.rounds[0]
    if how == "deadline":
        assert model.rounds[0][0].deadline == job.ticket.deadline


def test_who_waits_in_line_for_a_place_meets_its_deadline(model: Elsewhere):
    scheduler = Scheduler(model, model, lambda: pytest.fail("nobody embeds"), max_running=1)
    model.held = True
    first = Job(asking([[sample(model, "a")]]))
    second = Job(asking([[sample(model, "b")]]), deadline_s=0.1)
    scheduler.submit(first.ticket, second.ticket)
    assert second.outcome().stop_reason is StopReason.DEADLINE
    model.answer(model.rounds[0])
    assert first.outcome().stop_reason is StopReason.EOS
    assert worker_has_ended()


def test_an_error_ends_its_search_only_and_calls_the_rest_of_the_round_back(
    model: Elsewhere, scheduler: Scheduler
):
    model.held = True
    job = Job(asking([[sample(model, "a"), score(model, "b")]]))
    other = Job(asking([[sample(model, "c")]]))
    scheduler.submit(job.ticket, other.ticket)
    end = time.monotonic() + 5
    while len(model.rounds) < 2 and time.monotonic() < end:
        time.sleep(0.005)
    model.answer(model.rounds[0][:1], GONE)
    finished = job.wait()[1]
    assert finished.cause is GONE
    assert finished.outcome is not None and finished.outcome.stop_reason is StopReason.ERROR
    assert model.rounds[0][1] in model.recalled
    model.answer(model.rounds[1])
    assert other.outcome().stop_reason is StopReason.EOS


def test_what_was_answered_before_a_limit_is_charged(model: Elsewhere, scheduler: Scheduler):
    model.held = True
    job = Job(asking([[sample(model, "a b c"), score(model, "b")]]))
    scheduler.submit(job.ticket)
    assert model.arrived.wait(5)
    model.answer(model.rounds[0][:1])
    job.ticket.cancel()
    assert job.wait()[1].model_tokens == model.rounds[0][0].model_tokens > 0


def test_a_request_that_cannot_be_sent_calls_back_what_was_sent_with_it(model: Elsewhere):
    class Refusing(Elsewhere):
        def send(
            self,
            requests: Sequence[Sample | Score],
            search: object,
            deadline: float | None,
            done: Callable[[], None],
        ) -> list[Sent]:
            raise GONE

    model.held = True
    judge = Refusing(script({}))
    scheduler = Scheduler(model, judge, lambda: pytest.fail("nobody embeds"))
    job = Job(asking([[sample(model, "a"), score(model, "b")]]))
    scheduler.submit(job.ticket)
    assert job.wait()[1].cause is GONE
    assert model.recalled == model.rounds[0]
    assert worker_has_ended()


@pytest.mark.parametrize("elsewhere", ["writer", "judge"])
def test_one_model_may_be_here_and_the_other_elsewhere(elsewhere: str):
    table = script({"": {" good": 1.0, " bad": 1.0, END: 0.5}})

    def opinion(question: str, label: str) -> float:
        return -0.1 if (" bad" in question) == (label.strip() == "No") else -3.0

    here, there = ScriptedModel(table, opinion), Elsewhere(table, opinion)
    writer, judge = (there, here) if elsewhere == "writer" else (here, there)
    settings = RainSettings().updated(generation={"max_new_tokens": 12})
    mixed = Rain(settings, model=writer, judge=judge).generate_batch([f"It is {i}" for i in range(8)])
    alike = Rain(settings, model=here).generate_batch([f"It is {i}" for i in range(8)])
    assert [result.text for result in mixed] == [result.text for result in alike]
    assert there.rounds


def test_a_tokenizer_that_fails_in_the_middle_loses_nothing():
    class Failing(ScriptedModel):
        def encode(self, text: str) -> TokenIds:
            if len(self.requests) > 8:
                raise GONE
            return super().encode(text)

    model = Failing(script({"": {" la": 1.0}}), lambda question, label: -1.0)
    rain = Rain(RainSettings().updated(generation={"max_new_tokens": 400}, on_unsafe="best"), model=model)
    seen = ""
    with pytest.raises(SearchError, match="http://there: broke off: start it again") as caught:
        for step in rain.stream("Sing"):
            seen += step.text
    result = caught.value.result
    assert result.text.startswith(seen) and seen.startswith(" la la")
    assert result.stop_reason is StopReason.ERROR


def test_a_deadline_in_the_far_future_is_waited_for_in_naps(model: Elsewhere, scheduler: Scheduler):
    model.held = True
    job = Job(asking([[sample(model, "a")]]), deadline_s=1e12)
    scheduler.submit(job.ticket)
    assert model.arrived.wait(5)
    model.answer(model.rounds[0])
    assert job.outcome().stop_reason is StopReason.EOS


class SlowText(Elsewhere):
    """A model whose tokenizer is elsewhere too: a text with "slow" waits until it is allowed."""

    encodes_remotely = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.waiting = threading.Event()
        self.allowed = threading.Event()

    def encode(self, text: str) -> TokenIds:
        if "slow" in text and threading.current_thread() is not threading.main_thread():
            self.waiting.set()
            assert self.allowed.wait(10)
        return super().encode(text)


def test_a_search_that_waits_for_a_tokenizer_delays_no_other():
    model = SlowText(script({"": {" la": 1.0}}), lambda question, label: -1.0)
    rain = Rain(RainSettings().updated(generation={"max_new_tokens": 8}, on_unsafe="best"), model=model)
    alone = rain.generate("A quick one").text
    slow = rain.stream("A slow one")
    found: list[str] = []
    listening = threading.Thread(target=lambda: found.append("".join(step.text for step in slow)))
    listening.start()
    try:
        assert model.waiting.wait(5)
        others = rain.generate_batch(
            ["A quick one"] * 3, settings=rain.settings.updated(search={"deadline_s": 5})
        )
        assert [other.text for other in others] == [alone] * 3
        assert all(other.stop_reason is StopReason.LENGTH for other in others)
        assert found == []
    finally:
        model.allowed.set()
    listening.join(10)
    assert found and found[0].startswith(" la")


def test_a_search_that_waits_for_a_tokenizer_can_be_cancelled():
    model = SlowText(script({"": {" la": 1.0}}), lambda question, label: -1.0)
    scheduler = Scheduler(model, model, lambda: pytest.fail("nobody embeds"))

    def read(replies: Sequence[Reply]) -> str:
        model.encode("slow")
        return "x"

    job = Job(asking([[sample(model, "a")], [sample(model, "b")]], read))
    scheduler.submit(job.ticket)
    assert model.waiting.wait(5)
    job.ticket.cancel()
    model.allowed.set()
    assert job.outcome().stop_reason is StopReason.CANCELLED
    assert len(model.rounds) == 1
    assert worker_has_ended()
