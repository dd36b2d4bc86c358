"""The clock of an answer starts at the call: connecting, probing and waiting for others are on it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from rain_llm import Rain, RainSettings, ServerError, StopReason
from rain_llm.clock import Call, GivenUp, current, held, result_of, working_for
from rain_llm.errors import ModelError
from tests.servers.process import Server
from tests.servers.scripted import control, scripted_server, stats

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

SOON = 1.2  # seconds until a deadline of 0.4 s must have been met, on a busy machine
PATHS = ("/v1/models", "/props", "/tokenize", "/v1/completions")


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with scripted_server("llama") as server:
        yield server


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    yield running
    control(running, forget=True)


COUNTED = iter(range(10**6))


def rain(server: Server, deadline_s: float | None = 0.4, **limits: float) -> Rain:
    """Return one whose model nobody has connected to yet."""
    waits = {"read_s": 30.0, "total_s": 30 + next(COUNTED) / 1000} | limits
    settings = RainSettings().updated(
        model={"base_url": server.url, "limits": waits},
        search={"deadline_s": deadline_s},
        generation={"max_new_tokens": 8},
        evaluation={"criteria": ["civility"]},
        on_unsafe="best",
    )
    return Rain(settings)


async def _drain(stream: Any) -> list[Any]:
    return [step async for step in stream]


CALLS: dict[str, Callable[[Rain], Any]] = {
    "generate": lambda r: r.generate("Hi"),
    "stream": lambda r: list(r.stream("Hi")),
    "agenerate": lambda r: asyncio.run(r.agenerate("Hi")),
    "astream": lambda r: asyncio.run(_drain(r.astream("Hi"))),
    "judge": lambda r: r.judge("Hi", "Hello."),
    "ajudge": lambda r: asyncio.run(r.ajudge("Hi", "Hello.")),
    "batch": lambda r: r.generate_batch(["Hi", "Ho"]),
    "plain": lambda r: r.plain("Hi"),
    "plain_batch": lambda r: r.plain_batch(["Hi"]),
    "plain_stream": lambda r: list(r.plain_stream("Hi")),
    "plain_astream": lambda r: asyncio.run(_drain(r.plain_astream("Hi"))),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_server_that_hangs_at_the_start_is_an_error_at_the_deadline(call: str, server: Server):
    control(server, "hang", path="/v1/models")
    began = time.monotonic()
    with pytest.raises(ServerError, match=r"within search\.deadline_s = 0\.2") as raised:
        CALLS[call](rain(server, 0.2))
    assert 0.15 < time.monotonic() - began < SOON
    assert raised.value.server == server.url
    assert "raise search.deadline_s" in raised.value.remedy


@pytest.mark.parametrize("path", PATHS[1:])
def test_whatever_hangs_at_the_start_the_deadline_holds(path: str, server: Server):
    control(server, "hang", path=path)
    began = time.monotonic()
    with pytest.raises(ServerError, match=r"search\.deadline_s"):
        rain(server).generate("Hi")
    assert time.monotonic() - began < SOON


def test_a_text_that_is_encoded_elsewhere_is_waited_for_no_longer(server: Server):
    ready = rain(server)
    ready.runtime.writer.encode("Hi")
    control(server, "hang", path="/tokenize")
    began = time.monotonic()
    with pytest.raises(ServerError, match=r"no answer in time .*raise search\.deadline_s"):
        ready.generate("Something else")
    assert time.monotonic() - began < SOON


def test_probing_counts_for_the_answer(server: Server):
    control(server, delay=0.15)  # seconds a completion; connecting needs five
    began = time.monotonic()
    result = rain(server, 2.0).generate("Hi")
    control(server, delay=0)
    assert result.stop_reason is StopReason.DEADLINE
    assert 1.95 < time.monotonic() - began < 2.4


def test_calls_that_share_a_probe_meet_their_own_deadlines(server: Server):
    control(server, "hang", path="/v1/models")
    shared = rain(server)
    longer = shared.settings.updated(search={"deadline_s": 0.9})
    took: dict[str, float] = {}

    def ask(name: str, settings: RainSettings) -> None:
        began = time.monotonic()
        with pytest.raises(ServerError, match="deadline_s"):
            (shared if name != "another" else Rain(settings)).generate("Hi", settings=settings)
        took[name] = time.monotonic() - began

    threads = [
        threading.Thread(target=ask, args=(name, settings))
        for name, settings in (("short", shared.settings), ("long", longer), ("another", shared.settings))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert 0.35 < took["short"] < 0.85 < took["long"] < 0.9 + SOON
    assert took["another"] < 0.85
    assert stats(server)["requests"]["/v1/models"] == 1


def test_a_probe_that_outlasts_a_deadline_serves_the_next_call(server: Server):
    control(server, delay=0.3)
    slow = rain(server, 0.3)
    with pytest.raises(ServerError, match="deadline_s"):
        slow.generate("Hi")
    control(server, delay=0)
    end = time.monotonic() + 10
    while stats(server)["requests"].get("/v1/models", 0) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.5)  # the second reply is read
    assert slow.generate("Hi").stop_reason is not None
    assert stats(server)["requests"]["/v1/models"] == 2  # by the one probe: its vocabulary too


def test_a_probe_that_failed_is_made_again(server: Server):
    control(server, "500", path="/v1/models", times=1)
    again = rain(server, None)
    with pytest.raises(ServerError, match="status 500"):
        again.generate("Hi")
    assert again.generate("Hi").text


def test_a_call_that_is_cancelled_while_a_server_is_probed_ends_at_once(server: Server):
    control(server, "hang", path="/v1/models")

    async def give_up() -> float:
        task = asyncio.create_task(rain(server, None).agenerate("Hi"))
        await asyncio.to_thread(wait_for, server)
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return began

    began = asyncio.run(give_up())  # which waits for its threads
    assert time.monotonic() - began < SOON


def wait_for(server: Server) -> None:
    end = time.monotonic() + 5
    while not stats(server)["requests"].get("/v1/models") and time.monotonic() < end:
        time.sleep(0.01)


def test_closing_a_stream_frees_a_search_that_waits_for_a_tokenizer(server: Server):
    """The scheduler's thread encodes what the judge is asked: nobody else may wait for it."""
    ready = rain(server, None)
    stream = ready.stream("Hi")
    control(server, "hang", path="/tokenize")
    listening = threading.Thread(target=lambda: list(stream), daemon=True)
    listening.start()
    end = time.monotonic() + 5
    while not ready.runtime.scheduler._running and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.2)
    began = time.monotonic()
    ready.runtime.scheduler._running[0].cancel()
    listening.join(5)
    assert not listening.is_alive()
    assert time.monotonic() - began < SOON


