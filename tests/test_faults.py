"""Servers that die, hang, lie and refuse, under searches by the public API: nothing unjudged comes out.

Each server is a process of its own: llama-server with the embedded model, or a scripted one that answers
alike at every run, so that a search that went on after a fault can be held against one that met none.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import run
from typing import Any, Literal

import pytest

from rain_llm import Rain, RainResult, RainSettings, Step
from rain_llm.criteria.criterion import Criterion
from rain_llm.errors import (
    ModelError,
    ModelNotFoundError,
    PromptError,
    PromptTooLongError,
    SearchError,
    ServerError,
    SettingsError,
)
from rain_llm.errors import ModelNotSupportedError as Unsupported
from rain_llm.models.scripted import ScriptedModel, script
from rain_llm.models.servers.completions import CompletionsModel
from rain_llm.types import StopReason
from tests.servers import babble
from tests.servers.process import Server, free_port
from tests.servers.scripted import control, prompts, scripted_server, stats

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

Dialect = Literal["vllm", "llama"]
KEY = "sk-do-not-tell"
TOTAL_S = 2.5
SLACK_S = 1.0  # of a busy machine
SECONDS = (
    1 + i / 1000 for i in itertools.count()
)  # other settings: a model that has met no other test's faults
PROMPT = "Good day people, it is I"
KIND = Criterion(
    name="kindness",
    labels=(("kind", "cruel"),),
    frames=("Text: {text}\nTone:",),
    calibration=None,
    threshold=0.5,
)
BAD = ("unsafe", "incorrect", "polite", "hostile", "wrong")  # what a judge may dislike
REMEDY = re.compile(r": (give|use|start|check|see|look|let|shorten|it is overloaded or starting: wait)\b")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the scripted model's tokenizer: vLLM's own is not asked."""
    return str(babble.write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def model(*urls: str, **limits: float) -> dict[str, Any]:
    return {
        "base_url": urls,
        "api_key": KEY,
        "limits": {"connect_s": next(SECONDS), "read_s": 1.0, "total_s": TOTAL_S, "attempts": 2} | limits,
    }


def settings(writer: dict[str, Any], **parts: Any) -> RainSettings:
    start: dict[str, Any] = {
        "model": writer,
        "generation": {"max_new_tokens": 24},
        "search": {"simulation_tokens": 8, "iterations": 4},
        "evaluation": {"criteria": (KIND,)},
        "on_unsafe": "refuse",
    }
    return RainSettings.model_validate(
        {name: (start.get(name, {}) | parts[name] if name in parts else start[name]) for name in start}
    )


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Server]]:
    """A scripted server of each dialect, with a key."""
    with scripted_server("vllm", key=KEY) as vllm, scripted_server("llama", key=KEY) as llama:
        yield {"vllm": vllm, "llama": llama}


Make = Callable[..., tuple[Server, RainSettings]]


@pytest.fixture
def made(servers: dict[str, Server], tokenizer: str) -> Iterator[Make]:
    """Give a server without a fault, and settings with a model on it that nobody else uses."""

    def make(dialect: Dialect, url: str = "", **limits: float) -> tuple[Server, RainSettings]:
        server = servers[dialect]
        writer = model(url or server.url, **limits)
        return server, settings(writer | ({"tokenizer": tokenizer} if dialect == "vllm" else {}))

    for server in servers.values():
        control(server, delay=0)
    yield make
    for server in servers.values():
        control(server, delay=0)
        wait_until(partial(idle, server))


def totals(rain: Rain) -> Any:
    writer = rain.runtime.writer
    assert isinstance(writer, CompletionsModel)
    return writer.totals.http


def told(error: BaseException, url: str) -> None:
    """Check that an error names the server, a cause and a remedy, and neither the key nor the prompt."""
    message = str(error)
    assert url in message
    assert REMEDY.search(message), message
    cause = error.__cause__ if isinstance(error, SearchError) else error
    if isinstance(cause, ServerError):
        assert cause.server == url
        assert cause.cause in message
        assert cause.remedy in message
    everything = message + "".join(traceback.format_exception(error))
    assert KEY not in everything
    assert PROMPT not in everything


def pieces(steps: tuple[Step, ...]) -> set[str]:
    """Return the texts that had been accepted, and nothing else, as the answer grew."""
    texts = {""}
    so_far = ""
    for step in steps:
        assert step.accepted
        assert step.refusal or step.verdict is None or step.verdict.passed
        so_far += step.text
        texts.add(so_far)
    return texts


def clean(result: RainResult, reference: RainResult) -> None:
    """Check that a broken-off answer is the beginning of the whole one, up to one of its commitments."""
    assert result.text == "".join(step.text for step in result.trace.steps)
    assert result.text in pieces(reference.trace.steps)
    assert pieces(result.trace.steps) <= pieces(reference.trace.steps)
    assert result.accepted == (result.verdict is not None)  # without any verdict there is nothing to accept


def rewound(result: RainResult) -> bool:
    return any(not candidate.chosen for step in result.trace.steps for candidate in step.candidates)


def broken(work: Callable[[], object]) -> tuple[SearchError, float]:
    """Return the error that a search ends with, and the seconds until then."""
    began = time.monotonic()
    with pytest.raises(SearchError) as raised:
        work()
    return raised.value, time.monotonic() - began


def idle(server: Server) -> bool:
    return bool(stats(server)["in_flight"] == 0)


def kill(*servers: Server) -> None:
    for server in servers:
        server.kill()


def wait_until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


# --- llama-server, killed and frozen --------------------------------------------------------------------


@pytest.fixture
def lively(llama: Server) -> Iterator[Server]:
    """llama-server, which is there again afterwards."""
    yield llama
    with contextlib.suppress(ProcessLookupError):
        llama.signal(signal.SIGCONT)
    llama.restart()


def real(server: Server, **limits: float) -> Rain:
    content = KIND.model_copy(update={"threshold": 0.0})  # it is not the judge that is tried here
    return Rain(
        settings(
            model(server.url, read_s=5, **limits),
            generation={"max_new_tokens": 32},
            search={"iterations": 1, "simulation_tokens": 6},
            evaluation={"criteria": (content,)},
        )
    )


@pytest.mark.real
def test_a_search_goes_on_where_a_killed_server_comes_back(lively: Server) -> None:
    rain = real(lively, total_s=30)
    stream = rain.stream("Once upon a time")
    steps = [next(stream)]
    lively.kill()
    lively.start()
    steps += list(stream)
    result = steps[-1].result
    assert result is not None
    assert totals(rain).retries > 0
    assert result.stop_reason in (StopReason.LENGTH, StopReason.EOS)
    assert steps[0].text
    assert result.text == "".join(step.text for step in steps)
    assert pieces(result.trace.steps) >= {steps[0].text, result.text}


@pytest.mark.real
@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_a_search_gives_up_where_a_server_stays_away(lively: Server, death: signal.Signals) -> None:
    rain = real(lively, total_s=2) if death != signal.SIGSTOP else real(lively, total_s=6)
    rain.runtime  # noqa: B018 - loads it before the clock runs
    stream = rain.stream("Once upon a time")
    steps = [next(stream)]
    lively.signal(death)
    error, took = broken(lambda: steps.extend(stream))
    told(error, lively.url)
    assert took < 8
    assert error.result.stop_reason is StopReason.ERROR
    assert error.result.text == "".join(step.text for step in steps)
    assert error.result.text
    pieces(error.result.trace.steps)


@pytest.mark.real
def test_a_search_outlasts_a_server_that_was_frozen(lively: Server) -> None:
    rain = real(lively, total_s=30)
    stream = rain.stream("Once upon a time")
    steps = [next(stream)]
    lively.signal(signal.SIGSTOP)
    thawing = threading.Timer(0.5, lively.signal, [signal.SIGCONT])
    thawing.start()
    steps += list(stream)
    thawing.join()
    result = steps[-1].result
    assert result is not None
    assert result.text == "".join(step.text for step in steps)


# --- a fault that passes, and one that stays ------------------------------------------------------------

PASSING = ("500", "503", "429", "html", "wrong_json", "hang", "trickle", "cut", "clip", "no_ids", "abort")
READ_OTHERWISE = ("cut", "clip", "clip_output", "no_ids", "abort")  # by vLLM's dialect