LEAVING = """
import sys, threading, time
from rain_llm import Rain, RainSettings
settings = RainSettings().updated(model={{"base_url": {url!r}}}, search={{"deadline_s": 0.3}})
try:
    Rain(settings).generate("Hi")
except Exception as error:
    print(type(error).__name__)
"""


def test_a_program_ends_though_a_server_is_still_being_probed(server: Server):
    control(server, "hang", path="/v1/models")
    command = [sys.executable, "-c", LEAVING.format(url=server.url)]
    ended = subprocess.run(command, capture_output=True, timeout=20, text=True)
    assert (ended.stdout, ended.returncode, ended.stderr) == ("ServerError\n", 0, "")


# --- the parts ------------------------------------------------------------------------------------------


def test_a_wait_ends_at_its_time_or_with_its_call():
    never: Future[int] = Future()
    with pytest.raises(TimeoutError):
        result_of(never, 0.01)
    call = Call()
    threading.Timer(0.05, call.end).start()
    began = time.monotonic()
    with working_for(call), pytest.raises(GivenUp):
        result_of(never, 5)
    assert time.monotonic() - began < 1
    call.end()
    assert current() is not call


def test_a_lock_is_waited_for_until_the_deadline():
    lock = threading.Lock()
    with (
        lock,
        working_for(Call(0.1)),
        pytest.raises(ModelError, match=r"search\.deadline_s = 0\.1"),
        held(lock),
    ):
        pytest.fail("it is held elsewhere")
    call = Call()
    call.end()
    with lock, working_for(call), pytest.raises(GivenUp), held(lock):
        pytest.fail("it is held elsewhere")
    with held(lock):
        assert lock.locked()
    assert not lock.locked()


def test_a_search_that_waits_for_the_tokenizer_delays_no_other(server: Server):
    patient = rain(server, 30.0, read_s=6.0)
    quick = patient.generate("Good day").text
    control(server, delay=1.5, forget=True)
    stream = patient.stream("Good people")  # whose prompt is encoded here
    ended: list[str] = []
    slow = threading.Thread(target=lambda: ended.append("".join(step.text for step in stream)))
    slow.start()
    end = time.monotonic() + 5
    while not stats(server)["in_flight"] and time.monotonic() < end:
        time.sleep(0.01)
    encoded = stats(server)["requests"].get("/tokenize", 0)
    control(server, "hang", path="/tokenize", times=1, delay=0)  # met by the question, in the search
    while stats(server)["requests"].get("/tokenize", 0) == encoded and time.monotonic() < end:
        time.sleep(0.01)
    began = time.monotonic()
    assert patient.generate("Good day").text == quick
    assert time.monotonic() - began < 4  # the other one still waits
    assert not ended
    slow.join(15)
    assert ended and ended[0]