@pytest.mark.parametrize(
    ("dialect", "fault"),
    [("llama", fault) for fault in (*PASSING, "cut_stream")] + [("vllm", f) for f in READ_OTHERWISE[2:]],
)
def test_a_fault_that_passes_changes_no_answer(dialect: Dialect, fault: str, made: Make) -> None:
    server, chosen = made(dialect, total_s=20, attempts=4)
    rain = Rain(chosen)
    reference = rain.generate(PROMPT)
    assert rewound(reference)  # something was judged and not taken
    before = totals(rain).retries
    control(server, fault, times=2, after=5, retry_after=0.3)
    result = rain.generate(PROMPT)
    assert result.text == reference.text
    assert totals(rain).retries > before
    clean(result, reference)


@pytest.mark.parametrize(
    ("dialect", "fault"),
    [("llama", fault) for fault in (*PASSING, "cut_stream", "clip_output", "refuse", "ignore_bias")]
    + [("vllm", fault) for fault in READ_OTHERWISE],
)
def test_a_fault_that_stays_ends_a_search_with_what_was_accepted(
    dialect: Dialect, fault: str, made: Make
) -> None:
    server, chosen = made(dialect)
    rain = Rain(chosen)
    reference = rain.generate(PROMPT)
    control(server, fault, after=9, retry_after=0.3)
    error, took = broken(lambda: rain.generate(PROMPT))
    told(error, server.url)
    assert took < TOTAL_S + SLACK_S
    clean(error.result, reference)
    assert error.result.text != reference.text


def test_many_questions_wait_for_a_dead_server_once(made: Make) -> None:
    """Questions that failed together are not asked again one by one, each for its own time limit."""
    frames = tuple(f"{letter} text: {{text}}\nTone:" for letter in "ABCDEF")
    server, chosen = made("llama")
    rain = Rain(chosen.updated(evaluation={"criteria": (KIND.model_copy(update={"frames": frames}),)}))
    rain.generate(PROMPT)
    control(server, "hang", after=7)
    error, took = broken(lambda: rain.generate(PROMPT))
    told(error, server.url)
    assert took < TOTAL_S + SLACK_S


def test_a_server_that_asks_to_be_left_alone_for_no_time_is_not_stormed(made: Make) -> None:
    server, chosen = made("llama")
    rain = Rain(chosen)
    rain.generate(PROMPT)
    before = totals(rain).requests
    control(server, "429", retry_after=0)
    error, _ = broken(lambda: rain.generate(PROMPT))
    told(error, server.url)
    assert totals(rain).requests - before < 100  # without a pause: thousands


# --- replies that are of another shape ------------------------------------------------------------------


@contextlib.contextmanager
def between(
    server: Server, change: Callable[[bytes], bytes], header: tuple[str, str] = ("X-Through", "1")
) -> Iterator[tuple[str, threading.Event]]:
    """Stand between a server and its clients; change every reply on a completion once the event is set."""
    changing = threading.Event()

    class Passing(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and content go together

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            connection = HTTPConnection(server.url.removeprefix("http://"), timeout=5)
            with contextlib.closing(connection):
                key = {"Authorization": self.headers["Authorization"]}
                connection.request(self.command, self.path, sent or None, key)
                reply = connection.getresponse()
                content = reply.read()
            strikes = self.path == "/v1/completions" and changing.is_set()
            content = change(content) if strikes else content
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.headers["Content-Type"])
            self.send_header("Content-Length", str(len(content)))
            if strikes:
                self.send_header(*header)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Passing)
    proxy.daemon_threads = True
    thread = threading.Thread(target=proxy.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_address[1]}", changing
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()


def numbers(told: bytes) -> Callable[[bytes], bytes]:
    """Put something else in the place of every log-probability and probability."""
    return lambda content: re.sub(rb"-?\d+\.\d+(e-?\d+)?", told, content)


def ids(told: bytes) -> Callable[[bytes], bytes]:
    """Put something else in the place of the ids of what was drawn."""
    return lambda content: re.sub(rb'("id": ?|"token_ids": ?\[)\d+', rb"\g<1>" + told, content)


SHAPES: dict[str, Callable[[bytes], bytes]] = {
    "not a number": numbers(b"NaN"),
    "infinite": numbers(b"-Infinity"),
    "above 0": numbers(b"7.5"),
    "words": numbers(b'"likely"'),
    "nothing": numbers(b"null"),
    "negative ids": ids(b"-7"),
    "ids of words": ids(b'"good"'),
    "a list": lambda content: b"[1, 2]",
    "null": lambda content: b"null",
    "empty": lambda content: b"",
    "no text": lambda content: b"\xff\xfe" + content,
    "index": lambda content: re.sub(rb'"index": ?0', b'"index":"first"', content),
    "usage": lambda content: re.sub(rb'"cached_tokens": ?\d+', b'"cached_tokens":"many"', content),
}


@pytest.mark.parametrize(
    ("dialect", "shape"),
    [("llama", shape) for shape in SHAPES]
    + [("vllm", shape) for shape in ("not a number", "infinite", "above 0", "negative ids")],
)
def test_a_reply_of_another_shape_is_no_verdict(
    dialect: Dialect, shape: str, servers: dict[str, Server], made: Make
) -> None:
    """Least of all may a log-probability that is none let a text pass."""
    with between(servers[dialect], SHAPES[shape]) as (url, changing):
        _, chosen = made(dialect, url)
        control(servers[dialect], delay=0.01)
        stream = Rain(chosen).stream(PROMPT)
        steps = [next(stream)]
        changing.set()
        error, took = broken(lambda: steps.extend(stream))
    told(error, url)
    assert took < TOTAL_S + SLACK_S
    assert error.result.text == "".join(step.text for step in steps)
    pieces(error.result.trace.steps)


def test_a_reply_that_is_packed_wrongly(servers: dict[str, Server], made: Make) -> None:
    with between(servers["llama"], bytes, ("Content-Encoding", "gzip")) as (url, changing):
        rain = Rain(made("llama", url)[1])
        assert rain.encode(PROMPT)  # asks the server what it needs to know
        changing.set()
        error, _ = broken(lambda: rain.generate(PROMPT))
    told(error, url)


# --- refused at start ----------------------------------------------------------------------------------

CANNOT = ("ignore_n", "no_ids", "clip", "clip_output", "abort")


@pytest.mark.parametrize(
    ("dialect", "fault"),
    [("vllm", fault) for fault in CANNOT] + [("llama", fault) for fault in (*CANNOT, "ignore_bias")],
)
def test_a_server_that_cannot_do_it_is_refused_at_start(dialect: Dialect, fault: str, made: Make) -> None:
    server, chosen = made(dialect)
    control(server, fault)
    with pytest.raises(ModelError, match=r"cannot run a search: it |does not return its tokens") as raised:
        Rain(chosen).generate(PROMPT)
    told(raised.value, server.url)
    assert isinstance(raised.value, ServerError if (dialect, fault) == ("llama", "no_ids") else Unsupported)


@pytest.mark.parametrize("path", ["/v1/models", "/props", "/tokenize", "/v1/completions"])
@pytest.mark.parametrize("fault", ["500", "hang", "cut"])
def test_a_server_that_fails_at_start_is_an_error_within_its_limits(
    path: str, fault: str, made: Make
) -> None:
    server, chosen = made("llama", read_s=0.3)
    control(server, fault, path=path)
    began = time.monotonic()
    with pytest.raises(ServerError) as raised:
        Rain(chosen).generate(PROMPT)
    assert time.monotonic() - began < TOTAL_S + SLACK_S
    told(raised.value, server.url)


@pytest.mark.parametrize("path", ["/v1/models", "/tokenize"])
def test_a_server_that_tells_something_else_at_start(path: str, made: Make) -> None:
    server, chosen = made("llama")
    control(server, "wrong_json", path=path)
    with pytest.raises(ServerError) as raised:
        Rain(chosen).generate(PROMPT)
    told(raised.value, server.url)


@pytest.mark.parametrize("dialect", ["vllm", "llama"])
def test_a_wrong_name_is_told_with_what_is_served(dialect: Dialect, made: Make) -> None:
    server, chosen = made(dialect)
    with pytest.raises(ModelNotFoundError, match="'scripted'") as raised:
        Rain(chosen.updated(model={"name": "wished"})).generate(PROMPT)
    told(raised.value, server.url)


def test_a_server_of_web_pages_is_no_completions_server(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1", "--directory"]
    refused = pytest.raises(ServerError, match=r"no list of models \(/v1/models\)")
    with Server([*command, str(tmp_path)], health="/") as server, refused as raised:
        Rain(settings(model(server.url))).generate(PROMPT)
    told(raised.value, server.url)


def test_an_address_where_nothing_listens_fails_fast() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    began = time.monotonic()
    with pytest.raises(ServerError, match="start the server, or check base_url") as raised:
        Rain(settings(model(url, read_s=60, total_s=180))).generate(PROMPT)
    assert time.monotonic() - began < 2
    told(raised.value, url)


def test_a_prompt_that_is_too_long_is_refused_before_anything_is_sent(made: Make) -> None:
    server, chosen = made("vllm")
    rain = Rain(chosen)
    assert rain.encode(PROMPT)  # the server was asked what it can do
    before = stats(server)["requests"]
    with pytest.raises(PromptError, match=r"exceeds the context of .*scripted, 2048 tokens: shorten"):
        rain.generate("good " * 2020)
    assert stats(server)["requests"] == before


@pytest.mark.parametrize("dialect", ["vllm", "llama"])
def test_a_prompt_that_the_server_finds_too_long_is_an_error_of_that_kind(
    dialect: Dialect, made: Make
) -> None:
    server, chosen = made(dialect)
    rain = Rain(chosen.updated(model={"context_length": 9999}))  # more than it has
    with pytest.raises((SearchError, PromptTooLongError)) as raised:
        rain.generate("good " * 3000)
    cause = raised.value.__cause__ or raised.value
    assert isinstance(cause, PromptTooLongError) and isinstance(cause, ServerError)
    assert cause.server == server.url and "context_length" in cause.remedy


# --- keys ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["vllm", "llama"])
def test_a_wrong_key_is_told_without_it(dialect: Dialect, made: Make) -> None:
    server, chosen = made(dialect)
    wrong = f"{KEY}-of-another"  # the server repeats it
    with pytest.raises(ServerError, match=r"401.*\.\.\..*give the right key as api_key") as raised:
        Rain(chosen.updated(model={"api_key": wrong})).generate(PROMPT)
    told(raised.value, server.url)


@pytest.mark.parametrize("end", ["\n", "\r\n", " "])
def test_a_key_read_from_a_file_ends_where_its_line_does(end: str, made: Make) -> None:
    _, chosen = made("llama")
    assert Rain(chosen.updated(model={"api_key": KEY + end})).generate(PROMPT).text


@pytest.mark.parametrize("sign", ["\n", "\x00", "é", "\r\nX-More: "])
def test_what_can_be_no_key_is_refused_without_it(sign: str, made: Make) -> None:
    _, chosen = made("llama")
    with pytest.raises(SettingsError, match="API key") as raised:
        Rain(chosen.updated(model={"api_key": f"{KEY}{sign}{KEY}"})).generate(PROMPT)
    assert KEY not in "".join(traceback.format_exception(raised.value))


def test_a_key_stands_in_no_result(made: Make) -> None:
    server, chosen = made("llama")
    rain = Rain(chosen)
    result = rain.generate(PROMPT)
    control(server, "500", after=9)
    error, _ = broken(lambda: rain.generate(PROMPT))
    for found in (result, error.result):
        assert KEY not in repr(found)
        assert KEY not in json.dumps(asdict(found))
    assert KEY not in repr(rain.settings) + str(rain.settings) + rain.settings.model_dump_json()
    assert KEY not in repr(vars(rain)) + repr(rain.runtime.writer)


# --- several servers ------------------------------------------------------------------------------------

PROMPTS = [
    f"{PROMPT} and {word}" for word in ("calm", "nice", "good", "sad", "kind", "happy", "true", "safe")
]


def outcomes(rain: Rain, after: int, strike: Callable[[], object]) -> list[RainResult | SearchError]:
    """Run eight searches at once; ``strike`` once ``after`` pieces were committed by all together."""
    committed = threading.Semaphore(0)
    found: list[RainResult | SearchError] = []

    def search(prompt: str) -> None:
        try:
            for step in rain.stream(prompt):
                committed.release()
                if step.result is not None:
                    found.append(step.result)
        except SearchError as error:
            found.append(error)

    threads = [threading.Thread(target=search, args=(prompt,)) for prompt in PROMPTS]
    for thread in threads:
        thread.start()
    for _ in range(after):
        assert committed.acquire(timeout=10)
    strike()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return found


def pair() -> tuple[Server, Server]:
    one, other = (scripted_server("llama", key=KEY, delay=0.01) for _ in range(2))
    return one, other


@pytest.mark.slow
def test_all_searches_end_where_one_of_two_servers_dies() -> None:
    one, other = pair()
    with one, other:
        rain = Rain(settings(model(one.url, other.url, total_s=10)))
        alone = rain.generate_batch(PROMPTS)
        found = outcomes(rain, 6, one.kill)
        assert stats(other)["disconnects"] == 0
    assert sorted(r.text for r in found if isinstance(r, RainResult)) == sorted(r.text for r in alone)
    assert totals(rain).moves >= 1


@pytest.mark.slow
def test_all_searches_end_where_both_servers_die() -> None:
    one, other = pair()
    with one, other:
        rain = Rain(settings(model(one.url, other.url)))
        alone = rain.generate_batch(PROMPTS)
        known = set().union(*(pieces(result.trace.steps) for result in alone))
        found = outcomes(rain, 6, partial(kill, one, other))
    assert len(found) == len(PROMPTS)
    errors = [error for error in found if isinstance(error, SearchError)]
    assert errors
    for error in errors:
        told(error, one.url if one.url in str(error) else other.url)
        assert error.result.text in known


@pytest.mark.slow
def test_a_server_that_comes_back_with_another_model_is_not_asked() -> None:
    one, other = pair()
    with one, other:
        rain = Rain(settings(model(one.url, other.url, total_s=10)))
        reference = rain.generate(PROMPT)
        one.kill()
        wrong = scripted_server("llama", name="wrong", key=KEY, port=int(one.url.rpartition(":")[2]))
        results = rain.generate_batch(PROMPTS)  # one of two is found dead
        with wrong:
            asked = stats(wrong)["requests"].get("/v1/models", 0)
            for _ in range(20):
                assert rain.generate(PROMPT).text == reference.text
                if stats(wrong)["requests"].get("/v1/models", 0) > asked:
                    break
            assert rain.generate_batch(PROMPTS) and results
            assert stats(wrong)["requests"].get("/v1/models", 0) > asked
            assert "/v1/completions" not in stats(wrong)["requests"]


def test_the_only_server_that_comes_back_with_another_model_is_refused() -> None:
    with scripted_server("llama", key=KEY) as server:
        rain = Rain(settings(model(server.url, total_s=10)))
        reference = rain.generate(PROMPT)
        control(server, "hang")
        stream = rain.stream(PROMPT)
        pending: list[Step] = []
        failing = threading.Thread(target=lambda: pending.extend(_until_error(stream)))
        failing.start()
        wait_until(lambda: stats(server)["in_flight"] > 0)
        server.kill()
        with scripted_server(
            "llama", name="wrong", key=KEY, port=int(server.url.rpartition(":")[2])
        ) as wrong:
            failing.join(10)
            assert not failing.is_alive()
            assert "/v1/completions" not in stats(wrong)["requests"]
            error, _ = broken(lambda: rain.generate(PROMPT))
    told(error, server.url)
    assert "serves wrong" in str(error)
    clean(error.result, reference)


def _until_error(stream: Iterator[Step]) -> list[Step]:
    steps = []
    with pytest.raises(SearchError, match="serves wrong"):
        for step in stream:
            steps.append(step)
    return steps


@pytest.mark.slow
def test_a_server_that_was_down_at_start_is_taken_in_once_it_is_there() -> None:
    one, late = pair()
    with one:
        rain = Rain(settings(model(late.url, one.url, total_s=10)))
        reference = rain.generate(PROMPT)
        with late:
            deadline = time.monotonic() + 20
            while not stats(late)["requests"].get("/v1/completions"):
                assert time.monotonic() < deadline
                assert {result.text for result in rain.generate_batch([PROMPT] * 4)} == {reference.text}


# --- deadlines and cancelling ---------------------------------------------------------------------------


def quiet(server: Server, gone: int = 1) -> None:
    """Wait until the server is not working for anybody, and has seen a client go."""
    wait_until(lambda: stats(server)["in_flight"] == 0 and stats(server)["disconnects"] >= gone)


def patient(url: str, **search: float) -> Rain:
    """Limits that strike long after everything in these tests should be over."""
    budget = {"simulation_tokens": 8, "iterations": 4} | search
    return Rain(settings(model(url, read_s=30, total_s=30), search=budget))


@pytest.mark.parametrize("after", [0, 15])
def test_a_deadline_strikes_while_a_request_hangs(after: int) -> None:
    with scripted_server("llama", key=KEY) as server:
        rain = patient(server.url)
        reference = rain.generate(PROMPT)
        hurried = rain.settings.updated(search={"deadline_s": 1.0})
        control(server, "hang", after=after)
        began = time.monotonic()
        result = rain.generate(PROMPT, settings=hurried)
        took = time.monotonic() - began
        assert 0.9 < took < 1.5
        assert result.stop_reason is StopReason.DEADLINE
        clean(result, reference)
        assert bool(result.text) == bool(after)
        quiet(server)


def test_a_deadline_strikes_while_a_tokenizer_hangs() -> None:
    with scripted_server("llama", key=KEY) as server:
        rain = Rain(settings(model(server.url, read_s=3, total_s=3)))
        assert rain.encode(PROMPT)
        control(server, delay=0.02)
        stream = rain.stream(PROMPT, settings=rain.settings.updated(search={"deadline_s": 1.0}))
        began = time.monotonic()
        steps = [next(stream)]
        control(server, "hang", path="/tokenize")
        steps += list(stream)
        assert time.monotonic() - began < 1.5
        result = steps[-1].result
        assert result is not None
        assert result.stop_reason is StopReason.DEADLINE


def test_a_deadline_strikes_while_a_server_is_away() -> None:
    with scripted_server("llama", key=KEY) as server:
        rain = patient(server.url, deadline_s=1.0)
        control(server, delay=0.05)
        stream = rain.stream(PROMPT)
        steps = [next(stream)]
        began = time.monotonic()
        server.kill()
        steps += list(stream)
        assert time.monotonic() - began < 1.5
    result = steps[-1].result
    assert result is not None
    assert result.stop_reason is StopReason.DEADLINE
    assert result.text == "".join(step.text for step in steps)


def test_closing_a_stream_calls_its_request_back() -> None:
    with scripted_server("llama", key=KEY) as server:
        rain = patient(server.url)
        control(server, delay=0.02)
        stream = rain.stream(PROMPT)
        assert next(stream).accepted
        control(server, "hang")
        wait_until(lambda: stats(server)["in_flight"] > 0)
        stream.close()
        quiet(server)


async def test_leaving_an_asynchronous_stream_calls_its_request_back() -> None:
    with scripted_server("llama", key=KEY) as server:
        rain = patient(server.url)
        control(server, delay=0.02)
        async with contextlib.aclosing(rain.astream(PROMPT)) as stream:
            async for step in stream:
                assert step.accepted
                control(server, "hang")
                break
        await asyncio.to_thread(wait_until, lambda: stats(server)["in_flight"] == 0)
        before = stats(server)["requests"]
        control(server)
        assert stats(server)["requests"] == before


async def test_cancelling_a_task_calls_its_request_back() -> None:
    with scripted_server("llama", key=KEY) as server:
        rain = patient(server.url)
        rain.runtime  # noqa: B018 - the server is asked what it can do
        control(server, "hang")
        task = asyncio.create_task(rain.agenerate(PROMPT))
        await asyncio.to_thread(wait_until, lambda: stats(server)["in_flight"] > 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(quiet, server)


def test_one_that_is_cancelled_takes_no_other_with_it() -> None:
    with scripted_server("llama", key=KEY, delay=0.02) as server:
        rain = patient(server.url)
        reference = rain.generate(PROMPT)
        given_up, kept = rain.stream(PROMPTS[0]), rain.stream(PROMPT)
        steps = [next(given_up), next(kept)][1:]
        given_up.close()
        steps += list(kept)
        result = steps[-1].result
        assert result is not None
        assert result.text == reference.text


LEAVING = """
from tests.test_faults import PROMPT, patient
stream = patient({url!r}).stream(PROMPT)
print(next(stream).accepted, flush=True)
"""


def test_a_program_ends_though_a_request_hangs() -> None:
    with scripted_server("llama", key=KEY) as server:
        control(server, "hang", after=20)
        ended = run([sys.executable, "-c", LEAVING.format(url=server.url)], capture_output=True, timeout=25)
        assert ended.stdout.split() == [b"True"]
        assert ended.returncode == 0, ended.stderr
        assert not ended.stderr
        quiet(server, gone=0)


# --- writer and judge apart -----------------------------------------------------------------------------


def opinion(question: str, label: str) -> float:
    """Dislike certain words behind the prompt, by a judge that stands here."""
    said = question.partition(PROMPT)[2].removesuffix("\nTone:")
    good = not any(f" {word}" in said for word in BAD)
    return -0.1 if good == (label.strip() == "kind") else -3.0 - len(said) / 100


def local_judge() -> ScriptedModel:
    return ScriptedModel(script({}), opinion=opinion, name="judge")


@pytest.mark.parametrize("dialect", ["vllm", "llama"])
def test_what_a_judge_here_dislikes_never_comes_out_of_a_server(dialect: Dialect, made: Make) -> None:
    server, chosen = made(dialect)
    rain = Rain(chosen.updated(search={"iterations": 10}), judge=local_judge())
    plain = rain.plain(PROMPT)
    assert any(f" {word}" in plain.text for word in BAD)  # it does say such things
    reference = rain.generate(PROMPT)
    assert reference.text
    texts = [reference.text]
    for fault in ("hang", "cut", "500"):
        control(server, fault, after=3)
        error, took = broken(lambda: rain.generate(PROMPT))
        told(error, server.url)
        assert took < TOTAL_S + SLACK_S
        clean(error.result, reference)
        texts.append(error.result.text)
    assert any(texts[1:])
    assert not any(f" {word}" in text for text in texts for word in BAD)


def test_a_judge_on_a_server_weighs_what_is_written_here() -> None:
    writer = ScriptedModel(
        lambda text: {f" {word}": 1.0 + len(word) % 3 for word in babble.WORDS} | {".": 4.0}, name="writer"
    )
    with scripted_server("llama", key=KEY) as server:
        judged = settings(
            {"name": None},
            generation={"max_new_tokens": 24, "seed": 1},  # of which a draft is rewound
            evaluation={"criteria": (KIND,), "judge": model(server.url)},
            search={"simulation_tokens": 8, "iterations": 12},
        )
        rain = Rain(judged, model=writer)
        reference = rain.generate(PROMPT)
        assert rewound(reference)
        control(server, "hang", after=2)  # a question takes one request
        error, took = broken(lambda: rain.generate(PROMPT))
        told(error, server.url)
        assert took < TOTAL_S + SLACK_S
        clean(error.result, reference)


@pytest.mark.slow
@pytest.mark.parametrize("dies", ["writer", "judge"])
def test_writer_and_judge_on_two_servers(dies: str, tokenizer: str) -> None:
    with scripted_server("vllm", key=KEY) as writer, scripted_server("llama", key=KEY) as judge:
        chosen = settings(
            model(writer.url) | {"tokenizer": tokenizer},
            evaluation={"criteria": (KIND,), "judge": model(judge.url)},
        )
        rain = Rain(chosen)
        reference = rain.generate(PROMPT)
        drafts = {tuple(prompt) for prompt in prompts(writer)}
        questions = {tuple(prompt) for prompt in prompts(judge)}
        tone = tuple(babble.encode("\nTone:"))
        assert sum(question[-len(tone) :] == tone for question in questions) > 3
        assert not any(draft[-len(tone) :] == tone for draft in drafts)
        dead = {"writer": writer, "judge": judge}[dies]
        control(dead, delay=0.05)
        stream = rain.stream(PROMPT)
        steps = [next(stream)]
        dead.kill()
        error, _ = broken(lambda: steps.extend(stream))
    told(error, dead.url)
    clean(error.result, reference)
    assert error.result.text == "".join(step.text for step in steps)
